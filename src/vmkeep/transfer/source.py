"""Where a disk is read from while a point is taken.

Two implementations: an NBD export of QEMU's (``vmkeep.transfer.nbd``) and bytes in memory for tests. A source
stands for the disk at one instant, so its content never changes between two reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from vmkeep.errors import TransferError
from vmkeep.extents import Reply, either_dirty, everything_dirty

_ZERO_AND_HOLE = 3


class SourceConnection(Protocol):
    """One connection; used by one thread at a time."""

    def read(self, start: int, length: int) -> bytes | bytearray:
        """Return ``length`` bytes from ``start``; raises TransferError when the other side fails."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


class DiskSource(Protocol):
    """A disk at one instant."""

    @property
    def size_bytes(self) -> int:
        """Return the size of the disk."""
        ...

    def connect(self) -> SourceConnection:
        """Return one more connection, for one more thread."""
        ...

    def dirty_map(self) -> Iterator[Reply]:
        """Yield which ranges changed since the base, with the flags of QEMU's bitmap context; all without a base."""
        ...

    def zero_map(self) -> Iterator[Reply]:
        """Yield which ranges are known to read as zero, with the flags of base:allocation."""
        ...


class LayeredSource:
    """A disk whose changes since the base stand in the bitmaps of several images: of the top one, and of those below.

    ``top`` is read; of the sources in ``below`` only what is dirty counts. They must be as large as the disk.
    """

    def __init__(self, top: DiskSource, below: Sequence[DiskSource]) -> None:
        self._top = top
        self._below = below

    @property
    def size_bytes(self) -> int:
        return self._top.size_bytes

    def connect(self) -> SourceConnection:
        return self._top.connect()

    def dirty_map(self) -> Iterator[Reply]:
        found = self._top.dirty_map()
        for older in self._below:
            found = either_dirty(found, _dirty_below(older, self.size_bytes), self.size_bytes)
        return found

    def zero_map(self) -> Iterator[Reply]:
        return self._top.zero_map()


def _dirty_below(older: DiskSource, size_bytes: int) -> Iterator[Reply]:
    if older.size_bytes != size_bytes:
        raise TransferError(f"an image below has {older.size_bytes} bytes, and the disk has {size_bytes}")
    return older.dirty_map()


class MemorySource:
    """A disk in memory, for tests. ``dirty`` lists changed ranges as (start, length); None means all of it."""

    def __init__(self, content: bytes, dirty: list[tuple[int, int]] | None = None) -> None:
        self._content = content
        self._dirty = dirty
        self.reads: list[tuple[int, int]] = []

    @property
    def size_bytes(self) -> int:
        return len(self._content)

    def connect(self) -> Self:
        return self

    def read(self, start: int, length: int) -> bytes:
        self.reads.append((start, length))
        return self._content[start : start + length]

    def close(self) -> None:
        return

    def dirty_map(self) -> Iterator[Reply]:
        if self._dirty is None:
            yield from everything_dirty(len(self._content))
            return
        position = 0
        for start, length in self._dirty:
            if start > position:
                yield position, start - position, 0
            yield start, length, 1
            position = start + length
        if position < len(self._content):
            yield position, len(self._content) - position, 0

    def zero_map(self) -> Iterator[Reply]:
        step = 4096
        for start in range(0, len(self._content), step):
            piece = self._content[start : start + step]
            yield start, len(piece), 0 if any(piece) else _ZERO_AND_HOLE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return
