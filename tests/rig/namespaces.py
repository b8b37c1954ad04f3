"""Starting a process inside another process's namespaces such that it is a plain child with its real process id.

``nsenter --pid`` forks, so killing what it returned would kill nsenter and not the command, which is of no use to
tests that send SIGKILL. Here the calling thread points its children at the PID namespace (setns(2) with CLONE_NEWPID
changes children only), forks, and points them back; nsenter then enters the other namespaces and execs. What is forked
to go on without an exec enters them itself.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWPID = 0x20000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def _set_namespace(descriptor: int, kind: int = 0) -> None:
    if _LIBC.setns(descriptor, kind) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


@contextmanager
def children_in_pid_namespace_of(pid: int) -> Iterator[None]:
    """Put processes that this thread starts in the block into the PID namespace of ``pid``.

    The thread cannot start threads in the block (clone(2) forbids it), so start one process and leave.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set_namespace(other, _CLONE_NEWPID)
        finally:
            os.close(other)
        try:
            yield
        finally:
            _set_namespace(own, _CLONE_NEWPID)
    finally:
        os.close(own)


def entering_command(pid: int, command: Sequence[str], working_directory: str) -> list[str]:
    """Return the command that execs ``command`` in the mount, network and UTS namespaces of ``pid``, at its root."""
    enter = ["nsenter", f"--target={pid}", "--mount", "--root", "--net", "--uts", "--"]
    return [*enter, "env", f"--chdir={working_directory}", *command]


def enter(pid: int) -> None:
    """Go into the mount, network and UTS namespaces of ``pid``, at its root. This process may have no other thread."""
    there = Path(f"/proc/{pid}")
    root = os.open(there / "root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    namespaces = [os.open(there / "ns" / name, os.O_RDONLY | os.O_CLOEXEC) for name in ("net", "uts", "mnt")]
    for descriptor in namespaces:
        _set_namespace(descriptor)
        os.close(descriptor)
    os.fchdir(root)
    os.chroot(".")
    os.close(root)
