"""The format cannot change: a repository in the tree is readable for ever, and is written again byte for byte.

When this fails, the code is wrong, not the golden files. They were made by ``make_sample``; see
docs/internals/repository-format.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.repository.samples import make_pruned, make_sample, opener, read_whole, sample_key
from vmkeep.repository import Repository

GOLDEN = Path(__file__).parent / "golden" / "repository"
MOVED = GOLDEN.parent / "moved"


def files(directory: Path) -> dict[str, bytes]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def test_golden_repository_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    written, golden = files(sample.location), files(GOLDEN)
    assert sorted(written) == sorted(golden)
    for name, content in golden.items():
        assert written[name] == content, name


def test_golden_repository_is_pruned_again_byte_for_byte(tmp_path: Path) -> None:
    written, golden = files(make_pruned(tmp_path).location), files(MOVED)
    # The files are those of 1.11; 1.14 adds these.
    told = {name: written.pop(name) for name in sorted(written) if name.startswith("pruned/")}
    assert told
    assert all(content == b'{"run":"%b"}\n' % name.removeprefix("pruned/").encode() for name, content in told.items())
    assert sorted(written) == sorted(golden)
    for name, content in golden.items():
        assert written[name] == content, name


def test_golden_repository_of_which_packs_were_moved_is_readable(tmp_path: Path) -> None:
    truth = make_sample(tmp_path)
    point = truth.points[1]
    repository = Repository.open(str(MOVED), opener(sample_key()))
    assert repository.point_ids() == [point.id]
    assert repository.point(point.id) == point
    assert read_whole(repository, point.disks[0].stored) == truth.images[point.id][0]
    assert repository.verify_all().sound


def test_golden_repository_is_readable(tmp_path: Path) -> None:
    truth = make_sample(tmp_path)
    repository = Repository.open(str(GOLDEN), opener(sample_key()))
    assert repository.point_ids() == sorted(point.id for point in truth.points)
    for point in truth.points:
        assert repository.point(point.id) == point
        for disk, image in zip(point.disks, truth.images[point.id], strict=True):
            assert read_whole(repository, disk.stored) == image
        for state in point.states:
            assert repository.state(state.version_id)[1] == truth.states[state.version_id]
    assert repository.verify_all().sound


@pytest.mark.parametrize(("name", "size"), [("format", 99), ("keyring/0000000001", 814)], ids=["format", "keyring"])
def test_plain_objects_have_their_documented_form(name: str, size: int) -> None:
    content = (GOLDEN / name).read_bytes()
    assert content.endswith(b"}\n")
    assert b" :" not in content
    assert len(content) == size
