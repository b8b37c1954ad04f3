"""Files of this host: making names durable, and what the operating system's errors mean to a user."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.errors import (
    HostExhausted,
    HostFileMissing,
    NoSpace,
    PermissionRefused,
    StoreError,
    TargetExists,
    VmkeepError,
)
from vmkeep.mounts import mount_of
from vmkeep.paths import ForeignLink

_PACKAGE: Final = Path(__file__).parent
PAGE_BYTES: Final = mmap.PAGESIZE
"""O_DIRECT wants memory, places and lengths in logical blocks of the device; these have at most 4 KiB."""
HOME_ROOM_BYTES: Final = 8 << 20
"""What an operation may write to vmkeep's home: its record and its steps, whose logs grow to 4 MiB each."""
OF_STORAGE: Final = (NoSpace, PermissionRefused, StoreError)
"""The errors by which a file system or its device refuses. Who can do without it catches these, and no signal."""
# What file systems say that make no file without a name (NFS).
_NAMELESS_UNKNOWN: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


def aligned_buffer(size_bytes: int) -> mmap.mmap:
    """Return zeroed memory that begins a page, as O_DIRECT wants it."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A tenth of the page faults, and fewer pieces for the kernel to put together. Not every kernel has large pages.
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError with the directory's name."""
    with naming(directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give errors of calls on a descriptor (fsync, write) the name of its file, which ``system_error`` tells."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


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


def _open_nameless(directory: Path, name: str) -> tuple[int, Path | None]:
    """Open a new file (0600) that has no name, or one made of ``name`` where the file system knows no others (NFS)."""
    try:
        return os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600), None
    except OSError as error:
        if error.errno not in _NAMELESS_UNKNOWN:
            raise
    beside = directory / f".{name}.{os.urandom(4).hex()}"
    return os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), beside


def write_new_file(path: Path, content: bytes) -> None:
    """Write a file (0600) that is there whole or not at all, durably, and never over another one.

    It has no name while it is written (``O_TMPFILE``), so that a death leaves nothing behind, least of all a secret
    beside its place. File systems that cannot do so (NFS) get a name beside it. Raises OSError.
    """
    directory = path.parent
    descriptor, beside = _open_nameless(directory, path.name)
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


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file in the place of one that may be there: the old one, or the new one whole. Raises OSError."""
    beside = path.parent / f".{path.name}.{os.urandom(4).hex()}.partial"
    try:
        write_new_file(beside, content)
        if mode != 0o600:
            beside.chmod(mode)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_directory(path.parent)


def make_private_file(path: Path) -> None:
    """Make an empty file that only its owner may read, if there is none: for programs that know no modes. OSError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def file_error(error: OSError, path: Path, doing: str = "written") -> VmkeepError:
    """Return our error for one of the operating system's about a file or directory of this host.

    ``doing`` is what could not be done with it: written, read, locked, used.
    """
    where = str(path)
    if isinstance(error, ForeignLink):
        hint = (
            "Nothing was written through it. Choose a folder that no other user can change, or make the link as root."
        )
        message = f"{path} is reached through {error.filename}, a link that a user other than root made"
        return PermissionRefused(message, path=where, hint=hint)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(error, path)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return descriptors_lacking(f"{path} cannot be {doing}", path=where)
    if error.errno == errno.EAGAIN:
        hint = "Raise the limit of processes and threads (`ulimit -u`, TasksMax= of a systemd unit), or try it again."
        return HostExhausted(f"{path} cannot be {doing}: {error.strerror}", path=where, hint=hint)
    if error.errno == errno.ENOMEM:
        hint = "Free memory, or raise the limit of this process's control group, and run the command again."
        return HostExhausted(f"{path} cannot be {doing}: there is no memory left", path=where, hint=hint)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _refused(error, path, doing)
    if error.errno == errno.EEXIST:
        return TargetExists(f"{path} exists already", path=where)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if doing != "written" or path.parent.is_dir():
            return HostFileMissing(f"{path} is not there", path=where)
        hint = "Make the directory, or choose another one."
        return HostFileMissing(f"the directory {path.parent} does not exist", path=where, hint=hint)
    return StoreError(f"{path} cannot be {doing}: {error.strerror or error}", path=where)


def _full(error: OSError, path: Path) -> NoSpace:
    where = str(path)
    if error.errno == errno.EDQUOT:
        hint = "Free space there, or have the quota raised; `quota` shows it."
        return NoSpace(f"the disk quota for {path} is used up", path=where, hint=hint)
    if _out_of_inodes(path):
        hint = "`df -i` counts them. Remove files there, or make a file system with more inodes."
        return NoSpace(f"the file system of {path} has room for no further file (inodes)", path=where, hint=hint)
    return NoSpace(f"the file system of {path} is full", path=where)


