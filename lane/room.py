"""Namespaces whose root is a directory, and the first process in them.

A chroot is not enough: libvirt and QEMU look at /proc/self/mountinfo, and would meet the machine's mounts under names
that mean nothing. So the tree is bound on itself and becomes the root by pivot_root(2), and the old root is let go.

The machine's /dev is never visible. It is one devtmpfs for all who mount it: a node removed in one place is gone from
the machine. The tree gets a tmpfs with a few nodes. There is no /dev/kvm among them: guests of the tests are emulated,
and libvirt asks QEMU anew each time when it sees a /dev/kvm that QEMU's user cannot use.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_MNT_DETACH = 2
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWPID = 0x20000, 0x4000000, 0x8000000, 0x20000000
_PR_SET_PDEATHSIG = 1
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_NODES = {
    "null": (1, 3, 0o666),
    "zero": (1, 5, 0o666),
    "full": (1, 7, 0o666),
    "random": (1, 8, 0o666),
    "urandom": (1, 9, 0o666),
    "tty": (5, 0, 0o666),
    "net/tun": (10, 200, 0o666),
    "loop-control": (10, 237, 0o600),
}
_LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE_SECONDS = 30  # a test session takes some to end its hosts


@dataclass(frozen=True, slots=True)
class Room:
    """A directory that becomes the root, and what else of the machine is seen in it."""

    root: Path
    hostname: str
    writable: Mapping[str, Path] = field(default_factory=dict)  # path inside: directory of the machine
    readable: Sequence[Path] = ()  # directories of the machine, at the same path inside


def run_in_room(room: Room, command: Sequence[str], environment: Mapping[str, str], directory: str) -> int:
    """Run a command with the room as its root; return its exit status, 128 and the signal's number when killed.

    Ctrl-C and SIGTERM end the command, then everything it left; a second one ends all at once. When this process
    dies, so do all in the room.
    """

    def first() -> NoReturn:
        _enter(room)
        os.chdir(directory)
        _run_as_init(command, environment)

    return _in_namespaces(_CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWUTS | _CLONE_NEWIPC, first)


def run_in_private_mounts(command: Sequence[str]) -> int:
    """Run a command of the machine whose mounts and processes are gone when it has ended; return its exit status."""

    def first() -> NoReturn:
        _mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        _run_as_init(command, {**os.environ, "PATH": path})

    return _in_namespaces(_CLONE_NEWNS | _CLONE_NEWPID, first)


def _in_namespaces(flags: int, first: Callable[[], NoReturn]) -> int:
    """Run ``first`` as process 1 of new namespaces. This process keeps its own, except for further children."""
    parent = os.fork()
    if parent == 0:
        status = 1
        try:
            status = _start_first(flags, first)
        except BaseException as error:
            print(f"lane: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return _wait_forwarding(parent)


def _start_first(flags: int, first: Callable[[], NoReturn]) -> int:
    _die_with_parent()
    _call(_LIBC.unshare, flags)
    child = os.fork()
    if child == 0:
        try:
            _die_with_parent()
            first()
        except BaseException as error:
            print(f"lane: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    return _wait_forwarding(child)


def _wait_forwarding(child: int) -> int:
    """Wait for a child, hand SIGTERM and SIGHUP on to it. SIGINT comes from the terminal, to all at once."""

    def forward(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        _pid, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return _exit_status(status)


def _run_as_init(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Start the command, reap whatever ends, and end with the command; the kernel then ends the rest."""
    asked: list[float] = []

    def end(number: int, _frame: FrameType | None) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(time.monotonic())
        if number != signal.SIGINT:  # the terminal told the command itself
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        signal.alarm(_GRACE_SECONDS)

    child = os.fork()
    if child == 0:
        try:
            for number in _ENDING_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(command[0], list(command), dict(environment))  # noqa: S606 -- the command names its shell
        except OSError as error:
            print(f"lane: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        finally:
            os._exit(127)
    for number in _ENDING_SIGNALS:
        signal.signal(number, end)
    signal.signal(signal.SIGALRM, lambda _number, _frame: os._exit(128 + signal.SIGTERM))
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(_exit_status(status))


def _exit_status(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


# -- the file system -------------------------------------------------------------------------------------------


def _enter(room: Room) -> None:
    root = room.root
    _mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
    _mount(str(root), str(root), flags=_MS_BIND)  # pivot_root wants a mount point
    _mount("proc", str(root / "proc"), "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount("sysfs", str(root / "sys"), "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount("tmpfs", str(root / "run"), "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    (root / "run/lock").mkdir(mode=0o1777)
    _make_devices(root / "dev")
    for inside, directory in room.writable.items():
        _bind(directory, root / inside.lstrip("/"))
    for directory in room.readable:
        target = root / str(directory).lstrip("/")
        _bind(directory, target)
        _mount("none", str(target), flags=_MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    socket.sethostname(room.hostname)
    os.chdir(root)
    # The new root is put below the old one at the same place (pivot_root(2), "pivot_root(".", ".")").
    _call(_LIBC.syscall, _SYS_PIVOT_ROOT[os.uname().machine], b".", b".")
    _call(_LIBC.umount2, b".", _MNT_DETACH)
    os.chdir("/")


def _make_devices(directory: Path) -> None:
    _mount("tmpfs", str(directory), "tmpfs", _MS_NOSUID, "mode=755")
    for name in ("pts", "shm", "net"):
        (directory / name).mkdir()
    previous = os.umask(0)
    for name, (major, minor, mode) in _NODES.items():
        os.mknod(directory / name, stat.S_IFCHR | mode, os.makedev(major, minor))
    for minor in range(_loop_devices()):
        os.mknod(directory / f"loop{minor}", stat.S_IFBLK | 0o600, os.makedev(7, minor))
    os.umask(previous)
    for name, target in _LINKS.items():
        (directory / name).symlink_to(target)
    _mount("devpts", str(directory / "pts"), "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    _mount("tmpfs", str(directory / "shm"), "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")


def _loop_devices() -> int:
    """Return how many loop devices the machine has; losetup makes none itself where nothing makes their nodes."""
    return sum(1 for path in Path("/dev").glob("loop*") if path.name[4:].isdigit())


def _bind(directory: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    _mount(str(directory), str(target), flags=_MS_BIND)


def _mount(source: str, target: str, filesystem: str = "none", flags: int = 0, options: str = "") -> None:
    _call(
        _LIBC.mount,
        source.encode(),
        target.encode(),
        filesystem.encode(),
        ctypes.c_ulong(flags),
        options.encode() or None,
        what=f"mount of {source} on {target}",
    )


def _die_with_parent() -> None:
    _call(_LIBC.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL)


def _call(function: Callable[..., int], *arguments: object, what: str = "") -> None:
    if function(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what or function.__name__}: {os.strerror(error)}")
