"""Reading blocks and nodes: neighbours in a pack in one request, decoded and proved, in the order asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeAlias, TypeVar

from vmkeep.errors import ObjectDamaged
from vmkeep.pool import Pool
from vmkeep.repository.layout import FrameKind, pack_name, sealed_bytes_limit
from vmkeep.repository.manifest import (
    Children,
    NodeReader,
    Runs,
    decode_node,
    node_frame_bytes_limit,
    walk_blocks,
    walk_runs,
)
from vmkeep.repository.record import BlockRef, StoredDisk
from vmkeep.repository.seal import Sealer
from vmkeep.repository.store import ObjectStore

T = TypeVar("T")

WINDOW_PLAIN_BYTES = 4 * 1024 * 1024
WINDOW_BLOCKS = 1024
# Frames this near to each other are read in one request; what lies between is thrown away, as long as it is not more
# than a window's content in all.
GAP_BYTES = 128 * 1024
GAPS_BYTES = 4 * 1024 * 1024


def describe(ref: BlockRef) -> str:
    """Return the words by which an error names a frame."""
    return f"{pack_name(ref.pack)} at {ref.offset}"


def refuse_oversize(ref: BlockRef, most_bytes: int) -> None:
    """Raise ObjectDamaged for a frame that is longer than what belongs there: it is not read to find that out."""
    if ref.length > most_bytes:
        raise ObjectDamaged(
            f"{describe(ref)} would have {ref.length} bytes, and {most_bytes} is the most that it can have",
            path=pack_name(ref.pack),
        )


def fetch_frames(store: ObjectStore, refs: Sequence[BlockRef]) -> list[memoryview]:
    """Return the sealed frames in the order of the references; raises ObjectMissing or ObjectDamaged."""
    frames: list[memoryview] = [memoryview(b"")] * len(refs)
    by_pack: dict[bytes, list[int]] = {}
    left_for_gaps = GAPS_BYTES
    for place, ref in enumerate(refs):
        by_pack.setdefault(ref.pack, []).append(place)
    for pack, places in by_pack.items():
        places.sort(key=lambda place: refs[place].offset)
        ranges: list[tuple[int, int]] = []
        range_of: list[int] = []
        for place in places:
            offset, end = refs[place].offset, refs[place].offset + refs[place].length
            gap = offset - sum(ranges[-1]) if ranges else GAPS_BYTES
            if ranges and gap <= min(GAP_BYTES, left_for_gaps):
                start, length = ranges[-1]
                ranges[-1] = (start, max(length, end - start))
                left_for_gaps -= max(0, gap)
            else:
                ranges.append((offset, end - offset))
            range_of.append(len(ranges) - 1)
        pieces = store.ranges(pack_name(pack), ranges)
        for place, number in zip(places, range_of, strict=True):
            begin = refs[place].offset - ranges[number][0]
            frames[place] = pieces[number][begin : begin + refs[place].length]
    return frames


def node_reader(store: ObjectStore, sealer: Sealer) -> NodeReader:
    """Return what reads manifest nodes, all that are asked for at a time together."""

    def read(wanted: Sequence[tuple[BlockRef, int, int]]) -> list[Children]:
        for ref, _level, slots in wanted:
            refuse_oversize(ref, node_frame_bytes_limit(slots))
        frames = fetch_frames(store, [ref for ref, _level, _slots in wanted])
        nodes = []
        for (ref, level, slots), frame in zip(wanted, frames, strict=True):
            where = describe(ref)
            nodes.append(decode_node(sealer.open(FrameKind.NODE, ref.id, frame, where), level, slots, where))
        return nodes

    return read


def windows(disk: StoredDisk, blocks: Iterable[tuple[int, BlockRef]]) -> Iterator[list[tuple[int, BlockRef]]]:
    """Cut a walk into groups whose content is at most 4 MiB."""
    most = min(WINDOW_BLOCKS, max(1, WINDOW_PLAIN_BYTES // disk.block_bytes))
    group: list[tuple[int, BlockRef]] = []
    for item in blocks:
        group.append(item)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


def open_blocks(
    store: ObjectStore, sealer: Sealer, disk: StoredDisk, group: Sequence[tuple[int, BlockRef]]
) -> list[tuple[int, bytes]]:
    """Return (start in bytes, content) of each block of a group; raises ObjectMissing or ObjectDamaged."""
    for _block, ref in group:
        refuse_oversize(ref, sealed_bytes_limit(disk.block_bytes))
    frames = fetch_frames(store, [ref for _block, ref in group])
    opened = []
    for (block, ref), frame in zip(group, frames, strict=True):
        plain = sealer.open(FrameKind.BLOCK, ref.id, frame, describe(ref))
        if len(plain) != disk.plain_bytes(block):
            raise ObjectDamaged(f"{describe(ref)} has a wrong length for block {block}", path=pack_name(ref.pack))
        opened.append((block * disk.block_bytes, plain))
    return opened


Window: TypeAlias = Callable[[], list[tuple[int, bytes]]]
"""Reads the blocks of one part of a disk, as (start, content); may be called in any thread."""


def disk_windows(store: ObjectStore, sealer: Sealer, disk: StoredDisk) -> Iterator[Window]:
    """Yield what reads each part of at most 4 MiB that is not all zero, ascending."""
    for group in windows(disk, walk_blocks(disk, node_reader(store, sealer))):
        yield partial(open_blocks, store, sealer, disk, group)


def read_disk(store: ObjectStore, sealer: Sealer, disk: StoredDisk, *, workers: int) -> Iterator[tuple[int, bytes]]:
    """Yield (start, content) of every block that is not zero, ascending; about 8 MiB for each worker are held."""
    yield from ahead(disk_windows(store, sealer, disk), workers)


Piece: TypeAlias = tuple[int, int, bytes | None]
"""Blocks as (start in bytes, length, content); without content they are zero."""


def read_runs(store: ObjectStore, sealer: Sealer, disk: StoredDisk, runs: Runs, *, workers: int) -> Iterator[Piece]:
    """Yield what runs of blocks hold, ascending and without a gap; about 8 MiB for each worker are held."""
    items = walk_runs(disk, runs, node_reader(store, sealer))
    yield from ahead((partial(_open_items, store, sealer, disk, group) for group in _groups(disk, items)), workers)


def _groups(
    disk: StoredDisk, items: Iterable[tuple[int, int, BlockRef | None]]
) -> Iterator[list[tuple[int, int, BlockRef | None]]]:
    """Cut a walk into groups whose content is at most 4 MiB, however many zero runs lie between."""
    most = min(WINDOW_BLOCKS, max(1, WINDOW_PLAIN_BYTES // disk.block_bytes))
    group: list[tuple[int, int, BlockRef | None]] = []
    blocks = 0
    for item in items:
        group.append(item)
        blocks += item[2] is not None
        if blocks == most or len(group) == WINDOW_BLOCKS:
            yield group
            group, blocks = [], 0
    if group:
        yield group


def _open_items(
    store: ObjectStore, sealer: Sealer, disk: StoredDisk, group: Sequence[tuple[int, int, BlockRef | None]]
) -> list[Piece]:
    opened = iter(open_blocks(store, sealer, disk, [(block, ref) for block, _count, ref in group if ref is not None]))
    pieces: list[Piece] = []
    for first, count, ref in group:
        if ref is not None:
            start, content = next(opened)
            pieces.append((start, len(content), content))
        else:
            start = first * disk.block_bytes
            pieces.append((start, min(count * disk.block_bytes, disk.size_bytes - start), None))
    return pieces


def ahead(calls: Iterable[Callable[[], list[T]]], workers: int) -> Iterator[T]:
    """Make the calls in threads, some ahead of what was taken, and yield their results in order."""
    waiting: deque[Future[list[T]]] = deque()
    pool = Pool(max_workers=workers, thread_name_prefix="vmkeep-read")
    try:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
