"""Ending a backup job without being held up by the clients of its NBD server, and without QEMU hanging on them.

QEMU 7.2 as in Debian 12 hangs for ever, and its guest with it, when its NBD server is stopped while a client is in its
handshake: nbd_server_free waits for that client in a loop that does not look at sockets of handshakes. (The wait came
with the mending of CVE-2024-7409, and what makes it work only with QEMU 8.2. Seen: abortJob returns, and QEMU answers
nothing any more, also when the client is dead.) libvirt stops the server whenever a backup job ends.

And a client that stands still in the middle of a reply (a process that was stopped or frozen) holds up everything in
QEMU that waits for its disks to be idle, like the stop of a guest whose scratch is full, until it goes on or is dead.

So our own connections are made under a lock that the end of the job waits for, and the server is asked to prove that
it has nobody's unfinished handshake before it, also none of a process that was killed in it. To ask is a handshake too:
whoever asks libvirt for the end first removes the lock's file, and from then on nobody connects, also not to ask. A job
is listed for a while after its end was asked for, and a guardian that found it then, asked the server and hung QEMU
(vmkeep killed as ``abortJob`` returned, disks in an I/O thread: at once when two end a job, and once in two suites).
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
_HOW = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_HANDSHAKE_SECONDS = 2.0
_DEATH_SECONDS = 5.0
_ANSWER_SECONDS = 3.0
_LOOK_SECONDS = 0.01


class Owner(Protocol):
    """The process of vmkeep whose job it is."""

    def kill_owner(self) -> None:
        """Kill it, and return when nothing of it is in the way any more."""
        ...


def job_ended(what: str, *, vm: str | None = None, disk: str | None = None) -> JobAborted:
    """Return the error for a job that was ended while its point needed it, mostly by the guardian: ``what`` is seen."""
    return JobAborted(
        f"{what}; a full scratch disk is the usual cause",
        vm=vm,
        disk=disk,
        hint="Free space beside the disk images, or set scratch_dir in vmkeep.toml, and run it again.",
    )


def allow_connections(directory: Path) -> None:
    """Make the lock's file in the operation's own directory, before the job begins; without it nobody connects."""
    os.close(os.open(directory / _LOCK_NAME, _HOW | os.O_CREAT, 0o600))


def connections_allowed(directory: str) -> bool:
    """Return whether nobody has asked libvirt for the end of the job yet, as far as is known."""
    return not directory or os.path.lexists(Path(directory) / _LOCK_NAME)


@contextmanager
def making_connection(directory: Path) -> Iterator[None]:
    """Hold up the end of the job while a connection is made. ``directory`` is the operation's own.

    Raises JobAborted when the end of the job has been asked for.
    """
    lock = _opened(directory)
    try:
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_SH)
        if lock is None or _is_removed(lock):
            raise job_ended("the backup job was ended before a connection to it was made")
        yield
    finally:
        if lock is not None:
            os.close(lock)


def abort_job(domain: Domain, socket: str, directory: str, owner: Owner | None = None) -> None:
    """End the backup job that serves at ``socket`` as soon as nobody connects to it.

    ``directory`` is where ``making_connection`` was told to lock, empty when that is not known. ``owner`` is the
    process of vmkeep whose job it is: one that stands still and is in the way is killed, because its point is lost in
    any case, and the guest must not be. Raises VmBusy when the way does not become free; the job then still is there.
    """
    with _nobody_connecting(domain, directory, owner) as connections:
        if connections:
            _require_no_handshake(domain, socket, owner)
        if connections and directory:
            (Path(directory) / _LOCK_NAME).unlink(missing_ok=True)
        with _killed_in_the_way(owner):
            domain.abort_backup()
        if owner is not None and not job_ends(domain, socket, _ANSWER_SECONDS):
            owner.kill_owner()


def _require_no_handshake(domain: Domain, socket: str, owner: Owner | None) -> None:
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
def _nobody_connecting(domain: Domain, directory: str, owner: Owner | None) -> Iterator[bool]:
    """Hold up connections; what is given is whether there could be any: nobody asked for the end of the job before."""
    lock = _opened(Path(directory)) if directory else None
    if lock is None:
        yield not directory
        return
    try:
        if not _acquired(lock, _HANDSHAKE_SECONDS):
            if owner is not None:
                owner.kill_owner()
            if owner is None or not _acquired(lock, _DEATH_SECONDS):
                raise VmBusy(f"a connection to the backup job of VM {domain.name!r} is being made", vm=domain.name)
        yield not _is_removed(lock)
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


def _opened(directory: Path) -> int | None:
    """Open the lock's file; None when it, or its directory, is not there. QEMU's user owns the directory: no links."""
    try:
        return os.open(directory / _LOCK_NAME, _HOW)
    except FileNotFoundError:
        return None


def _is_removed(lock: int) -> bool:
    return os.fstat(lock).st_nlink == 0


def _acquired(lock: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
