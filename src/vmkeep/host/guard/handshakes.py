"""Ending a backup job without being held up by the clients of its NBD server, and without QEMU hanging on them.

QEMU 7.2 as in Debian 12 hangs for ever, and its guest with it, when its NBD server is stopped while a client is in its
handshake: nbd_server_free waits for that client in a loop that does not look at sockets of handshakes. (The wait came
with the mending of CVE-2024-7409, and what makes it work only with QEMU 8.2. Seen: abortJob returns, and QEMU answers
nothing any more, also when the client is dead.) libvirt stops the server whenever a backup job ends.

And a client that stands still in the middle of a reply (a process that was stopped or frozen) holds up everything in
QEMU that waits for its disks to be idle, like the stop of a guest whose scratch is full, until it goes on or is dead.

So our own connections are made under a lock that the end of the job waits for, and the server is asked to prove that
it has nobody's unfinished handshake before it, also none of a process that was killed in it.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from vmkeep.errors import JobAborted, VmBusy
from vmkeep.hypervisor import Domain
from vmkeep.transfer.nbd import answers_handshakes

_LOCK_NAME = "handshakes"
_HANDSHAKE_SECONDS = 2.0
_DEATH_SECONDS = 5.0
_ANSWER_SECONDS = 3.0
_LOOK_SECONDS = 0.01


class Owner(Protocol):
    """The process of vmkeep whose job it is."""

    def kill_owner(self) -> None:
        """Kill it, and return when nothing of it is in the way any more."""
        ...


@contextmanager
def making_connection(directory: Path) -> Iterator[None]:
    """Hold up the end of the job while a connection is made. ``directory`` is the operation's own.

    Raises JobAborted when the directory is gone: then the job has ended.
    """
    lock = _opened(directory, os.O_CREAT)
    if lock is None:
        raise JobAborted("the backup job was ended before a connection to it was made")
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def abort_job(domain: Domain, socket: str, directory: str, owner: Owner | None = None) -> None:
    """End the backup job that serves at ``socket`` as soon as nobody connects to it.

    ``directory`` is where ``making_connection`` was told to lock, empty when that is not known. ``owner`` is the
    process of vmkeep whose job it is: one that stands still and is in the way is killed, because its point is lost in
    any case, and the guest must not be. Raises VmBusy when the way does not become free; the job then still is there.
    """
    with _nobody_connecting(domain, directory, owner):
        answered = answers_handshakes(socket, _ANSWER_SECONDS)
        if not answered and owner is not None:
            owner.kill_owner()
            answered = answers_handshakes(socket, _ANSWER_SECONDS)
        if not answered:
            raise VmBusy(
                f"QEMU does not answer at the socket of the backup job of VM {domain.name!r}, so the job was not ended",
                vm=domain.name,
                path=socket,
                hint="QEMU may be held up by its storage. `vmkeep doctor --fix` ends the job later.",
            )
        with _killed_in_the_way(owner):
            domain.abort_backup()
        if owner is not None and not job_ends(domain, socket, _ANSWER_SECONDS):
            owner.kill_owner()


@contextmanager
def _killed_in_the_way(owner: Owner | None) -> Iterator[None]:
    """Kill the owner when the block lasts.

    QEMU that waits until its disks are idle waits for a reply that nobody takes, and then answers libvirt no sooner
    than that process goes on. With 11.3 and QEMU 10 a job was seen, once in nine, that had not ended after 40 s.
    """
    if owner is None:
        yield
        return
    timer = threading.Timer(_ANSWER_SECONDS, owner.kill_owner)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _nobody_connecting(domain: Domain, directory: str, owner: Owner | None) -> Iterator[None]:
    lock = _opened(Path(directory), 0) if directory else None
    if lock is None:
        yield  # no connection was ever made
        return
    try:
        if not _acquired(lock, _HANDSHAKE_SECONDS):
            if owner is not None:
                owner.kill_owner()
            if owner is None or not _acquired(lock, _DEATH_SECONDS):
                raise VmBusy(f"a connection to the backup job of VM {domain.name!r} is being made", vm=domain.name)
        yield
    finally:
        os.close(lock)


def job_ends(domain: Domain, socket: str, seconds: float) -> bool:
    """Return whether the job that serves at ``socket`` is gone, or goes within that time.

    libvirt asks QEMU to end a job and does not wait, and QEMU closes the connections some time before.
    """
    deadline = time.monotonic() + seconds
    while domain.backup_socket() == socket:
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _opened(directory: Path, how: int) -> int | None:
    """Open the lock's file; None when it, or its directory, is not there. QEMU's user owns the directory: no links."""
    try:
        return os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | how, 0o600)
    except FileNotFoundError:
        return None


def _acquired(lock: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
