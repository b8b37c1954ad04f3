"""What taking a point asks of the disk and of the store, in counts: the same on every machine."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.repository.samples import record_of, sample_key
from vmkeep.repository import BLOCK_BYTES, PointRecord, Repository
from vmkeep.repository.store import ObjectStore
from vmkeep.transfer.capture import READ_BYTES, capture_disk
from vmkeep.transfer.source import MemorySource

_MIB = 1 << 20
_SIZE = 96 * _MIB
_CALLS = ("put", "put_pack", "get", "ranges", "stat", "list", "delete", "make_durable")


@pytest.fixture(scope="module")
def content() -> bytes:
    """Two thirds data that does not shrink, then zeros."""
    return random.Random(1).randbytes(64 * _MIB) + bytes(32 * _MIB)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the calls of the store by what they are about: ``put packs`` and the like."""
    calls: Counter[str] = Counter()
    with monkeypatch.context() as patch:
        for name in _CALLS:
            real = getattr(ObjectStore, name)

            def call(
                self: ObjectStore, about: str, *rest: Any, _name: str = name, _real: Any = real, **more: Any
            ) -> Any:
                calls[f"{_name} {about.partition('/')[0]}"] += 1
                return _real(self, about, *rest, **more)

            patch.setattr(ObjectStore, name, call)
        yield calls


def _take(
    repository: Repository, cache: Path, source: MemorySource, base: PointRecord | None = None
) -> tuple[PointRecord, int]:
    """Return the point and the bytes of the packs that it took."""
    with repository.begin(purpose="cost", host="here", cache=cache) as writer:
        disk = writer.disk(size_bytes=source.size_bytes, base=base.disks[0].stored if base is not None else None)
        capture_disk(
            source, disk, block_bytes=BLOCK_BYTES, workers=2, stop=lambda: None, progress=lambda _settled: None
        )
        return writer.commit(record_of([disk.finish()], parent=base)), writer.bytes_stored


def test_full_point_reads_data_once_in_large_pieces_and_writes_few_large_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    source = MemorySource(content)
    with counted(monkeypatch) as calls:
        _, stored = _take(repository, tmp_path / "cache", source)
    assert sorted(source.reads) == [(start, READ_BYTES) for start in range(0, 64 * _MIB, READ_BYTES)]
    assert stored < 64 * _MIB * 1.01
    # Four packs of 16 MiB and what their headers push into a fifth; a pack of nodes; the point. No block is asked for.
    assert calls["put_pack packs"] <= 6
    assert calls["make_durable packs"] == calls["put_pack packs"]
    assert calls["put points"] == 1
    assert calls["put intents"] <= 2
    assert calls["get packs"] == calls["ranges packs"] == 0
    assert sum(calls.values()) <= 30, calls


def test_incremental_point_reads_what_is_dirty_and_writes_two_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    base, _ = _take(repository, tmp_path / "cache", MemorySource(content))
    places = sorted(random.Random(2).sample(range(0, 64 * _MIB, BLOCK_BYTES), 16))
    changed = bytearray(content)
    for place in places:
        changed[place : place + BLOCK_BYTES] = random.Random(place).randbytes(BLOCK_BYTES)
    source = MemorySource(bytes(changed), dirty=[(place, BLOCK_BYTES) for place in places])
    with counted(monkeypatch) as calls:
        point, stored = _take(repository, tmp_path / "cache", source, base)
    assert sum(length for _, length in source.reads) == 16 * BLOCK_BYTES
    assert stored < 16 * BLOCK_BYTES * 1.05
    assert calls["put_pack packs"] == 2  # blocks, and the nodes above them
    assert calls["put points"] == 1
    # The nodes on the way to each change, read one by one: at most three levels for each.
    assert calls["ranges packs"] <= 3 * 16
    assert sum(calls.values()) - calls["ranges packs"] <= 25, calls
    assert dict(repository.read_disk(point.disks[0].stored)) == {
        start: bytes(changed[start : start + BLOCK_BYTES]) for start in range(0, 64 * _MIB, BLOCK_BYTES)
    }


def test_point_of_a_disk_that_is_known_stores_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    first, _ = _take(repository, tmp_path / "cache", MemorySource(content))
    with counted(monkeypatch) as calls:
        again, stored = _take(repository, tmp_path / "cache", MemorySource(content))
    assert again.disks[0].stored == first.disks[0].stored
    assert stored == 0
    assert calls["put_pack packs"] == 0
