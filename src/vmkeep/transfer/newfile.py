"""A new file that is written whole, past the page cache where its file system can.

A restored image has the size of a disk. Through the page cache each of its bytes would be copied once more, and would
push out what the guests of the host have there. Memory and places must be aligned for that, so every thread gathers
what it writes in memory of its own.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from vmkeep.filesystem import PAGE_BYTES, aligned_buffer, file_error, passes_cache, write_all
from vmkeep.paths import create_file

_GATHERED_BYTES: Final = 4 << 20


class NewFile:
    """A file that is made for us alone (0600); raises OSError, FileExistsError above all, when it cannot be made.

    Its folder may belong to another user, who can put something else in its place at any time. So what is opened once
    more is the file itself, not its name. ``aligned``: all places and lengths that ``lane`` writes are whole pages, but
    for the end of the last one.
    """

    def __init__(self, path: Path, *, aligned: bool) -> None:
        self.path = path
        self._plain = create_file(path)
        self._open = [self._plain]
        self._direct: int | None = None
        if aligned and passes_cache(path):
            with suppress(OSError):
                self._direct = os.open(f"/proc/self/fd/{self._plain}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
                self._open.append(self._direct)

    def lane(self) -> Lane:
        """Return one more way in for large writes, for one more thread."""
        return Lane(self.path, self._plain if self._direct is None else self._direct, padded=self._direct is not None)

    def write(self, place: int, data: bytes | memoryview) -> None:
        """Write something small; never into a page that a lane writes."""
        try:
            write_all(self._plain, memoryview(data), place)
        except OSError as error:
            raise file_error(error, self.path) from error

    def finish(self, size_bytes: int) -> None:
        """Give the file its size, make it durable and close it."""
        try:
            os.ftruncate(self._plain, size_bytes)
            os.fsync(self._plain)
        except OSError as error:
            raise file_error(error, self.path) from error
        self.close()

    def close(self) -> None:
        """Close the file; may be called again."""
        while self._open:
            os.close(self._open.pop())


class Lane:
    """One thread's way into a new file; raises NoSpace and the like with the file's path."""

    def __init__(self, path: Path, descriptor: int, *, padded: bool) -> None:
        self._path = path
        self._descriptor = descriptor
        self._padded = padded
        self._gathered: mmap.mmap = aligned_buffer(_GATHERED_BYTES)

    def write(self, place: int, pieces: Iterable[bytes]) -> None:
        """Write pieces one behind the other. The end of the last page is filled with zeros."""
        filled = 0
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                taken = min(len(rest), _GATHERED_BYTES - filled)
                self._gathered[filled : filled + taken] = rest[:taken]
                filled += taken
                rest = rest[taken:]
                if filled == _GATHERED_BYTES:
                    self._flush(place, filled)
                    place, filled = place + filled, 0
        if filled:
            self._flush(place, filled)

    def _flush(self, place: int, length: int) -> None:
        if self._padded and length % PAGE_BYTES:
            whole = -(-length // PAGE_BYTES) * PAGE_BYTES
            self._gathered[length:whole] = bytes(whole - length)
            length = whole
        try:
            with memoryview(self._gathered) as view:
                write_all(self._descriptor, view[:length], place)
        except OSError as error:
            raise file_error(error, self._path) from error
