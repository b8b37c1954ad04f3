"""Commands stopped in the middle, so that what a test does meanwhile is certain to happen then."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import signal
import sqlite3
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

from tests.crash.bed import Trap, Zygote
from tests.rig import Vm
from tests.rig.cli import Started, Vmkeep
from tests.system.truth import has_backup_job

_COPYING = '"stage": "copy"'  # in the record of the job; before that it may be in the middle of the instant

# The fourth: connections are there, and so is the first of what was read.
_READ = Trap("before", "vmkeep.transfer.capture:_Readers.connection#4", "hold")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PIDFD_GETFD = 438


def held_in_its_copy(vm: Vm, vmkeep: Vmkeep) -> AbstractContextManager[Started]:
    """Start a backup and stop its process, but not its guardian, while it copies; it goes on after the block."""
    return held(vmkeep, ["backup", vm.name], lambda: is_in_its_copy(vmkeep) and has_backup_job(vm))


def is_in_its_copy(vmkeep: Vmkeep) -> bool:
    """Return whether a backup is past its instant; asks libvirt nothing, which may be busy."""
    return any(_COPYING in _content(record) for record in (vmkeep.home / "guards").glob("*.json"))


@contextmanager
def held_at_a_read(vm: Vm, zygote: Zygote) -> Iterator[None]:
    """Begin a backup that lives and takes all replies, but waits in its copy before one of its reads.

    It goes on after the block; ``zygote.printed`` then tells its end. To slow it down would not do: a busy machine lets
    it run longer than it was meant to, and it is done before the guest has filled anything.
    """
    zygote.start_command("--json", "backup", vm.name, traps=[_READ])
    zygote.wait_reached()
    try:
        yield
    finally:
        zygote.go.touch()


@contextmanager
def held(vmkeep: Vmkeep, arguments: list[str | Path], condition: Callable[[], bool]) -> Iterator[Started]:
    """Start a command and stop its process with SIGSTOP as soon as the condition holds, between transactions.

    Where it stands at a bad place it goes on for a millisecond of the processor's time, not for as long as it takes to
    ask again: a copy would be over by then.
    """
    process = vmkeep.start(*arguments)
    deadline = time.monotonic() + 30
    try:
        while not _stands(process, vmkeep, condition):
            assert process.poll() is None, f"over before it could be stopped: {process.communicate()}"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        yield process
    except BaseException:
        process.kill()
        process.communicate()
        raise
    process.send_signal(signal.SIGCONT)  # which sends none to one that was killed meanwhile


def _stands(process: Started, vmkeep: Vmkeep, condition: Callable[[], bool]) -> bool:
    """Stop a process at a good place if the condition holds, and return whether it stands there and it still does."""
    if not condition():
        return False
    while process.poll() is None:
        os.kill(process.pid, signal.SIGSTOP)
        if not (_holds_a_database(vmkeep.home) or _connects(vmkeep) or _is_in_a_reply(process.pid)):
            if condition():
                return True
            os.kill(process.pid, signal.SIGCONT)
            return False
        os.kill(process.pid, signal.SIGCONT)
        _let_run(process.pid, 0.001)
    return False


def _holds_a_database(home: Path) -> bool:
    """Return whether a process was stopped in the middle of a transaction, which would hold up all others."""
    for path in (home / "flows.sqlite", home / "catalog.sqlite"):
        if not path.exists():
            continue
        with closing(sqlite3.connect(path, timeout=0.02, isolation_level=None)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
            except sqlite3.OperationalError:
                return True
    return False


def _connects(vmkeep: Vmkeep) -> bool:
    """Return whether a process was stopped while it connects to a backup job, which its end would wait for."""
    for path in vmkeep.host.path("/run").rglob("handshakes"):
        with suppress(FileNotFoundError), path.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _is_in_a_reply(pid: int) -> bool:
    """Return whether a process was stopped while something is being sent to it.

    A QEMU whose reply nobody takes does not end when it is told to, and libvirt kills it after 10 s: its bitmaps are
    lost (seen on QEMU 10, once in a hundred such stops on a busy machine).
    """
    time.sleep(0.03)  # what is on its way is there then
    process = os.pidfd_open(pid)
    try:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if fd.is_socket() and _waiting_bytes(process, int(fd.name)):
                    return True
    finally:
        os.close(process)
    return False


def _waiting_bytes(process: int, fd: int) -> int:
    """Return how many bytes wait in a socket of another process (pidfd_getfd(2), FIONREAD)."""
    ours = _LIBC.syscall(_PIDFD_GETFD, process, fd, 0)
    if ours < 0:
        return 0
    try:
        waiting = array.array("i", [0])
        fcntl.ioctl(ours, termios.FIONREAD, waiting)
        return waiting[0]
    finally:
        os.close(ours)


def _let_run(pid: int, seconds: float) -> None:
    """Return when a process has had so much of the processor, or has had no use for it."""
    until = time.monotonic() + 10 * seconds
    enough = _processor_seconds(pid) + seconds
    while _processor_seconds(pid) < enough and time.monotonic() < until:
        time.sleep(0.001)


def _processor_seconds(pid: int) -> float:
    seconds = 0.0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            seconds += int(task.read_text().split()[0]) / 1e9
    return seconds


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""  # the job was over just then
