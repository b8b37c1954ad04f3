"""Reading blocks and nodes: neighbours in a pack in one request, decoded and proved, in the order asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from vmkeep.errors import ObjectDamaged
from vmkeep.repository.layout import FrameKind, pack_name
from vmkeep.repository.manifest import Children, NodeReader, decode_node, walk_blocks
from vmkeep.repository.record import BlockRef, StoredDisk
from vmkeep.repository.seal import Sealer
from vmkeep.repository.store import ObjectStore

WINDOW_PLAIN_BYTES = 4 * 1024 * 1024
WINDOW_BLOCKS = 1024
# Frames this near to each other are read in one request; what lies between is thrown away.
GAP_BYTES = 128 * 1024


def describe(ref: BlockRef) -> str:
    """Return the words by which an error names a frame."""
    return f"{pack_name(ref.pack)} at {ref.offset}"


def fetch_frames(store: ObjectStore, refs: Sequence[BlockRef]) -> list[memoryview]:
    """Return the sealed frames in the order of the references; raises ObjectMissing or ObjectDamaged."""
    frames: list[memoryview] = [memoryview(b"")] * len(refs)
    by_pack: dict[bytes, list[int]] = {}
    for place, ref in enumerate(refs):
        by_pack.setdefault(ref.pack, []).append(place)
    for pack, places in by_pack.items():
        places.sort(key=lambda place: refs[place].offset)
        ranges: list[tuple[int, int]] = []
        range_of: list[int] = []
        for place in places:
            offset, end = refs[place].offset, refs[place].offset + refs[place].length
            if ranges and offset <= ranges[-1][0] + ranges[-1][1] + GAP_BYTES:
                start, length = ranges[-1]
                ranges[-1] = (start, max(length, end - start))
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
    frames = fetch_frames(store, [ref for _block, ref in group])
    opened = []
    for (block, ref), frame in zip(group, frames, strict=True):
        plain = sealer.open(FrameKind.BLOCK, ref.id, frame, describe(ref))
        if len(plain) != disk.plain_bytes(block):
            raise ObjectDamaged(f"{describe(ref)} has a wrong length for block {block}", path=pack_name(ref.pack))
        opened.append((block * disk.block_bytes, plain))
    return opened


def read_disk(store: ObjectStore, sealer: Sealer, disk: StoredDisk, *, workers: int) -> Iterator[tuple[int, bytes]]:
    """Yield (start, content) of every block that is not zero, ascending; about 8 MiB for each worker are held."""
    groups = windows(disk, walk_blocks(disk, node_reader(store, sealer)))
    waiting: deque[Future[list[tuple[int, bytes]]]] = deque()
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="vmkeep-read")
    try:
        for group in groups:
            waiting.append(pool.submit(open_blocks, store, sealer, disk, group))
            if len(waiting) > workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
