"""What points reach in packs: found by walking manifests, in bounded memory.

Each node is opened once, however many points share it. What it names goes into a file, by pack; then one part of the
packs after the other is looked at, so that memory holds the frames of one part only. A frame that was moved counts
where it lies now; of several copies everybody takes the same one, so that of two prunes neither deletes what the other
relies on.

What cannot be read may reach anything that was there when its point was put. Points are walked in the order in which
they were put, so a node that cannot be read is met with the first point that reaches it.
"""

from __future__ import annotations

import itertools
import struct
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from vmkeep.errors import IntegrityError, ObjectMissing, PermissionRefused, StoreError, VmkeepError
from vmkeep.filesystem import file_error
from vmkeep.repository.fetch import describe, fetch_frames, refuse_oversize
from vmkeep.repository.forwards import Forwards, frame_key
from vmkeep.repository.layout import (
    BLOCK_BYTES_LIMIT,
    ID_BYTES,
    NODE_BYTES_LIMIT,
    FrameKind,
    pack_name,
    sealed_bytes_limit,
)
from vmkeep.repository.manifest import NodeRows, geometry_of, parse_node
from vmkeep.repository.record import BlockRef, PointRecord
from vmkeep.repository.seal import Sealer
from vmkeep.repository.store import ObjectStat, ObjectStore
from vmkeep.values import dataclass

_PARTS: Final = 256
_BUFFER_BYTES: Final = 32 * 1024
_SET_BYTES: Final = 2 * 1024 * 1024
"""Of records that are made unique at a time: as tuples they take some twenty times as much."""
_LEAVES_AT_ONCE: Final = 1024
_NODES_AT_ONCE: Final = 64
"""Of nodes above leaves: each may have 32 others wait, or more."""
_NODE_FRAME_BYTES: Final = sealed_bytes_limit(NODE_BYTES_LIMIT)
_BLOCK_FRAME_BYTES: Final = sealed_bytes_limit(BLOCK_BYTES_LIMIT)
_PLACE: Final = struct.Struct("<III")
_MOVED: Final = struct.Struct("<III9s")
DATA, NODES = 1, 2
"""What a pack was seen to hold."""
_UNREAD: Final = (IntegrityError, StoreError, PermissionRefused)


class Packs:
    """The packs of a repository by numbers, which take less memory than their names; with those that are missed."""

    def __init__(self, listed: Iterable[tuple[bytes, ObjectStat]]) -> None:
        self.numbers: dict[bytes, int] = {}
        self.names: list[bytes] = []
        self.sizes = array("Q")
        self.put_at = array("d")
        self.kinds = bytearray()
        for pack, item in listed:
            self._add(pack, item.size_bytes, item.modified.timestamp())
        self.listed = len(self.names)
        """Of these numbers the packs are there; greater ones are named and were not listed."""

    def __len__(self) -> int:
        return len(self.names)

    def number(self, pack: bytes) -> int:
        """Return the number of a pack, also of one that is not there."""
        number = self.numbers.get(pack)
        return self._add(pack, 0, 0.0) if number is None else number

    def _add(self, pack: bytes, size_bytes: int, put_at: float) -> int:
        number = self.numbers[pack] = len(self.names)
        self.names.append(pack)
        self.sizes.append(size_bytes)
        self.put_at.append(put_at)
        self.kinds.append(0)
        return number


