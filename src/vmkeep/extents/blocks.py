"""Changed byte ranges, cut into the blocks a repository stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vmkeep.extents.ranges import Extent, ExtentError, Kind


class BlockRun(NamedTuple):
    """Consecutive blocks of one kind: ``blocks`` of them from number ``first_block`` on."""

    first_block: int
    blocks: int
    kind: Kind


def cut(
    extents: Iterable[Extent], *, block_bytes: int, size_bytes: int, max_blocks: int | None = None
) -> Iterator[BlockRun]:
    """Yield the blocks that changed, in order, as runs.

    A block with any changed byte is DATA, to be read whole: the clean bytes around a small change belong to it
    too. It is ZERO only when every byte of it lies in ZERO extents; a block partly zeroed and otherwise clean
    is DATA, as the clean part may hold data. The last block of a disk whose size is no multiple of
    ``block_bytes`` counts as whole when its existing bytes are covered. Neighbouring runs of one kind are
    joined; a DATA run has at most ``max_blocks`` blocks (None: any number), a ZERO run may have millions.
    Raises ExtentError when the extents are not in order, overlap, are empty or leave the disk. Memory does not
    grow with the number of extents.
    """
    if block_bytes <= 0 or (max_blocks is not None and max_blocks <= 0):
        raise ValueError(f"block_bytes {block_bytes} and max_blocks {max_blocks} must be positive")
    run: BlockRun | None = None
    for piece in _pieces(extents, block_bytes, size_bytes):
        if run is not None and piece.kind is run.kind and piece.first_block == run.first_block + run.blocks:
            piece = BlockRun(run.first_block, run.blocks + piece.blocks, run.kind)
        elif run is not None:
            yield run
        while max_blocks is not None and piece.kind is Kind.DATA and piece.blocks > max_blocks:
            yield BlockRun(piece.first_block, max_blocks, Kind.DATA)
            piece = BlockRun(piece.first_block + max_blocks, piece.blocks - max_blocks, Kind.DATA)
        run = piece
    if run is not None:
        yield run


# One loop and no calls in it: it runs once per extent, of which a map can have millions.
def _pieces(  # noqa: C901
    extents: Iterable[Extent], block_bytes: int, size_bytes: int
) -> Iterator[BlockRun]:
    """Yield runs in order, not joined: whole blocks of an extent at once, shared blocks one by one.

    Between two extents at most one block is undecided: the one in which the first ended. It is kept with the
    number of its bytes known to be zero; -1 once a DATA extent touched it.
    """
    shared_block = -1
    shared_zero_bytes = 0
    previous_end = 0
    data, zero = Kind.DATA, Kind.ZERO
    for start, length, kind in extents:
        end = start + length
        if start < previous_end or length <= 0 or end > size_bytes:
            raise ExtentError(f"extent of {length} bytes at {start} after byte {previous_end} of {size_bytes}")
        previous_end = end
        first = start // block_bytes
        if shared_block >= 0 and first != shared_block:
            yield BlockRun(shared_block, 1, data)
            shared_block = -1
        while start < end:
            block = start // block_bytes
            block_start = block * block_bytes
            block_end = min(block_start + block_bytes, size_bytes)
            if start == block_start and end >= block_end and shared_block < 0:
                whole = _whole_blocks(start, end, block_bytes, size_bytes)
                yield BlockRun(block, whole, kind)
                start = min((block + whole) * block_bytes, size_bytes)
                continue
            if shared_block < 0:
                shared_block, shared_zero_bytes = block, 0
            covered_to = min(end, block_end)
            if kind is data:
                shared_zero_bytes = -1
            elif shared_zero_bytes >= 0:
                shared_zero_bytes += covered_to - start
            if covered_to == block_end:
                yield BlockRun(block, 1, zero if shared_zero_bytes == block_end - block_start else data)
                shared_block = -1
            start = covered_to
    if shared_block >= 0:
        yield BlockRun(shared_block, 1, data)


def _whole_blocks(start: int, end: int, block_bytes: int, size_bytes: int) -> int:
    """Return how many blocks from the aligned ``start`` on lie wholly before ``end``, the short last one too."""
    if end == size_bytes:
        return -(-(end - start) // block_bytes)
    return (end - start) // block_bytes
