"""Putting large objects into a directory past the page cache.

A pack is read again at a restore, not soon. Through the page cache it costs the copy into it (0.4 s of processor time a
GB, and ten times that where the machine's memory is given to it at the first touch), and pushes out what the host's
guests have there. Written with O_DIRECT it costs neither, and what is left for fsync is little (docs/performance.md).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from vmkeep.filesystem import PAGE_BYTES, aligned_buffer, write_all
from vmkeep.repository.layout import Buffer

LARGE_BYTES: Final = 1 << 20
"""From here on an object is worth it; a smaller one is written through the page cache."""
_BOUNCE_BYTES: Final = 1 << 20
# What a file system says that has no O_DIRECT (older tmpfs, some FUSE), or wants more alignment.
_UNABLE: Final = {22, 95}
_STAGED: Final = "#1"


def put_large(path: Path, pieces: Sequence[Buffer]) -> bool:
    """Make a file of the pieces, with mode 0600; return False, with nothing made, where that cannot be done so.

    The first piece begins an ``aligned_buffer``. The file is written beside and linked, so under its name it is whole,
    but it is durable only after fsync of file and directory. Raises FileExistsError for a name that is taken, and
    OSError for what the system refuses.
    """
    staged = path.with_name(path.name + _STAGED)
    try:
        handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _UNABLE:
            return False
        raise
    try:
        try:
            _write(handle, pieces)
        finally:
            os.close(handle)
        os.link(staged, path)
    except OSError as error:
        if error.errno in _UNABLE:
            return False
        raise
    finally:
        with suppress(OSError):
            staged.unlink()
    return True


def _write(handle: int, pieces: Sequence[Buffer]) -> None:
    """Write whole pages of the first piece from where they lie, and the rest through memory that is aligned."""
    first = memoryview(pieces[0])
    whole = len(first) // PAGE_BYTES * PAGE_BYTES
    write_all(handle, first[:whole], 0)
    rest = b"".join([first[whole:], *pieces[1:]])
    # Not closed but let go: after a write that fails, its traceback still holds a view of it.
    bounce = aligned_buffer(_BOUNCE_BYTES)
    for at in range(0, len(rest), _BOUNCE_BYTES):
        part = rest[at : at + _BOUNCE_BYTES]
        bounce[: len(part)] = part
        length = -(-len(part) // PAGE_BYTES) * PAGE_BYTES
        write_all(handle, memoryview(bounce)[:length], whole + at)
    os.ftruncate(handle, whole + len(rest))
