"""A command that ends although a thread of it cannot.

A thread that writes to storage which stalls may sleep uninterruptibly in the kernel. Its process can then end by no
means, and whoever waits for it (a shell, a timer, a script) waits as long. So a command whose repository is on a file
system of its own does its work in a child process. What was started waits for the child's word: the exit status, said
as the last thing. A child that cannot end after that is left to the kernel; it holds no lock and no guest any more.

A repository beside vmkeep's own files needs none of this: when their file system stalls, the catalogue does too.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from vmkeep.mounts import mount_point, mount_points

_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
_ENDING_SECONDS = 1.0
_LOOK_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_word: int | None = None


def supervise(home: Path, repository: str) -> None:
    """Go on in a child process when the repository is on another file system than ``home``.

    To be called before there are threads. Returns in the process that shall do the work.
    """
    global _word
    if _word is not None or not _apart(home, Path(repository)):
        return
    heard, told = os.pipe()
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    child = os.fork()
    if child != 0:
        os.close(told)
        _wait(child, heard)
    os.close(heard)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    import ctypes

    # Killed with kill -9, the command must not go on behind the back of whoever killed it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _word = told


def tell_status(status: int) -> None:
    """Say the exit status: the last thing that a command does. Its outputs are closed, for whoever reads them."""
    if _word is None:
        return
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    with suppress(OSError):
        os.write(_word, bytes([status]))


def _apart(home: Path, repository: Path) -> bool:
    if not repository.is_absolute():
        return False  # a bucket: a thread that waits for a server can be ended
    try:
        mounts = mount_points()
    except OSError:
        return False
    return mount_point(home, mounts) != mount_point(repository, mounts)


def _wait(child: int, heard: int) -> NoReturn:
    end = os.pidfd_open(child)
    awaited, said, said_at, to_stop = [end, heard], b"", 0.0, False
    while True:
        ready, _, _ = select.select(awaited, [], [], _LOOK_SECONDS)
        for number in signal.sigpending() & set(_WATCHED):
            # sigtimedwait would do, but for a stop in it: Python's (3.11, 3.13) then may answer with no signal at all.
            came = signal.sigwaitinfo({number})
            # What comes from the terminal goes to the whole process group, to the child as well.
            if came.si_code <= 0:
                os.kill(child, number)
            to_stop = to_stop or number == signal.SIGTSTP
        # After the child, which may put it off: a shell that finds the command stopped may let it go on at once.
        if to_stop and os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG) is not None:
            to_stop = False
            os.kill(os.getpid(), signal.SIGSTOP)
        if end in ready:
            _, status = os.waitpid(child, 0)
            _end_like(os.waitstatus_to_exitcode(status))
        if heard in ready:
            said, said_at = os.read(heard, 1), time.monotonic()
            awaited.remove(heard)
        if said and time.monotonic() - said_at > _ENDING_SECONDS:
            os._exit(said[0])


def _end_like(code: int) -> NoReturn:
    if code < 0:
        # Killed: so was the command, for whoever looks.
        with suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)
