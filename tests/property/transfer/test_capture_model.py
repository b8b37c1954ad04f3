"""Capturing into a real repository, generation after generation, against plain bytes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from vmkeep.keys import KeyFile
from vmkeep.repository import PointDisk, PointRecord, Repository, StoredDisk
from vmkeep.transfer.capture import capture_disk
from vmkeep.transfer.source import MemorySource

BLOCK = 4096
SECTOR = 512

Write = tuple[int, int, int]


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[list[Write]]]:
    """Return the size of a disk in sectors and, for each generation, writes of (start, sectors, byte)."""
    sectors = draw(st.integers(1, 60))
    write = st.tuples(st.integers(0, sectors - 1), st.integers(1, 24), st.sampled_from([0, 0, 1, 170]))
    return sectors, draw(st.lists(st.lists(write, max_size=5), min_size=1, max_size=4))


@settings(max_examples=examples(40))
@given(histories())
def test_every_generation_comes_back_as_it_was(history: tuple[int, list[list[Write]]]) -> None:
    sectors, generations = history
    with TemporaryDirectory(prefix="vmkeep-capture-") as directory:
        root = Path(directory)
        repository = Repository.create(str(root / "repository"), KeyFile.generate(root / "keys"))
        image = bytearray(sectors * SECTOR)
        kept: list[tuple[StoredDisk, bytes]] = []
        parent: PointRecord | None = None
        for writes in generations:
            dirty = apply(image, writes)
            base = kept[-1][0] if kept else None
            source = MemorySource(bytes(image), dirty=dirty if base is not None else None)
            parent = take(repository, root, source, base, parent)
            kept.append((parent.disks[0].stored, bytes(image)))
        for stored, truth in kept:
            restored = bytearray(stored.size_bytes)
            for start, data in repository.read_disk(stored):
                restored[start : start + len(data)] = data
            assert bytes(restored) == truth


def apply(image: bytearray, writes: list[Write]) -> list[tuple[int, int]]:
    """Write into the image and return the dirty ranges as a bitmap of sectors would give them."""
    touched: set[int] = set()
    for start, sectors, byte in writes:
        end = min(start + sectors, len(image) // SECTOR)
        image[start * SECTOR : end * SECTOR] = bytes([byte]) * ((end - start) * SECTOR)
        touched.update(range(start, end))
    return [(sector * SECTOR, SECTOR) for sector in sorted(touched)]


def take(
    repository: Repository, root: Path, source: MemorySource, base: StoredDisk | None, parent: PointRecord | None
) -> PointRecord:
    with repository.begin(purpose="test", host="here", cache=root / "cache") as writer:
        disk = writer.disk(size_bytes=source.size_bytes, block_bytes=BLOCK, base=base)
        captured = capture_disk(
            source, disk, block_bytes=BLOCK, workers=2, stop=lambda: None, progress=lambda _settled: None
        )
        stored = disk.finish()
        point_disk = PointDisk(
            "vda", "full", "no-base", "/vda", "qcow2", captured.bytes_read, disk.bytes_stored, stored
        )
        return writer.commit(
            PointRecord(
                id="",
                vm_uuid="6f8f5c9c-55f5-4a8e-9a37-0d5f5c6a1f10",
                vm_name="model",
                kind="full" if base is None else "incremental",
                parent=None if parent is None else parent.id,
                created="2026-01-02T03:04:05.678901Z",
                host="here",
                checkpoint=None,
                pause_ms=0.0,
                labels={},
                disks=(point_disk,),
                excluded=(),
                states=(),
                definition="<domain/>",
            )
        )
