"""Writing stored blocks over an image that is there: no more of it than differs, where that can be told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from vmkeep.extents.ranges import READS_AS_ZERO, Reply
from vmkeep.values import dataclass

# Each write is a round trip to qemu-nbd; reads of this size are the fastest of libnbd's binding.
PIECE_BYTES = 1 << 20
_MOST_ZEROS = 1 << 18
_STOP_EVERY = 1 << 12

Piece = tuple[int, int, bytes | None]
"""(start, length, content) in bytes; without content the range is zero."""


class OpenImage(Protocol):
    """An image that is written in place; used by one thread."""

    def read(self, start: int, length: int) -> bytes | bytearray:
        """Return ``length`` bytes from ``start``."""
        ...

    def write(self, start: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes at ``start``."""
        ...

    def zero(self, start: int, length: int) -> None:
        """Make a range read as zero."""
        ...


@dataclass(frozen=True, slots=True)
class Overwritten:
    """How many bytes of data were written to an image, and how many were made zero."""

    written_bytes: int = 0
    zeroed_bytes: int = 0

    def __add__(self, other: Overwritten) -> Overwritten:
        return Overwritten(self.written_bytes + other.written_bytes, self.zeroed_bytes + other.zeroed_bytes)


def overwrite(
    image: OpenImage, pieces: Iterable[Piece], *, stop: Callable[[], None], progress: Callable[[int], None]
) -> Overwritten:
    """Write the pieces, ascending, as they are, and return how much that was.

    ``stop`` raises when the operation was cancelled; ``progress`` is told how many bytes were settled since the
    last call.
    """
    done = Overwritten()
    for start, length, content in _joined(pieces):
        stop()
        if content is None:
            image.zero(start, length)
            done += Overwritten(zeroed_bytes=length)
        else:
            image.write(start, content)
            done += Overwritten(written_bytes=length)
        progress(length)
    return done


def overwrite_differing(
    image: OpenImage,
    pieces: Iterable[Piece],
    zero_map: Iterable[Reply],
    *,
    block_bytes: int,
    stop: Callable[[], None],
    progress: Callable[[int], None],
) -> Overwritten:
    """Read what is at the pieces and write only the blocks that differ; return how much that was.

    ``zero_map`` says what of the image is known to be zero before anything is written; that is not read.
    """
    zeros = _known_zeros(zero_map, stop)
    done = Overwritten()
    for start, length, content in _joined(pieces):
        if content is None:
            done += Overwritten(zeroed_bytes=_zero_differing(image, start, length, zeros, block_bytes, stop))
        else:
            stop()
            done += Overwritten(written_bytes=_write_differing(image, start, content, block_bytes))
        progress(length)
    return done


def _known_zeros(zero_map: Iterable[Reply], stop: Callable[[], None]) -> list[tuple[int, int]]:
    """Return ranges (begin, end) that are known to be zero: all, or of too many the long ones.

    An image may have one table for all its clusters, and as many ranges as clusters: a small file then has billions.
    """
    zeros: list[tuple[int, int]] = []
    least = 1
    for number, (start, length, flags) in enumerate(zero_map):
        if not number % _STOP_EVERY:
            stop()
        if not flags & READS_AS_ZERO:
            continue
        begin = zeros.pop()[0] if zeros and zeros[-1][1] == start else start
        zeros.append((begin, start + length))
        while len(zeros) > _MOST_ZEROS:
            least *= 2
            zeros = [each for each in zeros if each[1] - each[0] >= least]
    return zeros


def _write_differing(image: OpenImage, start: int, content: bytes, block_bytes: int) -> int:
    present = memoryview(image.read(start, len(content)))
    wanted = memoryview(content)
    if present == wanted:
        return 0
    written = begun = 0
    differs = False
    # One step past the end closes a run that reaches it.
    for place in range(0, len(content) + block_bytes, block_bytes):
        now = place < len(content) and present[place : place + block_bytes] != wanted[place : place + block_bytes]
        if now and not differs:
            begun = place
        elif differs and not now:
            image.write(start + begun, wanted[begun:place])
            written += len(wanted[begun:place])
        differs = now
    return written


def _zero_differing(
    image: OpenImage,
    start: int,
    length: int,
    zeros: Sequence[tuple[int, int]],
    block_bytes: int,
    stop: Callable[[], None],
) -> int:
    end, zeroed, settled = start + length, 0, start
    for begin, until in _outside(start, end, zeros):
        for place in range(begin, until, PIECE_BYTES):
            stop()
            present = image.read(place, min(PIECE_BYTES, until - place))
            if any(present):
                # Whole blocks, so that the image can give their space back.
                first = max(start, place - place % block_bytes)
                last = min(end, place + len(present) + -(place + len(present)) % block_bytes)
                image.zero(first, last - first)
                # Two pieces may reach into one block.
                zeroed += last - max(first, settled)
                settled = last
    return zeroed


def _outside(start: int, end: int, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the parts of start to end that are in none of the ranges, which are ascending (begin, end)."""
    low, high = 0, len(ranges)
    while low < high:  # the first range that ends behind the start
        middle = (low + high) // 2
        low, high = (middle + 1, high) if ranges[middle][1] <= start else (low, middle)
    place = start
    for begin, until in map(ranges.__getitem__, range(low, len(ranges))):
        if begin >= end:
            break
        if begin > place:
            yield place, begin
        place = max(place, until)
    if place < end:
        yield place, end


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join neighbouring pieces: data up to about 1 MiB, zeroes without a limit."""
    begun = length = 0
    held: list[bytes] = []
    open_piece = False
    zero = False
    for start, size, content in pieces:
        joins = open_piece and start == begun + length and (content is None) is zero and (zero or length < PIECE_BYTES)
        if not joins:
            if open_piece:
                yield begun, length, None if zero else b"".join(held)
            begun, length, held, zero, open_piece = start, 0, [], content is None, True
        length += size
        if content is not None:
            held.append(content)
    if open_piece:
        yield begun, length, None if zero else b"".join(held)