class _Records:
    """Records of one size that begin with a pack's number, in a file without a name. Each walk's can be told apart."""

    def __init__(self, directory: Path, record: struct.Struct) -> None:
        self._record = record
        self._buffers = [bytearray() for _ in range(_PARTS)]
        self._segments: list[list[tuple[int, int, int]]] = [[] for _ in range(_PARTS)]
        self._end = 0
        self._directory = directory
        self.walk = 0
        try:
            self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  closed with this
        except OSError as error:
            raise file_error(error, directory, "written") from error

    def add(self, number: int, record: bytes) -> None:
        """Add a record of that pack, or several."""
        buffer = self._buffers[number % _PARTS]
        buffer += record
        if len(buffer) >= _BUFFER_BYTES:
            self._flush(number % _PARTS)

    def next_walk(self) -> None:
        for part in range(_PARTS):
            self._flush(part)
        self.walk += 1

    def unique(self, since: int = 0) -> Iterator[set[tuple[Any, ...]]]:
        """Yield the records of the walks from ``since`` on, each once, in sets that have all of a pack together."""
        for part in range(_PARTS):
            self._flush(part)
            segments = [(at, length) for walk, at, length in self._segments[part] if walk >= since]
            passes = -(-sum(length for _, length in segments) // _SET_BYTES)
            for turn in range(passes):
                found: set[tuple[Any, ...]] = set()
                for at, length in segments:
                    rows = self._record.iter_unpack(self._read(at, length))
                    found.update(row for row in rows if row[0] // _PARTS % passes == turn)
                yield found

    def close(self) -> None:
        self._file.close()

    def _flush(self, part: int) -> None:
        buffer = self._buffers[part]
        if not buffer:
            return
        try:
            self._file.seek(self._end)
            self._file.write(buffer)
        except OSError as error:
            raise file_error(error, self._directory, "written") from error
        self._segments[part].append((self.walk, self._end, len(buffer)))
        self._end += len(buffer)
        buffer.clear()

    def _read(self, at: int, length: int) -> bytes:
        try:
            self._file.seek(at)
            return self._file.read(length)
        except OSError as error:
            raise file_error(error, self._directory, "read") from error


@dataclass(frozen=True, slots=True)
class Live:
    """What is reached of each pack, by its number: bytes of frames, and their number."""

    size_bytes: array[int]
    frames: array[int]


class Reach:
    """What the points reach that were walked so far. For one thread.

    ``problems`` are objects that could not be read, with why. ``kept_until`` is a time of the store's (seconds): what
    was put until then may be reached by something that could not be read.
    """

    def __init__(
        self,
        store: ObjectStore,
        sealer: Sealer,
        forwards: Forwards,
        packs: Packs,
        directory: Path,
        *,
        advance: Callable[[int], None] = lambda _nodes: None,
    ) -> None:
        """``directory`` takes what memory cannot; ``advance`` is told how many nodes were read."""
        self.packs = packs
        self.problems: dict[str, str] = {}
        self.kept_until = 0.0
        self.forwarded: set[bytes] = set()
        """Packs that were moved and that nodes still name."""
        self._store = store
        self._sealer = sealer
        self._forwards = forwards
        self._advance = advance
        self._places = _Records(directory, _PLACE)
        self._moved = _Records(directory, _MOVED)
        self._resolved = 0
        self._nodes = 0
        # One bit for 64 bytes of a pack: no frame is shorter, so no two begin in the same ones.
        self._visited: dict[bytes, bytearray] = {}

    @property
    def walks(self) -> int:
        return self._places.walk

    def close(self) -> None:
        self._places.close()
        self._moved.close()

    def walk(self, record: PointRecord, put_at: float) -> None:
        """Walk what a point reaches and no earlier one did. ``put_at``: when the store took the point (seconds)."""
        waiting: list[list[BlockRef]] = []
        for disk in record.disks:
            if disk.stored.root is not None:
                level = geometry_of(disk.stored).levels - 1
                waiting += [[] for _ in range(level + 1 - len(waiting))]
                self._want(waiting[level], disk.stored.root)
        while any(waiting):
            # The lowest first, so that few wait.
            level = next(number for number, refs in enumerate(waiting) if refs)
            most = _NODES_AT_ONCE if level else _LEAVES_AT_ONCE
            portion = waiting[level][-most:]
            del waiting[level][-most:]
            portion.sort(key=lambda ref: (ref.pack, ref.offset))
            for rows in self._opened(portion, level, put_at):
                if level == 0:
                    self._note_blocks(rows)
                else:
                    for ref in _children(rows):
                        self._want(waiting[level - 1], ref)
            self._nodes += len(portion)
            self._advance(self._nodes)

    def next_walk(self) -> None:
        """Let what is walked from now on be told apart from what was walked before."""
        self._resolve()
        self._places.next_walk()
        self._moved.next_walk()
        self._resolved = self.walks

    def live(self, since: int = 0) -> Live:
        """Return what the walks from ``since`` on reach; a pack that is reached and not there becomes a problem."""
        self._resolve()
        found = Live(array("Q", bytes(8 * len(self.packs))), array("I", bytes(4 * len(self.packs))))
        for places in self._places.unique(since):
            for number, _offset, length in places:
                found.size_bytes[number] += length
                found.frames[number] += 1
        for number in range(self.packs.listed, len(self.packs)):
            if found.frames[number]:
                self.problems.setdefault(pack_name(self.packs.names[number]), "it is not in the repository")
        return found

    def offsets(self, numbers: set[int]) -> dict[int, list[int]]:
        """Return where the frames begin that are reached in some packs, ascending."""
        found: dict[int, array[int]] = {number: array("I") for number in numbers}
        for places in self._places.unique():
            for number, offset, _length in places:
                if number in found:
                    found[number].append(offset)
        return {number: sorted(set(offsets)) for number, offsets in found.items()}

    def keep_until(self, put_at: float) -> None:
        self.kept_until = max(self.kept_until, put_at)

    def _want(self, waiting: list[BlockRef], ref: BlockRef) -> None:
        """Let a node be opened, unless it was met before."""
        bits = self._visited.setdefault(ref.pack, bytearray())
        place, bit = ref.offset >> 9, 1 << (ref.offset >> 6 & 7)
        if place >= len(bits):
            bits.extend(bytes(place + 1 - len(bits)))
        if not bits[place] & bit:
            bits[place] |= bit
            waiting.append(ref)

    def _opened(self, refs: Sequence[BlockRef], level: int, put_at: float) -> Iterator[NodeRows]:
        places = {ref: self._place(ref) for ref in refs}
        together = [place for place in places.values() if place.length <= _NODE_FRAME_BYTES]
        try:
            frames = dict(zip(together, fetch_frames(self._store, together), strict=True))
        except _UNREAD:
            frames = {}
        for ref, place in places.items():
            try:
                found, rows = self._node(ref, place, frames.get(place), level)
            except _UNREAD as error:
                self.problems.setdefault(describe(ref), error.message)
                self.keep_until(put_at)
                continue
            self._note(FrameKind.NODE, found)
            yield rows

    def _place(self, ref: BlockRef) -> BlockRef:
        if ref.pack not in self._forwards.targets:
            return ref
        self.forwarded.add(ref.pack)
        return next(self._forwards.copies(self._sealer, _key(ref), ref.pack), ref)

    def _node(
        self, ref: BlockRef, place: BlockRef, fetched: memoryview | None, level: int
    ) -> tuple[BlockRef, NodeRows]:
        """Open a node, of what was fetched or else alone; return where it was read, and its rows."""
        error: VmkeepError | None = None
        if fetched is not None:
            try:
                return place, self._rows(ref, place, fetched, level)
            except IntegrityError:
                self._store.forget_cached(pack_name(place.pack))  # what was read is wrong; the second time decides
        for other in itertools.chain(self._forwards.copies(self._sealer, _key(ref), ref.pack), [ref]):
            try:
                refuse_oversize(other, _NODE_FRAME_BYTES)
                return other, self._rows(ref, other, fetch_frames(self._store, [other])[0], level)
            except ObjectMissing as failure:
                error = failure
            except _UNREAD as failure:
                error = failure
                self._forwards.unread_packs[other.pack] = failure
        assert error is not None
        raise error

    def _rows(self, ref: BlockRef, place: BlockRef, frame: memoryview, level: int) -> NodeRows:
        rows = parse_node(self._sealer.open(FrameKind.NODE, ref.id, frame, describe(place)), describe(place))
        if rows.level != level:
            raise IntegrityError(f"{describe(place)} is not the manifest node that belongs there")
        return rows

    def _note(self, kind: FrameKind, place: BlockRef) -> None:
        number = self.packs.number(place.pack)
        self.packs.kinds[number] |= NODES if kind is FrameKind.NODE else DATA
        self._places.add(number, _PLACE.pack(number, place.offset, place.length))

    def _note_blocks(self, rows: NodeRows) -> None:
        """Note what a leaf names: by place, or by id as well where its pack was moved."""
        numbers = [self.packs.number(pack) for pack in rows.packs]
        moved = [pack in self._forwards.targets for pack in rows.packs]
        for number in numbers:
            self.packs.kinds[number] |= DATA
        self.forwarded.update(pack for pack, was in zip(rows.packs, moved, strict=True) if was)
        if len(numbers) == 1 and not moved[0]:  # most leaves of a full point: all at once
            places = itertools.chain.from_iterable(
                zip(itertools.repeat(numbers[0]), rows.offsets, rows.lengths, strict=False)
            )
            self._places.add(numbers[0], struct.pack(f"<{3 * len(rows.offsets)}I", *places))
            return
        for child, pack in enumerate(rows.pack_of):
            number, offset, length = numbers[pack], rows.offsets[child], rows.lengths[child]
            if moved[pack]:
                key = frame_key(FrameKind.BLOCK, rows.ids[child * ID_BYTES : child * ID_BYTES + ID_BYTES])
                self._moved.add(number, _MOVED.pack(number, offset, length, key))
            else:
                self._places.add(number, _PLACE.pack(number, offset, length))

    def _resolve(self) -> None:
        """Find where the blocks lie that were named in packs that were moved."""
        if self._resolved > self.walks:
            return
        for records in self._moved.unique(self.walks):
            for number, offset, length, key in sorted(records):
                self._resolve_block(number, offset, length, key)
        self._resolved = self.walks + 1

    def _resolve_block(self, number: int, offset: int, length: int, key: bytes) -> None:
        copies = list(self._forwards.copies(self._sealer, key, self.packs.names[number]))
        alone = len(copies) == 1 and number >= self.packs.listed
        for place in copies:
            # Whichever is taken, the others may be deleted: so it is proved, whatever an index says.
            if alone or self._is_sound(place):
                self._note(FrameKind.BLOCK, place)
                return
        self._places.add(number, _PLACE.pack(number, offset, length))

    def _is_sound(self, place: BlockRef) -> bool:
        """Return whether a block is where it is said to be; a pack in which it is not is kept, and not relied on."""
        try:
            refuse_oversize(place, _BLOCK_FRAME_BYTES)
            self._sealer.open(FrameKind.BLOCK, place.id, fetch_frames(self._store, [place])[0], describe(place))
        except ObjectMissing:
            return False
        except _UNREAD as error:
            self._forwards.unread_packs[place.pack] = error
            return False
        return True


def _key(ref: BlockRef) -> bytes:
    return frame_key(FrameKind.NODE, ref.id)


def _children(rows: NodeRows) -> Iterator[BlockRef]:
    for child, pack in enumerate(rows.pack_of):
        id_ = rows.ids[child * ID_BYTES : (child + 1) * ID_BYTES]
        yield BlockRef(id_, rows.packs[pack], rows.offsets[child], rows.lengths[child])
