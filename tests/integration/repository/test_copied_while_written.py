"""A repository copied by other programs while a point is written: in which order the copy is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration.repository.samples import BLOCK, Sample, make_sample, opener, record_of, write_disk
from vmkeep.repository import PointRecord, Repository

SIZE = 3 * BLOCK


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return make_sample(tmp_path / "sample")


def take(sample: Sample, byte: int) -> PointRecord:
    """Take another point; all of its blocks are new."""
    cache = sample.location.parent / "cache"
    with sample.repository.begin(purpose="test", host="host.example", cache=cache, workers=1) as writer:
        blocks = {number: bytes([byte, number]) * (BLOCK // 2) for number in range(3)}
        return writer.commit(record_of([write_disk(writer, blocks, size_bytes=SIZE)]))


def copy(sample: Sample, target: Path, *, points: bool) -> None:
    """Copy the points, or everything else; what is there already is written over."""
    for directory in sample.location.iterdir():
        if (directory.name == "points") is not points:
            continue
        if directory.is_dir():
            shutil.copytree(directory, target / directory.name, dirs_exist_ok=True)
        else:
            target.mkdir(exist_ok=True)
            shutil.copy2(directory, target / directory.name)


def harmed(sample: Sample, target: Path) -> set[str]:
    report = Repository.open(str(target), opener(sample.key)).verify_all()
    return set(report.harmed)


def test_points_first_is_whole_and_lacks_only_what_was_committed_since(sample: Sample, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    copy(sample, target, points=True)
    later = take(sample, 1)
    copy(sample, target, points=False)
    assert harmed(sample, target) == set()
    held = set(Repository.open(str(target), opener(sample.key)).point_ids())
    assert held == {point.id for point in sample.points}
    assert later.id not in held


def test_points_last_may_hold_a_point_without_its_blocks_and_a_second_pass_mends_it(
    sample: Sample, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    copy(sample, target, points=False)
    later = take(sample, 1)
    copy(sample, target, points=True)
    assert harmed(sample, target) == {later.id}
    copy(sample, target, points=True)
    copy(sample, target, points=False)
    assert harmed(sample, target) == set()
