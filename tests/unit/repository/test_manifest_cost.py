"""What a manifest costs, in nodes and bytes: counts, which are the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vmkeep.repository.layout import FRAME_OVERHEAD_BYTES
from vmkeep.repository.manifest import Children, Geometry, ManifestBuilder
from vmkeep.repository.record import BLOCK_BYTES, FAN_OUT, BlockRef

_TIB = 1 << 40
_BLOCKS_IN_PACK = 250


class FullDisk:
    """The manifest of a disk without a zero in it, made where it is read: 33 million blocks in no memory."""

    def __init__(self) -> None:
        self._random = random.Random(1)
        self.nodes_read = 0
        self.stored: list[int] = []

    def read(self, wanted: Sequence[tuple[BlockRef, int, int]]) -> list[Children]:
        self.nodes_read += len(wanted)
        return [[self.ref() for _ in range(slots)] for _, _, slots in wanted]

    def store(self, data: bytes) -> BlockRef:
        self.stored.append(len(data) + FRAME_OVERHEAD_BYTES)
        return self.ref()

    def ref(self) -> BlockRef:
        pack = self._random.randrange(_TIB // BLOCK_BYTES // _BLOCKS_IN_PACK).to_bytes(16, "big")
        return BlockRef(self._random.randbytes(32), pack, self._random.randrange(1 << 24), BLOCK_BYTES)


def test_hundred_scattered_changes_of_two_tebibytes_write_little() -> None:
    disk = FullDisk()
    geometry = Geometry(2 * _TIB // BLOCK_BYTES, FAN_OUT)
    manifest = ManifestBuilder(geometry, disk.ref(), read=disk.read, store=disk.store)
    for block in sorted(random.Random(2).sample(range(geometry.blocks), 100)):
        manifest.set(block, disk.ref())
    assert manifest.finish() is not None
    # Five levels: the root, the 32 below it, and from there nearly a node for each change and level.
    assert geometry.levels == 5
    assert len(disk.stored) <= 1 + 32 + 3 * 100
    assert disk.nodes_read == len(disk.stored)
    assert sum(disk.stored) < 0.65 * (1 << 20)


def test_zeroing_two_tebibytes_takes_no_node() -> None:
    disk = FullDisk()
    geometry = Geometry(2 * _TIB // BLOCK_BYTES, FAN_OUT)
    manifest = ManifestBuilder(geometry, disk.ref(), read=disk.read, store=disk.store)
    manifest.set_zero(0, geometry.blocks)
    assert manifest.finish() is None
    assert (disk.nodes_read, disk.stored) == (0, [])
