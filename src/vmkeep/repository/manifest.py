"""The tree that lists a disk's blocks.

A leaf (level 0) names up to ``fan_out`` blocks; a node of level n names up to ``fan_out`` nodes of level n - 1.
A missing child is zero, however large the range below it. The tree has as many levels as the disk's size needs
and at least one, so that the place of every node follows from the geometry and is checked when it is read.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from vmkeep.errors import InvalidRequest, ObjectDamaged
from vmkeep.repository.layout import FRAME_OVERHEAD_BYTES, ID_BYTES, NAME_BYTES, VERSION, sealed_bytes_limit
from vmkeep.repository.record import BlockRef, StoredDisk
from vmkeep.values import dataclass

T = TypeVar("T")
Children: TypeAlias = list[BlockRef | None]
_NODE = struct.Struct("<BBHHH")


@dataclass(frozen=True, slots=True)
class Geometry:
    """How many blocks there are, and so how many levels."""

    blocks: int
    fan_out: int

    @property
    def levels(self) -> int:
        levels, covered = 1, self.fan_out
        while covered < self.blocks:
            levels, covered = levels + 1, covered * self.fan_out
        return levels

    def span(self, level: int) -> int:
        """Return how many blocks a node of that level covers."""
        return int(self.fan_out ** (level + 1))

    def slots(self, level: int, index: int) -> int:
        """Return how many children the node has that is the ``index``-th of its level."""
        below = self.span(level) // self.fan_out
        left = self.blocks - index * self.span(level)
        return min(self.fan_out, -(-left // below))


def geometry_of(disk: StoredDisk) -> Geometry:
    return Geometry(disk.blocks, disk.fan_out)


def node_frame_bytes_limit(slots: int) -> int:
    """Return the most bytes that the sealed frame of a node with so many slots can have."""
    return sealed_bytes_limit(_NODE.size + -(-slots // 8) + slots * (NAME_BYTES + ID_BYTES + 2 + 4 + 4))


def encode_node(level: int, children: Sequence[BlockRef | None]) -> bytes:
    """Return a node's bytes; equal children give equal bytes, so an unchanged subtree keeps its id."""
    present = [child for child in children if child is not None]
    packs: dict[bytes, int] = {}
    for child in present:
        packs.setdefault(child.pack, len(packs))
    kinds = bytearray(-(-len(children) // 8))
    for slot, maybe in enumerate(children):
        if maybe is not None:
            kinds[slot >> 3] |= 1 << (slot & 7)
    count = len(present)
    return b"".join(
        [
            _NODE.pack(VERSION, level, len(children), count, len(packs)),
            kinds,
            *packs,
            *(child.id for child in present),
            struct.pack(f"<{count}H", *(packs[child.pack] for child in present)),
            struct.pack(f"<{count}I", *(child.offset for child in present)),
            struct.pack(f"<{count}I", *(child.length for child in present)),
        ]
    )


class NodeRows(NamedTuple):
    """A node as it is stored: of each present child, in order, its id, its pack (a place in ``packs``), its place."""

    level: int
    slots: int
    present: int
    packs: list[bytes]
    ids: bytes
    pack_of: tuple[int, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]


def parse_node(data: bytes, where: str) -> NodeRows:
    """Return the rows of a node of any level and number of slots; raises ObjectDamaged for what is none."""
    damaged = ObjectDamaged(f"{where} is not the manifest node that belongs there", path=where)
    if len(data) < _NODE.size:
        raise damaged
    version, level, slots, count, pack_count = _NODE.unpack_from(data)
    kinds_bytes = -(-slots // 8)
    expected = _NODE.size + kinds_bytes + pack_count * NAME_BYTES + count * (ID_BYTES + 2 + 4 + 4)
    if version != VERSION or len(data) != expected:
        raise damaged
    position = _NODE.size
    present = int.from_bytes(data[position : position + kinds_bytes], "little")
    position += kinds_bytes
    ids = position + pack_count * NAME_BYTES
    packs = [data[start : start + NAME_BYTES] for start in range(position, ids, NAME_BYTES)]
    places = ids + count * ID_BYTES
    pack_of = struct.unpack_from(f"<{count}H", data, places)
    offsets = struct.unpack_from(f"<{count}I", data, places + 2 * count)
    lengths = struct.unpack_from(f"<{count}I", data, places + 6 * count)
    if present >> slots or present.bit_count() != count or count == 0 or set(pack_of) != set(range(pack_count)):
        raise damaged
    if min(lengths) < FRAME_OVERHEAD_BYTES:
        raise damaged
    return NodeRows(level, slots, present, packs, data[ids:places], pack_of, offsets, lengths)


def decode_node(data: bytes, level: int, slots: int, where: str) -> Children:
    """Return the children; raises ObjectDamaged unless this is a node of that level with that number of slots."""
    rows = parse_node(data, where)
    if rows.level != level or rows.slots != slots:
        raise ObjectDamaged(f"{where} is not the manifest node that belongs there", path=where)
    children: Children = [None] * slots
    place = 0
    for slot in range(slots):
        if rows.present >> slot & 1:
            id_ = rows.ids[place * ID_BYTES : (place + 1) * ID_BYTES]
            children[slot] = BlockRef(id_, rows.packs[rows.pack_of[place]], rows.offsets[place], rows.lengths[place])
            place += 1
    return children


NodeReader: TypeAlias = Callable[[Sequence[tuple[BlockRef, int, int]]], list[Children]]
"""Reads nodes, given as (reference, level, slots), in that order."""

_REFS_AT_ONCE = 64 * 1024
"""Of references in the nodes that are read together: each takes some 200 bytes. A node of ours has 32 of them."""


def _portions(geometry: Geometry, items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut nodes of a level into what is read together, so that a great fan-out takes no more memory than a small one.

    With 32 children in a node they all are one portion.
    """
    most = max(1, _REFS_AT_ONCE // geometry.fan_out)
    for first in range(0, len(items), most):
        yield items[first : first + most]


def walk_blocks(disk: StoredDisk, read: NodeReader) -> Iterator[tuple[int, BlockRef]]:
    """Yield (block, reference) of every block that is not zero, ascending; children of a node are read together."""
    if disk.root is None:
        return
    geometry = geometry_of(disk)
    top = geometry.levels - 1
    (root,) = read([(disk.root, top, geometry.slots(top, 0))])
    yield from _walk(geometry, read, root, top, 0)


def _walk(
    geometry: Geometry, read: NodeReader, children: Children, level: int, index: int
) -> Iterator[tuple[int, BlockRef]]:
    first = index * geometry.fan_out
    present = [(first + slot, child) for slot, child in enumerate(children) if child is not None]
    if level == 0:
        yield from present
        return
    for portion in _portions(geometry, present):
        below = read([(child, level - 1, geometry.slots(level - 1, place)) for place, child in portion])
        for (place, _child), grandchildren in zip(portion, below, strict=True):
            yield from _walk(geometry, read, grandchildren, level - 1, place)


def sample_blocks(
    disk: StoredDisk, read: NodeReader, count: int, choose: Callable[[Sequence[int]], int]
) -> dict[int, BlockRef]:
    """Return up to ``count`` blocks that are not zero, found by descending at random; few where draws meet.

    Costs a node for each level and draw, however large the disk. ``choose`` draws one of several places.
    """
    if disk.root is None:
        return {}
    geometry = geometry_of(disk)
    level = geometry.levels - 1
    nodes = dict(zip([0], read([(disk.root, level, geometry.slots(level, 0))]), strict=True))
    drawn = [0] * count
    while True:
        found: dict[int, BlockRef] = {}
        for number, index in enumerate(drawn):
            present = [slot for slot, child in enumerate(nodes[index]) if child is not None]
            slot = choose(present)
            child = nodes[index][slot]
            assert child is not None
            drawn[number] = index * geometry.fan_out + slot
            found[drawn[number]] = child
        if level == 0:
            return found
        level -= 1
        below = read([(child, level, geometry.slots(level, place)) for place, child in found.items()])
        nodes = dict(zip(found, below, strict=True))


def walk_difference(have: StoredDisk, want: StoredDisk, read: NodeReader) -> Iterator[tuple[int, BlockRef | None]]:
    """Yield (block, what ``want`` has there; None for zero) of every block whose content differs, ascending.

    Nodes of one id list the same children, so a subtree that both have is not read: the cost grows with the
    difference. Raises InvalidRequest unless both are of one size, block size, fan-out and domain.
    """
    if not comparable(have, want):
        raise InvalidRequest("disks of different sizes, block sizes or domains cannot be compared by their manifests")
    top = geometry_of(want).levels - 1
    yield from _differing(geometry_of(want), read, [(0, have.root, want.root)], top)


def comparable(have: StoredDisk, want: StoredDisk) -> bool:
    """Return whether equal ids in both manifests mean equal content at the same place."""
    return (have.size_bytes, have.block_bytes, have.fan_out, have.domain) == (
        want.size_bytes,
        want.block_bytes,
        want.fan_out,
        want.domain,
    )


def _differing(
    geometry: Geometry, read: NodeReader, pairs: Sequence[tuple[int, BlockRef | None, BlockRef | None]], level: int
) -> Iterator[tuple[int, BlockRef | None]]:
    """Walk nodes of a level, given as (index, of have, of want); level -1 are the blocks themselves."""
    unequal = [(index, old, new) for index, old, new in pairs if _id(old) != _id(new)]
    if level < 0:
        yield from ((block, new) for block, _old, new in unequal)
        return
    for portion in _portions(geometry, unequal):
        wanted = [
            (ref, level, geometry.slots(level, index)) for index, *both in portion for ref in both if ref is not None
        ]
        nodes = iter(read(wanted))
        for index, old, new in portion:
            empty: Children = [None] * geometry.slots(level, index)
            before = empty if old is None else next(nodes)
            after = empty if new is None else next(nodes)
            first = index * geometry.fan_out
            children = [(first + slot, *both) for slot, both in enumerate(zip(before, after, strict=True))]
            yield from _differing(geometry, read, children, level - 1)


def _id(ref: BlockRef | None) -> bytes | None:
    return None if ref is None else ref.id


Runs: TypeAlias = Sequence[tuple[int, int]]
"""Blocks as (first, count), ascending and apart from each other."""


def walk_runs(disk: StoredDisk, runs: Runs, read: NodeReader) -> Iterator[tuple[int, int, BlockRef | None]]:
    """Yield what the runs hold, ascending and without a gap: (block, 1, reference), or (first, count, None) for zeros.

    Only nodes above blocks of the runs are read. Raises InvalidRequest for runs that are no such list.
    """
    ends = [first + count for first, count in runs]
    starts = [first for first, _count in runs]
    in_order = all(start >= end for start, end in zip(starts, [0, *ends], strict=False))
    if not in_order or any(count <= 0 for _first, count in runs) or (ends and ends[-1] > disk.blocks):
        raise InvalidRequest("runs of blocks that are out of order, empty, or beyond the end of the disk")
    present = _within(disk, read, starts, ends)
    following = next(present, None)
    for first, end in zip(starts, ends, strict=True):
        place = first
        while place < end:
            if following is None or following[0] >= end:
                yield place, end - place, None
                break
            block, ref = following
            if block > place:
                yield place, block - place, None
            yield block, 1, ref
            place = block + 1
            following = next(present, None)


def _within(
    disk: StoredDisk, read: NodeReader, starts: Sequence[int], ends: Sequence[int]
) -> Iterator[tuple[int, BlockRef]]:
    """Yield (block, reference) of the blocks between the starts and ends that are not zero, ascending."""
    if disk.root is None or not starts:
        return
    geometry = geometry_of(disk)

    def touched(first: int, blocks: int) -> bool:
        place = bisect_right(starts, first + blocks - 1) - 1  # the last run that begins before the end
        return place >= 0 and ends[place] > first

    def below(children: Children, level: int, index: int) -> Iterator[tuple[int, BlockRef]]:
        first, span = index * geometry.fan_out, geometry.span(level) // geometry.fan_out
        present = [
            (first + slot, child)
            for slot, child in enumerate(children)
            if child is not None and touched((first + slot) * span, span)
        ]
        if level == 0:
            yield from present
            return
        for portion in _portions(geometry, present):
            nodes = read([(child, level - 1, geometry.slots(level - 1, place)) for place, child in portion])
            for (place, _child), grandchildren in zip(portion, nodes, strict=True):
                yield from below(grandchildren, level - 1, place)

    top = geometry.levels - 1
    (root,) = read([(disk.root, top, geometry.slots(top, 0))])
    yield from below(root, top, 0)


class _Open:
    """A node on the path to the present block: its children, and whether they differ from what is stored."""

    __slots__ = ("changed", "children", "index")

    def __init__(self, index: int, children: Children) -> None:
        self.index = index
        self.children = children
        self.changed = False


class ManifestBuilder:
    """Writes a manifest from ascending changes to a base; holds one node of each level, whatever the disk's size.

    ``read`` reads a node of the base, ``store`` stores a new node and returns where. For one thread.
    """

    def __init__(
        self,
        geometry: Geometry,
        base: BlockRef | None,
        *,
        read: NodeReader,
        store: Callable[[bytes], BlockRef],
    ) -> None:
        self._geometry = geometry
        self._read = read
        self._store = store
        self._root = base
        self._levels = geometry.levels
        # Open nodes from the root (first) to the leaf (last); fewer while no leaf is open.
        self._path: list[_Open] = []
        self._next = 0

    def set(self, block: int, ref: BlockRef | None) -> None:
        """Name one block's content; raises InvalidRequest for a block out of order or beyond the end."""
        self._advance(block, 1)
        self._set_child(block, 0, ref)

    def set_zero(self, first: int, count: int) -> None:
        """Name a run of blocks zero, dropping whole subtrees; the work grows with the tree's depth, not the run."""
        if count <= 0:
            return
        self._advance(first, count)
        end = first + count
        while first < end:
            level = 0
            # Climb while the next larger subtree begins here and ends within the run (or with the disk).
            while level < self._levels:
                span = self._geometry.span(level)
                if first % span or min(first + span, self._geometry.blocks) > end:
                    break
                level += 1
            if level == self._levels:
                self._path.clear()
                self._root = None
                return
            self._set_child(first, level, None)
            first += self._geometry.fan_out**level

    def finish(self) -> BlockRef | None:
        """Store what is open and return the root, or None for a disk of zeros."""
        self._close_below(0)
        return self._root

    def _advance(self, first: int, count: int) -> None:
        if first < self._next or first + count > self._geometry.blocks:
            raise InvalidRequest(
                f"block {first} (+{count}) is out of order or beyond the disk's {self._geometry.blocks} blocks"
            )
        self._next = first + count

    def _set_child(self, block: int, level: int, ref: BlockRef | None) -> None:
        """Set the child that covers ``block`` in the node of that level (whose children are of the level below)."""
        if ref is None and self._zero_already(block, level):
            return
        depth = self._levels - 1 - level
        self._open_path(block, depth)
        node = self._path[depth]
        slot = block // self._geometry.fan_out**level % self._geometry.fan_out
        if node.children[slot] != ref:
            node.children[slot] = ref
            node.changed = True

    def _zero_already(self, block: int, level: int) -> bool:
        """Whether an open node (or a missing root) shows that the subtree is zero, without opening any more nodes."""
        if not self._path:
            return self._root is None
        for depth, node in enumerate(self._path):
            at = self._levels - 1 - depth
            if at < level or node.index != block // self._geometry.span(at):
                return False
            slot = block // self._geometry.fan_out**at % self._geometry.fan_out
            below_open = (
                depth + 1 < len(self._path) and self._path[depth + 1].index == block // self._geometry.fan_out**at
            )
            if node.children[slot] is None and not below_open:
                return True
        return False

    def _open_path(self, block: int, depth: int) -> None:
        """Make the nodes from the root to ``depth`` those that cover the block, and close what lies elsewhere."""
        for place in range(depth + 1):
            level = self._levels - 1 - place
            index = block // self._geometry.span(level)
            if place < len(self._path):
                if self._path[place].index == index:
                    continue
                self._close_below(place)
            self._path.append(self._load(level, index))
        self._close_below(depth + 1)

    def _load(self, level: int, index: int) -> _Open:
        ref = self._root if not self._path else self._path[-1].children[index % self._geometry.fan_out]
        slots = self._geometry.slots(level, index)
        if ref is None:
            return _Open(index, [None] * slots)
        (children,) = self._read([(ref, level, slots)])
        return _Open(index, children)

    def _close_below(self, depth: int) -> None:
        while len(self._path) > depth:
            node = self._path.pop()
            if not node.changed:
                continue
            level = self._levels - 1 - len(self._path)
            ref = (
                self._store(encode_node(level, node.children))
                if any(child is not None for child in node.children)
                else None
            )
            if not self._path:
                self._root = ref
                continue
            parent = self._path[-1]
            slot = node.index % self._geometry.fan_out
            if parent.children[slot] != ref:
                parent.children[slot] = ref
                parent.changed = True