def _refused(error: OSError, path: Path, doing: str) -> PermissionRefused:
    if error.errno != errno.EROFS:
        return PermissionRefused(f"{path} cannot be {doing}: {error.strerror}", path=str(path))
    remedy = command_line("mount -o remount,rw", mount_of(path.absolute()))
    hint = f"The kernel makes a file system read-only when its device fails: look at `dmesg`, then `{remedy}`."
    return PermissionRefused(f"{path} cannot be {doing}: its file system is read-only", path=str(path), hint=hint)


def system_error(error: OSError) -> VmkeepError:
    """Return our error for one of the operating system's that nobody on its way has given a path.

    The last resort, at the ends of threads and of the command: that it is no fault of vmkeep's is told, and of which
    file as far as the error itself knows.
    """
    name = error.filename2 or error.filename
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if isinstance(name, str) and name:
        return file_error(error, Path(name), "used")
    return file_error(error, Path("a file or socket of the operation"), "used")


def fault_error(error: BaseException) -> VmkeepError:
    """Return the error of our tree for anything that was raised and translated nowhere.

    What the system refuses keeps its meaning; the rest is a fault of vmkeep's.
    """
    if isinstance(error, VmkeepError):
        return error
    if isinstance(error, OSError):
        return system_error(error)
    if isinstance(error, MemoryError):
        hint = "Free memory, or raise the limit of this process (`ulimit -v`, its control group), and run it again."
        return HostExhausted("there is no memory left for this process", hint=hint)
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        hint = "Raise the limit (`ulimit -u`, TasksMax= of a systemd unit) and run the command again."
        return HostExhausted("this process may start no further thread", hint=hint)
    told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return VmkeepError(f"{told}{_raised_at(error)}")


def _raised_at(error: BaseException) -> str:
    """Return where an error came from, in words that end its message: the line of ours, and the one it ended in.

    A fault is often seen once, and not when the command is run again with `--debug`.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents]
    places = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours[-1:], *frames[-1:]))
    return f" ({', '.join(places)})" if places else ""


@contextmanager
def file_errors(path: Path, doing: str = "written") -> Iterator[None]:
    """Translate what the operating system raises in the block, as ``file_error`` does."""
    try:
        yield
    except OSError as error:
        raise file_error(error, path, doing) from error


def descriptors_lacking(message: str, path: str | None = None) -> HostExhausted:
    """Return the error of a process that may open no more files; the message says what it was about to do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return HostExhausted(
        f"{message}: too many files are open, and this process may have {soft} (RLIMIT_NOFILE)",
        path=path,
        hint=f"Raise the limit (`ulimit -n`, which may go up to {hard} here, or LimitNOFILE= of a systemd unit) and "
        "run the command again.",
    )


def require_descriptors(number: int, doing: str) -> None:
    """Let this process have so many files open, as far as its hard limit goes. Raises HostExhausted, told of ``doing``.

    Files that are open already count as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError):  # it is counted by what it is for
        number += sum(1 for _ in Path("/proc/self/fd").iterdir())
    if number <= soft or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and number > hard:
        raise HostExhausted(
            f"{doing} needs {number} open files, and this process may have {hard} (RLIMIT_NOFILE)",
            hint="Nothing was begun. Raise the limit (`ulimit -n`, LimitNOFILE= of a systemd unit), or set a smaller "
            "number of workers in vmkeep.toml, and run the command again.",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


def require_room(directory: Path, room_bytes: int) -> None:
    """Raise what a new file of so many bytes in the directory would meet: NoSpace, PermissionRefused and others.

    Nothing is left there, and nothing appears there meanwhile where the file system can do without a name.
    """
    with file_errors(directory):
        descriptor, beside = _open_nameless(directory, "room")
        try:
            os.posix_fallocate(descriptor, 0, room_bytes)
            os.pwrite(descriptor, bytes(PAGE_BYTES), 0)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            message = f"the file system of {directory} is full: it has no {size_text(room_bytes)} left"
            raise NoSpace(message, path=str(directory)) from error
        finally:
            os.close(descriptor)
            if beside is not None:
                beside.unlink(missing_ok=True)


def _out_of_inodes(path: Path) -> bool:
    for place in (path, *path.parents):
        try:
            about = os.statvfs(place)
        except OSError:
            continue
        return about.f_files > 0 and about.f_ffree == 0
    return False


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
