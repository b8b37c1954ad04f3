"""Two block-status streams of one disk, merged into the ranges a point must record.

QEMU answers two questions about an export: what is dirty since the base (``qemu:dirty-bitmap:NAME``, flag 1)
and what is allocated (``base:allocation``, flag 1 a hole, flag 2 reads as zero). The answers are cut at
different places, so they are walked side by side, each with a position of its own.

Dirty means dirty. A range that was zeroed or discarded since the base is dirty *and* zero; it comes out as
ZERO and has to be recorded, because the base still holds the old data. A tool that reads only "dirty and
allocated" restores what the guest had erased.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

DIRTY: Final = 1
"""NBD_STATE_DIRTY of ``qemu:dirty-bitmap``."""

HOLE: Final = 1
"""NBD_STATE_HOLE of ``base:allocation``: not allocated; says nothing about what is read there."""

READS_AS_ZERO: Final = 2
"""NBD_STATE_ZERO of ``base:allocation``."""


Reply = tuple[int, int, int]
"""(start, length, flags) as a block-status reply gives it, in bytes."""


class ExtentError(ValueError):
    """A stream of ranges that does not describe the whole disk, once, in order."""


class Kind(IntEnum):
    """What has to be done for a range that changed."""

    DATA = 1
    """Read it."""
    ZERO = 2
    """Record that it is zero; nothing to read."""


# Tuples and not dataclasses: a map can have millions of ranges, and a tuple is made four times as fast.
class Extent(NamedTuple):
    """A range of a disk that changed since the base, in bytes."""

    start: int
    length: int
    kind: Kind


def everything_dirty(size_bytes: int) -> Iterator[Reply]:
    """Return the dirty stream of a disk that has no base: one reply over all of it."""
    if size_bytes:
        yield 0, size_bytes, DIRTY


def either_dirty(first: Iterable[Reply], second: Iterable[Reply], size_bytes: int) -> Iterator[Reply]:
    """Yield a dirty stream in which is dirty what is dirty in one of two, as an overlay and the image below have it.

    Both must each describe 0 to ``size_bytes``, as for ``merge``. Raises ExtentError. Memory does not grow.
    """
    first_replies, second_replies = iter(first), iter(second)
    first_end = second_end = position = 0
    first_flags = second_flags = 0
    while position < size_bytes:
        if first_end == position:
            first_end, first_flags = _next_reply("dirty", first_replies, position, size_bytes)
        if second_end == position:
            second_end, second_flags = _next_reply("older dirty", second_replies, position, size_bytes)
        end = min(first_end, second_end)
        yield position, end - position, (first_flags | second_flags) & DIRTY
        position = end
    _refuse_more("dirty", first_replies, size_bytes)
    _refuse_more("older dirty", second_replies, size_bytes)


def merge(dirty: Iterable[Reply], allocation: Iterable[Reply], size_bytes: int) -> Iterator[Extent]:
    """Yield what changed, in order, with neighbours of one kind joined; clean ranges are left out.

    Both streams must each describe 0 to ``size_bytes`` without gap or overlap; how they are cut is free. All
    of these are legal replies of an NBD server for the same 8 units (``D`` dirty, ``Z`` zero, ``.`` neither):

        single        |DDDDDDDD|            one range answers all that was asked
        short         |DDD|DDDDD|           fewer units than asked for; the rest comes with the next request
        long          |DD|DDDDDD|           the last range goes on beyond the end of one request
        consecutive   |DD|DD|....|          neighbours with equal flags are not joined by the server

        dirty         |DDDDDD|..|
        allocation    |..|ZZ|..|ZZ|
        result        |dd|zz|dd|            DATA 0+2, ZERO 2+2, DATA 4+2

    A hole without READS_AS_ZERO is DATA: its content comes from a backing file or is undefined.
    Raises ExtentError for a gap, an overlap, an empty range, and for a stream that ends before or after
    ``size_bytes``. Memory does not grow with the number of ranges.
    """
    dirty_replies, allocation_replies = iter(dirty), iter(allocation)
    dirty_end = allocation_end = position = 0
    dirty_flags = allocation_flags = 0
    pending_start = pending_end = 0
    pending_kind: Kind | None = None
    data, zero = Kind.DATA, Kind.ZERO
    while position < size_bytes:
        if dirty_end == position:
            dirty_end, dirty_flags = _next_reply("dirty", dirty_replies, position, size_bytes)
        if allocation_end == position:
            allocation_end, allocation_flags = _next_reply("allocation", allocation_replies, position, size_bytes)
        end = min(dirty_end, allocation_end)
        if dirty_flags & DIRTY:
            kind = zero if allocation_flags & READS_AS_ZERO else data
            if kind is pending_kind and pending_end == position:
                pending_end = end
            else:
                if pending_kind is not None:
                    yield Extent(pending_start, pending_end - pending_start, pending_kind)
                pending_start, pending_end, pending_kind = position, end, kind
        position = end
    if pending_kind is not None:
        yield Extent(pending_start, pending_end - pending_start, pending_kind)
    _refuse_more("dirty", dirty_replies, size_bytes)
    _refuse_more("allocation", allocation_replies, size_bytes)


def _next_reply(stream: str, replies: Iterator[Reply], position: int, size_bytes: int) -> tuple[int, int]:
    reply = next(replies, None)
    if reply is None:
        raise ExtentError(f"the {stream} map ends at byte {position} of {size_bytes}")
    start, length, flags = reply
    if start != position:
        fault = "gap" if start > position else "overlap"
        raise ExtentError(f"{fault} in the {stream} map: a range starts at byte {start}, expected {position}")
    if length <= 0:
        raise ExtentError(f"range of {length} bytes in the {stream} map at byte {start}")
    end = start + length
    if end > size_bytes:
        raise ExtentError(f"the {stream} map goes on to byte {end}; the disk has {size_bytes}")
    return end, flags


def _refuse_more(stream: str, replies: Iterator[Reply], size_bytes: int) -> None:
    if next(replies, None) is not None:
        raise ExtentError(f"the {stream} map goes on after the end of the disk at byte {size_bytes}")
