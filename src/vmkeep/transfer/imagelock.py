"""Who has an image open for writing, asked without taking a lock that a VM which starts now could meet.

QEMU and its tools lock byte 100 + n of a file for each permission n that they hold, and writing is permission 1
(file-posix.c, RAW_LOCK_PERM_BASE and BLK_PERM_WRITE; the same from QEMU 2.10 to 10). F_OFD_GETLK tells of such a lock
and places none.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_WRITERS_BYTE: Final = 101
# struct flock: type, whence, start, length, pid.
_FLOCK: Final = "hhqqi4x"


def writer_of(path: str | Path) -> str | None:
    """Return what has the image open for writing, for people; None when nobody is seen to have.

    A file system without locks, or a program that takes none, is not seen. A file that cannot be opened is no answer
    either.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _WRITERS_BYTE, 1, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if answer[0] == fcntl.F_UNLCK:
        return None
    return _opener(path) or "another process"


def _opener(path: str | Path) -> str | None:
    """Return the first process that has the file open for writing; the kernel names no owner of such a lock."""
    try:
        wanted = Path(path).stat()
        processes = sorted((entry for entry in Path("/proc").iterdir() if entry.name.isdecimal()), key=_number)
    except OSError:
        return None
    for process in processes:
        try:
            if any(_is_written(process, link, wanted) for link in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue  # gone, or not ours to look at
    return None


def _number(process: Path) -> int:
    return int(process.name)


def _is_written(process: Path, link: Path, wanted: os.stat_result) -> bool:
    try:
        if not os.path.samestat(link.stat(), wanted):
            return False
        lines = (process / "fdinfo" / link.name).read_text().splitlines()
    except OSError:
        return False
    flags = next((line.split()[1] for line in lines if line.startswith("flags:")), "0")
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY
