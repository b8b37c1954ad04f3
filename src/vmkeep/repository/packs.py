"""Packs: filling them from many threads, putting them from a few, and reading their indexes.

A worker reserves its counter and its place in the pack under the lock, once it knows the sealed length, and seals
outside it. A full pack goes to the uploaders when the last of its frames is in place. The number of buffers bounds
the memory, and a failed upload wakes every thread that waits for one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from mmap import mmap
from typing import NamedTuple, TypeAlias

from vmkeep.errors import ObjectDamaged, StoreError, VmkeepError
from vmkeep.filesystem import aligned_buffer, fault_error
from vmkeep.repository.layout import (
    FRAME_OVERHEAD_BYTES,
    NAME_BYTES,
    PACK_HEADER_BYTES,
    TRAILER_BYTES,
    Buffer,
    Codec,
    FrameKind,
    PackEntry,
    PackHeader,
    PackKind,
    pack_index,
    pack_name,
    pack_trailer,
    parse_index,
    parse_trailer,
)
from vmkeep.repository.record import BlockRef
from vmkeep.repository.seal import Sealer, SealingKey, frame_bytes_limit
from vmkeep.repository.store import ObjectStore
from vmkeep.threads import carried

DATA_PACK_BYTES = 16 * 1024 * 1024
METADATA_PACK_BYTES = 4 * 1024 * 1024
# A pack of tiny frames (a block of one repeated byte takes about 100 bytes) is closed by their number instead.
PACK_ENTRIES_LIMIT = 65536

# Freeing one allocation of this size makes glibc keep freed memory below it (its thresholds follow what is freed).
# Otherwise the threads that seal give pages back and fault them in again for every block: 440 MB/s instead of 1,300
# for random data with two threads, at the same peak of memory. Untouched zero pages cost nothing.
_KEPT_BYTES = 4 * 1024 * 1024

Stored: TypeAlias = Callable[[bytes, Sequence[PackEntry], int], None]
"""Told of a pack that is durable: pack id, its frames, its size in bytes."""


_SYNC_LAG_PACKS = 8


class _Block(NamedTuple):
    """A block on its way into a pack: compressed, not yet sealed."""

    id: bytes
    plain_bytes: int
    codec: Codec
    body: Buffer

    @property
    def sealed_bytes(self) -> int:
        return len(self.body) + FRAME_OVERHEAD_BYTES


class _Written(NamedTuple):
    """A pack that the store has, not known to be durable yet."""

    pack: bytes
    entries: Sequence[PackEntry]
    size_bytes: int


class _Filling:
    """A pack that is being filled."""

    __slots__ = ("buffer", "closed", "counter", "entries", "header", "key", "offset", "pending")

    def __init__(self, header: PackHeader, key: SealingKey, buffer: mmap) -> None:
        self.header = header
        self.key = key
        self.buffer = buffer
        self.entries: list[PackEntry] = []
        self.offset = PACK_HEADER_BYTES
        self.counter = 0
        self.pending = 0
        self.closed = False
        buffer[:PACK_HEADER_BYTES] = header.pack_bytes()

    def grow(self, size_bytes: int) -> None:
        """Make room for a first frame that is larger than a pack."""
        larger = aligned_buffer(size_bytes)
        larger[:PACK_HEADER_BYTES] = self.buffer[:PACK_HEADER_BYTES]
        self.buffer = larger


class Packer:
    """Takes plain blocks of one kind from any number of threads and stores them in packs."""

    def __init__(
        self,
        store: ObjectStore,
        sealer: Sealer,
        kind: PackKind,
        *,
        pack_bytes: int,
        buffers: int,
        uploaders: int,
        stored: Stored,
    ) -> None:
        bytes(_KEPT_BYTES)
        self._store = store
        self._sealer = sealer
        self._kind = kind
        self._frame_kind = FrameKind.BLOCK if kind is PackKind.DATA else FrameKind.NODE
        self._pack_bytes = pack_bytes
        self._told = stored
        self._changed = threading.Condition()
        self._free: list[mmap | None] = [None] * buffers
        self._buffers = buffers
        self._current: _Filling | None = None
        self._full: deque[_Filling] = deque()
        self._written: deque[_Written] = deque()
        self._failure: BaseException | None = None
        self._ended = False
        self._threads = [
            threading.Thread(
                target=carried(self._upload_all), name=f"vmkeep-{kind.name.lower()}-upload-{number}", daemon=True
            )
            for number in range(uploaders)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, blocks: Mapping[bytes, Buffer]) -> dict[bytes, BlockRef]:
        """Seal blocks, given by id, into packs and return where; raises the error of any upload that failed before."""
        bodies = self._sealer.compress(list(blocks.values()))
        waiting = [
            _Block(id_, len(plain), codec, body)
            for (id_, plain), (codec, body) in zip(blocks.items(), bodies, strict=True)
        ]
        refs: dict[bytes, BlockRef] = {}
        while waiting:
            places = self._reserve(waiting)
            reserved, waiting = waiting[: len(places)], waiting[len(places) :]
            self._fill(reserved, places)
            for block, (filling, _, offset) in zip(reserved, places, strict=True):
                refs[block.id] = BlockRef(block.id, filling.header.pack, offset, block.sealed_bytes)
        return refs

    def check(self) -> None:
        """Raise the error of an upload that failed."""
        if self._failure is not None:
            raise self._error(self._failure)

    def flush(self) -> None:
        """Return when every block that was added is durable; raises the error of an upload that failed."""
        with self._changed:
            if self._current is not None:
                self._close(self._current)
            self._changed.wait_for(lambda: self._failure is not None or len(self._free) == self._buffers)
        self.check()
        while (written := self._take_written(keep=0)) is not None:
            self._make_durable(written)

    def end(self, failure: BaseException | None = None) -> None:
        """Stop the uploaders; with a failure, what was not yet handed to the store is dropped."""
        with self._changed:
            if failure is not None and self._failure is None:
                self._failure = failure
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _reserve(self, blocks: Sequence[_Block]) -> list[tuple[_Filling, int, int]]:
        """Return pack, counter and offset for the first of the blocks, as many as there is room for now.

        Waits only for the very first one: a thread that waited while it holds a place in a full pack would keep
        that pack from being uploaded, and with few buffers nobody would go on.
        """
        places: list[tuple[_Filling, int, int]] = []
        with self._changed:
            for block in blocks:
                filling = self._room_for(block, wait=not places)
                if filling is None:
                    break
                places.append((filling, filling.counter, filling.offset))
                filling.entries.append(
                    PackEntry(self._frame_kind, block.id, filling.offset, block.sealed_bytes, block.plain_bytes)
                )
                filling.counter += 1
                filling.offset += block.sealed_bytes
                if filling.offset > len(filling.buffer):  # a frame larger than a pack, alone in its own
                    filling.grow(filling.offset)
                filling.pending += 1
        return places

    def _room_for(self, block: _Block, *, wait: bool) -> _Filling | None:
        while True:
            self.check()
            if self._ended:
                raise StoreError("this point was committed or given up already")
            filling = self._current
            if filling is not None:
                fits = filling.offset + block.sealed_bytes <= self._pack_bytes
                # A frame larger than a pack gets one of its own.
                if not filling.entries or (fits and len(filling.entries) < PACK_ENTRIES_LIMIT):
                    return filling
                self._close(filling)
            elif self._free:
                self._current = self._open(self._free.pop())
            elif wait:
                self._changed.wait()
            else:
                return None

    def _fill(self, blocks: Sequence[_Block], places: Sequence[tuple[_Filling, int, int]]) -> None:
        try:
            for block, (filling, counter, offset) in zip(blocks, places, strict=True):
                room = memoryview(filling.buffer)[offset : offset + block.sealed_bytes]
                filling.key.seal_into(
                    self._frame_kind, block.id, block.codec, block.body, block.plain_bytes, counter, room
                )
        except BaseException as error:
            self._fail(error)
            raise
        with self._changed:
            for filling, _, _ in places:
                filling.pending -= 1
                if filling.closed and filling.pending == 0:
                    self._hand_over(filling)

    def _open(self, buffer: mmap | None) -> _Filling:
        key = self._sealer.new_key()
        header = PackHeader(self._kind, key.key_id, self._sealer.domain.id, self._sealer.random(NAME_BYTES))
        return _Filling(header, key, buffer if buffer is not None else aligned_buffer(self._pack_bytes))

    def _close(self, filling: _Filling) -> None:
        filling.closed = True
        self._current = None
        if filling.pending == 0:
            self._hand_over(filling)

    def _hand_over(self, filling: _Filling) -> None:
        self._full.append(filling)
        self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()

    @staticmethod
    def _error(failure: BaseException) -> BaseException:
        # A new object for each thread that meets it: an exception raised twice gathers the tracebacks of both.
        if isinstance(failure, VmkeepError):
            again = type(failure)(
                failure.message, vm=failure.vm, disk=failure.disk, path=failure.path, hint=failure.hint
            )
        elif isinstance(failure, OSError | MemoryError):
            again = fault_error(failure)
        else:
            again = StoreError(f"a pack could not be stored: {failure}")
        again.__cause__ = failure
        return again

    def _upload_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._full or self._ended or self._failure is not None)
                if self._failure is not None or not self._full:
                    return
                filling = self._full.popleft()
            try:
                self._upload(filling)
            except BaseException as error:  # whatever it is, the threads that wait for this pack must hear of it
                self._fail(error)
                return

    def _upload(self, filling: _Filling) -> None:
        tail = pack_tail(self._sealer, filling.key, filling.header, filling.entries, filling.offset, filling.counter)
        name = pack_name(filling.header.pack)
        # Sliced and not released early, as the store may still hold it when it fails.
        self._store.put_pack(name, [memoryview(filling.buffer)[: filling.offset], tail])
        with self._changed:
            self._written.append(_Written(filling.header.pack, filling.entries, filling.offset + len(tail)))
            self._free.append(filling.buffer if len(filling.buffer) == self._pack_bytes else None)
            self._changed.notify_all()
        # An fsync right after the write waits for the whole pack to reach the disk; some packs later the kernel
        # has written it by itself, and the fsync has little to wait for.
        written = self._take_written(keep=_SYNC_LAG_PACKS)
        if written is not None:
            self._make_durable(written)

    def _take_written(self, *, keep: int) -> _Written | None:
        with self._changed:
            return self._written.popleft() if len(self._written) > keep else None

    def _make_durable(self, written: _Written) -> None:
        self._store.make_durable(pack_name(written.pack))
        self._told(written.pack, written.entries, written.size_bytes)


def pack_tail(
    sealer: Sealer, key: SealingKey, header: PackHeader, entries: Sequence[PackEntry], offset: int, counter: int
) -> bytes:
    """Return what ends a pack: its index, sealed with the next ``counter`` of the pack's key, and the trailer.

    ``offset`` is where the frames end.
    """
    index = pack_index(entries)
    id_ = sealer.id_of(FrameKind.PACK_INDEX, header.pack_bytes())
    ((codec, body),) = sealer.compress([index])
    sealed = key.seal(FrameKind.PACK_INDEX, id_, codec, body, len(index), counter)
    return sealed + pack_trailer(offset, len(sealed))


def read_index(store: ObjectStore, sealer: Sealer, pack: bytes, size_bytes: int) -> tuple[PackEntry, ...]:
    """Return a pack's frames from its index, without reading them; raises ObjectDamaged or ObjectMissing."""
    name = pack_name(pack)
    smallest = PACK_HEADER_BYTES + TRAILER_BYTES
    header, trailer = (
        store.ranges(name, [(0, PACK_HEADER_BYTES), (size_bytes - TRAILER_BYTES, TRAILER_BYTES)])
        if size_bytes >= smallest
        else (memoryview(b""), memoryview(b""))
    )
    start, length = parse_trailer(bytes(trailer), size_bytes, pack)
    if length > frame_bytes_limit(FrameKind.PACK_INDEX):
        raise ObjectDamaged(f"the index of {name} has {length} bytes, more than it can have", path=name)
    (frame,) = store.ranges(name, [(start, length)]) if length else (memoryview(b""),)
    return open_index(sealer, pack, bytes(header), frame, start)


def open_index(
    sealer: Sealer, pack: bytes, header: bytes, frame: bytes | memoryview, start: int
) -> tuple[PackEntry, ...]:
    """Return the rows of a sealed index, which is bound to the exact bytes of the pack's header."""
    where = pack_name(pack)
    parsed = PackHeader.parse(header, pack)
    id_ = sealer.id_of_header(header, parsed.domain, where)
    return parse_index(sealer.open_index(id_, frame, f"the index of {where}"), start, pack)
