"""Compaction: frames that are still needed, copied as they are out of packs that are mostly waste.

A frame carries its salt and counter, so it is the same in another pack (section 5 of
docs/internals/repository-format.md). Each one is opened before it is copied: the old pack will be deleted, and what was
read wrong must not be all that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from vmkeep.errors import IntegrityError, NoSpace, ObjectDamaged, PermissionRefused, StoreError, VmkeepError
from vmkeep.filesystem import aligned_buffer
from vmkeep.repository.fetch import describe, fetch_frames
from vmkeep.repository.layout import (
    NAME_BYTES,
    PACK_HEADER_BYTES,
    FrameKind,
    PackEntry,
    PackHeader,
    PackKind,
    pack_name,
)
from vmkeep.repository.packs import DATA_PACK_BYTES, METADATA_PACK_BYTES, PACK_ENTRIES_LIMIT, pack_tail, read_index
from vmkeep.repository.record import BlockRef
from vmkeep.repository.seal import Sealer, frame_bytes_limit
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

_READ_BYTES: Final = 8 * 1024 * 1024
_UNREAD: Final = (IntegrityError, StoreError, PermissionRefused)


@dataclass(frozen=True, slots=True)
class Source:
    """A pack to copy from, with the offsets of the frames that are needed."""

    pack: bytes
    size_bytes: int
    offsets: tuple[int, ...]


class Compaction:
    """Copies frames of one kind into new packs. ``own`` are these, with their sizes. For one thread.

    ``moved`` says for each pack whose frames are all copied, and durable, which packs they are in. ``unfit`` are packs
    that stay as they are, with why.
    """

    def __init__(self, store: ObjectStore, sealer: Sealer, kind: PackKind) -> None:
        self._store = store
        self._sealer = sealer
        self._kind = kind
        self._pack_bytes = DATA_PACK_BYTES if kind is PackKind.DATA else METADATA_PACK_BYTES
        self._buffer = aligned_buffer(self._pack_bytes)
        self._header = self._new_header()
        self._entries: list[PackEntry] = []
        self._offset = PACK_HEADER_BYTES
        # Of packs whose last frames are in the pack that is being filled.
        self._waiting: dict[bytes, set[bytes]] = {}
        self.own: dict[bytes, int] = {}
        self.moved: dict[bytes, tuple[bytes, ...]] = {}
        self.unfit: dict[bytes, VmkeepError] = {}

    def copy(self, sources: Iterable[Source], advance: Callable[[int], None]) -> bool:
        """Copy from packs, in that order; return False when there was no room for all. ``advance`` hears of bytes.

        Raises what the store raises for a pack that cannot be written.
        """
        try:
            for source in sources:
                self._copy(source, advance)
            self._put()
        except NoSpace:
            return False
        return True

    def _copy(self, source: Source, advance: Callable[[int], None]) -> None:
        targets: set[bytes] = set()
        frames = self._frames(source)
        while True:
            try:
                found = next(frames, None)
            except _UNREAD as error:
                self.unfit[source.pack] = error
                return
            if found is None:
                break
            self._add(*found)
            targets.add(self._header.pack)
            advance(found[0].length)
        self._waiting[source.pack] = targets

    def _frames(self, source: Source) -> Iterator[tuple[PackEntry, memoryview]]:
        """Yield the frames that are needed of a pack, each proved by its id. Raises what reading raises."""
        entries = {
            entry.offset: entry for entry in read_index(self._store, self._sealer, source.pack, source.size_bytes)
        }
        wanted: dict[bytes, PackEntry] = {}
        for offset in source.offsets:
            entry = entries.get(offset)
            if entry is None or entry.length > frame_bytes_limit(entry.kind) or entry.kind is not self._frame_kind:
                raise ObjectDamaged(f"the index of {pack_name(source.pack)} lacks a frame that a manifest names")
            wanted.setdefault(entry.id, entry)
        for group in _groups(list(wanted.values())):
            refs = [BlockRef(entry.id, source.pack, entry.offset, entry.length) for entry in group]
            for entry, ref, frame in zip(group, refs, fetch_frames(self._store, refs), strict=True):
                self._sealer.open(entry.kind, entry.id, frame, describe(ref))
                yield entry, frame

    @property
    def _frame_kind(self) -> FrameKind:
        return FrameKind.BLOCK if self._kind is PackKind.DATA else FrameKind.NODE

    def _new_header(self) -> PackHeader:
        self._key = self._sealer.new_key()
        return PackHeader(self._kind, self._key.key_id, self._sealer.domain.id, self._sealer.random(NAME_BYTES))

    def _add(self, entry: PackEntry, frame: memoryview) -> None:
        full = self._offset + entry.length > self._pack_bytes or len(self._entries) == PACK_ENTRIES_LIMIT
        if self._entries and full:
            self._put()
        if self._offset + entry.length > len(self._buffer):  # a frame larger than a pack, alone in its own
            self._buffer = aligned_buffer(self._offset + entry.length)
        self._buffer[self._offset : self._offset + entry.length] = bytes(frame)
        self._entries.append(PackEntry(entry.kind, entry.id, self._offset, entry.length, entry.plain_bytes))
        self._offset += entry.length

    def _put(self) -> None:
        """Store the pack that is being filled, durably; raises NoSpace and other errors of the store."""
        if self._entries:
            self._buffer[:PACK_HEADER_BYTES] = self._header.pack_bytes()
            # No frame in it was sealed with its own key.
            tail = pack_tail(self._sealer, self._key, self._header, self._entries, self._offset, 0)
            name = pack_name(self._header.pack)
            try:
                self._store.put_pack(name, [memoryview(self._buffer)[: self._offset], tail])
                self._store.make_durable(name)
            except BaseException:
                with suppress(VmkeepError):
                    self._store.delete(name)  # nothing names it
                raise
            self.own[self._header.pack] = self._offset + len(tail)
            self._header = self._new_header()
            self._entries = []
            self._offset = PACK_HEADER_BYTES
        self._settle()

    def _settle(self) -> None:
        """Count those packs as moved whose frames are all in packs that are stored."""
        for pack, targets in list(self._waiting.items()):
            if targets <= self.own.keys():
                self.moved[pack] = tuple(sorted(targets))
                del self._waiting[pack]


def _groups(entries: Sequence[PackEntry]) -> Iterator[list[PackEntry]]:
    group: list[PackEntry] = []
    size = 0
    for entry in entries:
        if group and size + entry.length > _READ_BYTES:
            yield group
            group, size = [], 0
        group.append(entry)
        size += entry.length
    if group:
        yield group
