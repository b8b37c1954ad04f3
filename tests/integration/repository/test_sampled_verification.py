"""A verification of a share reads that share from the store, says how much that was, and finds what it reads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.repository.samples import opener, record_of, sample_key, write_disk
from vmkeep.repository import Repository, RepositoryReport
from vmkeep.repository.store import ObjectStore

KiB, MiB = 1024, 1024 * 1024
BLOCK = 64 * KiB
DISK = 48 * MiB


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all that the store was asked for."""
    lengths: list[int] = []
    ranges, get = ObjectStore.ranges, ObjectStore.get

    def count_ranges(self: ObjectStore, name: str, wanted: Sequence[tuple[int, int]]) -> list[memoryview]:
        lengths.extend(length for _, length in wanted)
        return ranges(self, name, wanted)

    def count_get(self: ObjectStore, name: str, **bounds: int) -> bytes:
        content = get(self, name, **bounds)
        lengths.append(len(content))
        return content

    monkeypatch.setattr(ObjectStore, "ranges", count_ranges)
    monkeypatch.setattr(ObjectStore, "get", count_get)
    return lengths


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, list[str], Path]:
    """Two points over blocks of every size: of noise, and of what shrinks to a few bytes and lies close together."""
    directory = tmp_path_factory.mktemp("sampled")
    key, noise = sample_key(), random.Random(1).randbytes
    repository = Repository.create(str(directory / "repository"), key)
    points, base, parent = [], None, None
    for number in (0, 1):
        with repository.begin(purpose="test", host="host.example", cache=directory / "cache", workers=2) as writer:
            blocks = range(0, DISK // BLOCK, 1 + number)
            changes = {
                block: noise(BLOCK) if block % 4 else f"{number} {block} ".encode().ljust(BLOCK, b".")
                for block in blocks
            }
            base = write_disk(writer, changes, size_bytes=DISK, block_bytes=BLOCK, base=base)
            parent = writer.commit(record_of([base], parent=parent))
            points.append(parent.id)
    return Repository.open(str(directory / "repository"), opener(key)), points, directory / "repository"


def _packs_bytes(location: Path) -> int:
    return sum(path.stat().st_size for path in (location / "packs").rglob("*") if path.is_file())


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_share_of_the_repository_is_what_is_read(
    stored: tuple[Repository, list[str], Path], read: list[int], share: float
) -> None:
    repository, _, location = stored
    whole = _packs_bytes(location)
    report = repository.verify_all(sample=share)
    assert report.sound
    assert abs(sum(read) - share * whole) < 0.02 * whole, f"{sum(read) / whole:.3f} was read"
    assert abs(report.bytes_read - sum(read)) < 0.005 * whole
    assert abs(report.blocks - share * 1152) < 0.1 * 1152


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_share_of_a_point_is_what_is_read(
    stored: tuple[Repository, list[str], Path], read: list[int], share: float
) -> None:
    repository, points, _ = stored
    repository.verify_point(points[0])
    whole = sum(read)
    read.clear()
    report = repository.verify_point(points[0], sample=share)
    assert report.sound
    assert abs(sum(read) - share * whole) < 0.03 * whole, f"{sum(read) / whole:.3f} was read"
    assert abs(report.bytes_read - sum(read)) < 0.005 * whole


def test_every_block_is_looked_at_by_and_by_and_damage_is_told_with_its_points(
    stored: tuple[Repository, list[str], Path],
) -> None:
    repository, points, location = stored
    pack = max((location / "packs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    try:
        found: list[RepositoryReport] = []
        while not (found and found[-1].harmed) and len(found) < 60:  # all of them miss it once in 30 million times
            found.append(repository.verify_all(sample=0.25))
        assert found[-1].harmed
        assert [report.unsteady for report in found if report.unsteady] == []  # what is read again is what was read
        assert set(found[-1].harmed) <= set(points)
    finally:
        content[len(content) // 2] ^= 1
        pack.write_bytes(content)
    assert repository.verify_all().sound
