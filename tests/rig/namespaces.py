"""Starting a process inside another process's namespaces such that it is a plain child with its real process id.

``nsenter --pid`` forks, so killing what it returned would kill nsenter and not the command, which is of no use to
tests that send SIGKILL. Here the calling thread points its children at the PID namespace (setns(2) with CLONE_NEWPID
changes children only), forks, and points them back; nsenter then enters the other namespaces and execs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_CLONE_NEWPID = 0x20000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def _set_namespace_of_children(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWPID) != 0:
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
            _set_namespace_of_children(other)
        finally:
            os.close(other)
        try:
            yield
        finally:
            _set_namespace_of_children(own)
    finally:
        os.close(own)


def entering_command(pid: int, command: Sequence[str], working_directory: str) -> list[str]:
    """Return the command that execs ``command`` in the mount, network and UTS namespaces of ``pid``, at its root."""
    enter = ["nsenter", f"--target={pid}", "--mount", "--root", "--net", "--uts", "--"]
    return [*enter, "env", f"--chdir={working_directory}", *command]
