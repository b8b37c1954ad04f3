"""A variable store in which some variables have other contents, written as EDK2's own driver writes it. No I/O.

What is new goes behind all others, and what it replaces is marked as deleted, so nothing else changes but its state.
Where there is no room left the store is written anew without what does not count, as the firmware does itself (EDK2,
MdeModulePkg/Universal/Variable: ``UpdateVariable`` and ``Reclaim``). Counter, time and key of a header stay those of
the variable that is replaced: a guest's own update, signed with a later time, is taken as before.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

from vmkeep.custody.variables import ADDED, START_ID, Record, StoreLayout, aligned, read_layout
from vmkeep.values import dataclass

_DELETED: Final = 0x3C  # added, then in transition to deleted, then deleted
_STATE_AT: Final = 2
# EDK2's fault tolerant write: a block of records behind the store, each a header and what is written (seen of OVMF
# 2022.11, also of one whose QEMU was killed in between). Bits are 0 where something was done.
_WORKING: Final = uuid.UUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95").bytes_le
_WORKING_HEADER: Final = struct.Struct("<16sI4xQ")  # GUID, checksum, state, bytes of the records
_WRITE_HEADER: Final = struct.Struct("<B3x16s4xQQ")  # state, who, number of records, bytes of private data
_WRITE: Final = struct.Struct("<B7x32x")
_ALLOCATED, _SPARE_IS_WHOLE, _DONE = 0x1, 0x2, 0x4
_BLOCK_BYTES: Final = 4096
_MOST_WRITES: Final = 64
# Monotonic count, time and key index of an authenticated header.
_COUNT_AND_TIME: Final = slice(8, 36)


@dataclass(frozen=True, slots=True, repr=False)
class NewContent:
    """The content that a variable is to have. ``attributes`` are those of one that is not there yet."""

    name: str
    vendor: str
    content: bytes
    attributes: int

    @property
    def key(self) -> bytes:
        """Name and vendor, as ``Variable.key``."""
        return uuid.UUID(self.vendor).bytes_le + self._name

    @property
    def _name(self) -> bytes:
        return (self.name + "\0").encode("utf-16-le")


def rewrite(content: bytes, changes: Sequence[NewContent]) -> bytes | str:
    """Return a store of the same size in which variables have these contents, or a sentence about why there is none."""
    layout = read_layout(content)
    if layout.problem is not None:
        return layout.problem
    if has_unfinished_write(content):
        return "the firmware was stopped while it wrote all of it anew, and would write over it at its next start"
    wanted = {change.key: change for change in changes}
    counting = {record.variable.key: record for record in layout.counting}
    made = [
        _record(layout, content, change, counting.get(key))
        for key, change in wanted.items()
        if key not in counting or counting[key].variable.content != change.content
    ]
    if not made:
        return content
    changed = {record.key for record in made}
    stored = bytearray(content)
    place = layout.blank
    if place + sum(aligned(len(each.content)) for each in made) > layout.end:
        place = _reclaim(stored, layout, changed)
        if place + sum(aligned(len(each.content)) for each in made) > layout.end:
            return "its variables would need more room than the store has"
    else:
        for record in layout.records:
            if record.variable.key in changed:
                stored[record.start + _STATE_AT] = _DELETED
    for each in made:
        stored[place : place + len(each.content)] = each.content
        place = aligned(place + len(each.content))
    return bytes(stored)


def has_unfinished_write(content: bytes) -> bool:
    """Return whether the firmware goes on at its next start with a write over the store that was cut off."""
    layout = read_layout(content)
    for block in range(-(-layout.end // _BLOCK_BYTES) * _BLOCK_BYTES, len(content) - _BLOCK_BYTES + 1, _BLOCK_BYTES):
        guid, _, queue_bytes = _WORKING_HEADER.unpack_from(content, block)
        if guid == _WORKING:
            place = block + _WORKING_HEADER.size
            return any(_unfinished(content, place, min(place + queue_bytes, len(content))))
    return False


def _unfinished(content: bytes, place: int, end: int) -> Iterator[bool]:
    """Yield of each write of which there is a record whether its copy is whole and its end was not reached."""
    while place + _WRITE_HEADER.size + _WRITE.size <= end:
        state, _, writes, private_bytes = _WRITE_HEADER.unpack_from(content, place)
        if state & _ALLOCATED or not 0 < writes <= _MOST_WRITES or private_bytes > end - place:
            return
        place += _WRITE_HEADER.size
        size = _WRITE.size + private_bytes
        for start in range(place, min(place + writes * size, end - _WRITE.size + 1), size):
            (each,) = _WRITE.unpack_from(content, start)
            yield bool(state & _DONE) and not each & _SPARE_IS_WHOLE and bool(each & _DONE)
        place += writes * size


@dataclass(frozen=True, slots=True, repr=False)
class _Made:
    key: bytes
    content: bytes


def _record(layout: StoreLayout, content: bytes, change: NewContent, before: Record | None) -> _Made:
    """Return a variable with its header, in place of the one that counts."""
    name, vendor = change.key[16:], change.key[:16]
    attributes = change.attributes if before is None else before.variable.attributes
    head = struct.pack("<HBxI", START_ID, ADDED, attributes)
    if layout.authenticated:
        kept = _COUNT_AND_TIME
        head += bytes(28) if before is None else content[before.start + kept.start : before.start + kept.stop]
    head += struct.pack("<II16s", len(name), len(change.content), vendor)
    return _Made(change.key, head + name + change.content)


def _reclaim(stored: bytearray, layout: StoreLayout, without: set[bytes]) -> int:
    """Leave what counts in a store, one behind the other, and not what changes; return where it ends."""
    kept = list(_pieces(bytes(stored), layout, without))
    stored[layout.first : layout.end] = b"\xff" * (layout.end - layout.first)
    place = layout.first
    for piece in kept:
        stored[place : place + len(piece)] = piece
        stored[place + _STATE_AT] = ADDED
        place = aligned(place + len(piece))
    return place


def _pieces(content: bytes, layout: StoreLayout, without: set[bytes]) -> Iterator[bytes]:
    return (content[each.start : each.end] for each in layout.counting if each.variable.key not in without)
