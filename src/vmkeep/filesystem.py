"""Files of this host: making names durable, and what the operating system's errors mean to a user."""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from vmkeep.errors import HostFileMissing, NoSpace, PermissionRefused, StoreError, TargetExists, VmkeepError

PAGE_BYTES: Final = mmap.PAGESIZE
"""O_DIRECT wants memory, places and lengths in logical blocks of the device; these have at most 4 KiB."""


def aligned_buffer(size_bytes: int) -> mmap.mmap:
    """Return zeroed memory that begins a page, as O_DIRECT wants it."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A tenth of the page faults, and fewer pieces for the kernel to put together. Not every kernel has large pages.
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory with this very mode, whatever the umask is, unless it is there. Raises OSError.

    Directories above it that are missing can be entered by all, and written by their owner only.
    """
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir(mode=0o755, exist_ok=True)
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(mode)


def passes_cache(path: Path) -> bool:
    """Return whether a file that is there can be written with O_DIRECT: not on older tmpfs, nor on some FUSE."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def write_all(descriptor: int, data: memoryview, place: int) -> None:
    """Write all of the data at a place, however few bytes the system takes at a time. Raises OSError."""
    while data:
        written = os.pwrite(descriptor, data, place)
        place += written
        data = data[written:]


def write_new_file(path: Path, content: bytes) -> None:
    """Write a file (0600) that is there whole or not at all, durably, and never over another one.

    It has no name while it is written (``O_TMPFILE``), so that a death leaves nothing behind, least of all a secret
    beside its place. File systems that cannot do so (NFS) get a name beside it. Raises OSError.
    """
    directory = path.parent
    beside: Path | None = None
    try:
        descriptor = os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        beside = directory / f".{path.name}.{secrets.token_hex(4)}"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            # A rename would replace what is there; a link refuses. Naming a directory makes it linkat, which follows.
            folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.link(beside or f"/proc/self/fd/{file.fileno()}", path, src_dir_fd=folder, follow_symlinks=True)
            finally:
                os.close(folder)
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
    sync_directory(directory)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file (0600) in the place of one that may be there: the old one, or the new one whole. Raises OSError."""
    beside = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        write_new_file(beside, content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_directory(path.parent)


def make_private_file(path: Path) -> None:
    """Make an empty file that only its owner may read, if there is none: for programs that know no modes. OSError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def file_error(error: OSError, path: Path) -> VmkeepError:
    """Return our error for the operating system's about writing a file on this host."""
    where = str(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"the file system of {path} is full", path=where)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionRefused(f"{path} cannot be written: {error.strerror}", path=where)
    if error.errno == errno.EEXIST:
        return TargetExists(f"{path} exists already", path=where)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return HostFileMissing(
            f"the directory {path.parent} does not exist", path=where, hint="Make the directory, or choose another one."
        )
    return StoreError(f"{path} cannot be written: {error.strerror}", path=where)


def size_text(size_bytes: int | None) -> str:
    """Return a number of bytes for people: "1.5 GiB"; "-" when unknown."""
    if size_bytes is None:
        return "-"
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
