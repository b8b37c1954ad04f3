"""The guardian: a small process that makes the guest safe when vmkeep dies in the middle of a job.

It is a session leader of its own, so a signal to vmkeep's process group does not reach it, and it holds the lock
of the VM together with vmkeep, so nothing else begins before it is done. vmkeep talks to it over a socket: first
come the record's path and the locks (``vmkeep.host.guard.standby``), then one word a line: ``copy`` and ``keep`` are
stages, ``done`` means that nothing is left to do: the process waits for the next job of this command, over the same
socket, and its end means then that there is none. The end of the socket without ``done`` means that vmkeep is dead.
``hold SECONDS`` is said before the guest is frozen or suspended: from then on it may stand still for so long. When that
is over and vmkeep still has it stand (it was stopped, or libvirt is slow), the guest goes on, and each later word but
``done`` is answered with ``late``: what vmkeep read since then is of no instant.
While the job runs it also watches for a VM that stopped on a full scratch disk: it ends the job and resumes the VM,
and QEMU repeats the write that failed. Of a VM that QEMU would not stop, it ends the job before the scratch is full.

    python -m vmkeep.host.guard.guardian RECORDS       (started by vmkeep, never by hand)
"""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import select
import signal
import socket
import struct
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    # Looking at modules that stay is a fifteenth of the processor time of its start.
    gc.disable()

from vmkeep.errors import HypervisorUnavailable, JobAborted, VmkeepError
from vmkeep.host.guard.clients import GUARDIAN_GONE, Channel, HeldClients
from vmkeep.host.guard.handshakes import job_ended
from vmkeep.host.guard.rescue import (
    LOOK_SECONDS,
    JobRecord,
    Stage,
    carry_out,
    let_guest_go_on,
    proven_scratch_falls_short,
    record_path,
    rescue,
    resume_if_ours,
)
from vmkeep.host.guard.standby import keep_standing, standing
from vmkeep.host.vm.grounds import stand_on
from vmkeep.host.vm.processes import hangs_dead, is_stopped
from vmkeep.hypervisor import Hypervisor
from vmkeep.hypervisor.answers import impatient, waiting_for
from vmkeep.locks import FileLock
from vmkeep.values import dataclass

_WATCH_SECONDS = 0.5
# A process that was stopped does nothing to end the pause; one that is only slow may be about to.
_STOPPED_SECONDS = 2.0
_READY = b"ready\n"
_LATE = b"late\n"
_DONE = "done"
_HOLD = "hold"
_MOST_DESCRIPTORS = 9
_DECISION_SECONDS = 6.0
_LONGEST_PATH = 4097


class Guardian:
    """vmkeep's end of the socket. Made before the guest is touched; ``done`` or ``rescue_now`` ends it."""

    def __init__(self, record: JobRecord, records: Path, hold: tuple[int, ...]) -> None:
        """Write the record and start the process. ``hold`` are descriptors of locks that it shall keep held.

        The record's own lock is taken before the record is there and held together with the process, so that no
        other command takes the job for an abandoned one while the process is still coming up.
        Raises JobAborted when it does not come up: without a guardian no guest is touched.
        """
        self._vm = record.vm
        self._limit_seconds = 0.0
        self._path = record_path(records, record.operation)
        lock = FileLock.try_acquire(self._path.with_suffix(".lock"), f"{record.operation} (process {os.getpid()})")
        if lock is None:
            raise JobAborted("another process is undoing this operation", vm=record.vm)
        self._lock = lock
        try:
            record.save(records)
            guardian = standing(records)
        except BaseException:
            self._path.unlink(missing_ok=True)
            lock.release()
            raise
        self._standby = guardian
        self._process = guardian.process
        self._socket = guardian.socket
        self._answers = guardian.socket.makefile("rb")
        self.clients = Channel()
        guardian.hand_over(self._path, (*hold, lock.descriptor), self.clients)

    def wait_ready(self) -> None:
        """Wait until it watches; raises JobAborted when it could not."""
        if self._answer() != _READY:
            self._close()
            self._process.wait()
            self._path.unlink(missing_ok=True)
            self._lock.release()
            raise JobAborted(
                "the guardian that protects the guest during the backup could not start, so nothing was begun",
                hint="Check that libvirt accepts a second connection (max_clients in libvirtd.conf) and try again.",
            )

    def stage(self, stage: Stage) -> None:
        """Tell how far the job is. Returns when the record on disk says so too."""
        self._say(stage)

    def hold(self, seconds: float) -> None:
        """Say that the guest may stand still for so long from now on.

        Raises JobAborted when it went on meanwhile, because an earlier such time was over. So a second call proves
        that what was done since the first was done while it stood still.
        """
        self._limit_seconds = seconds
        self._converse(f"{_HOLD} {seconds}")

    def done(self) -> None:
        """Nothing of the job is left: the record goes, and the process stands by for the next job."""
        try:
            self._say(_DONE)
        except JobAborted:  # killed meanwhile: then there was nothing more to guard
            self._close()
            self._process.wait()
        else:
            self._answers.close()
            keep_standing(self._standby)
        self.clients.close()
        self._path.unlink(missing_ok=True)
        self._lock.release()

    def rescue_now(self) -> bool:
        """Let the guardian undo the job, and wait; when it was killed, undo it here. Return whether it is undone.

        A record that cannot be carried out, because libvirt does not answer, stays for the next command.
        """
        self.clients.give_up()
        self._close()
        with waiting_for("let the guardian undo the job"):
            self._process.wait()
        with suppress(VmkeepError, FileNotFoundError):
            record = JobRecord.load(self._path)
            carry_out(self._path, record, partial(rescue, record))
        self.clients.close()
        self._lock.release()
        return not self._path.exists()

    def _say(self, word: str) -> None:
        self._converse(word)

    def _converse(self, word: str) -> None:
        try:
            self._socket.sendall(word.encode() + b"\n")
            answer = self._answer()
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        if answer == _LATE:
            raise JobAborted(
                f"the guest of VM {self._vm!r} stood still for longer than the {self._limit_seconds:g} s that it may, "
                "or vmkeep was stopped, so it was let go on: what was read since is of no instant, and is not kept",
                vm=self._vm,
                hint="If vmkeep was not stopped (SIGSTOP, a debugger), libvirt or the storage was slow: "
                "`longest_pause_seconds` in vmkeep.toml allows more. Run the command again.",
            )
        if answer != _READY:
            raise job_ended(GUARDIAN_GONE, vm=self._vm)

    def _answer(self) -> bytes:
        try:
            with waiting_for("answer the guardian"):
                return self._answers.readline()
        except ConnectionResetError:
            return b""

    def _close(self) -> None:
        """End the conversation: what was not called ``done`` is undone."""
        self._answers.close()
        self._socket.close()


def main() -> int:
    """Watch over one job after the other; the exit status is 0 when the guests are safe."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # A shutdown of the host sends TERM to all: the job must still be undone, and a rescue is short.
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # modules stay
    gc.enable()
    vmkeep = _conversation()
    while _guard_next(vmkeep):
        pass
    return 0


def _guard_next(vmkeep: socket.socket) -> bool:
    """Watch over the next job; return False when there was none, or vmkeep was dead before it ended."""
    try:
        words, descriptors, _, _ = socket.recv_fds(vmkeep, _LONGEST_PATH, _MOST_DESCRIPTORS)
    except ConnectionResetError:
        return False
    if not words:
        return False
    path = Path(words.decode().rstrip("\n"))
    record = JobRecord.load(path)
    hypervisor = stand_on(Hypervisor.connect(record.uri))
    clients = HeldClients(socket.socket(fileno=descriptors[-1]), _owner(vmkeep))
    _answer(vmkeep)
    record, finished = _watch(path, record, hypervisor, vmkeep, clients)
    if not finished:
        carry_out(path, record, partial(_rescue, record, hypervisor, clients))
    path.unlink(missing_ok=True)
    path.with_suffix(".lock").unlink(missing_ok=True)
    if not finished:
        return False  # the descriptors of the locks stay open until this process ends
    for lock in descriptors[:-1]:
        os.close(lock)
    _answer(vmkeep)
    hypervisor.close()
    return True


def _rescue(record: JobRecord, hypervisor: Hypervisor, clients: HeldClients) -> None:
    """Undo the job. Where the end of this process would end a guest, it goes on until it has done it.

    So it does as long as libvirt is away: the guest may stand still, and nobody else lets it go on before a person runs
    the next command.
    """
    while True:
        try:
            rescue(record, hypervisor, owner=clients)
            return
        except HypervisorUnavailable:
            continue
        except VmkeepError:
            if not clients.any_open():
                raise


def _watch(
    path: Path, record: JobRecord, hypervisor: Hypervisor, vmkeep: socket.socket, clients: HeldClients
) -> tuple[JobRecord, bool]:
    """Follow the job until vmkeep says ``done`` (True) or is gone (False)."""
    pending, hold = b"", _NO_HOLD
    while True:
        readable, _, _ = select.select([vmkeep], [], [], _WATCH_SECONDS)
        if not readable:
            if hangs_dead(_owner(vmkeep)):
                clients.wait_decided(_DECISION_SECONDS)
                return record, False
            record, hold = _end_hold(record, hold, hypervisor, _owner(vmkeep))
            if _saved_from_full_scratch(record, hypervisor, clients):
                # vmkeep finds the job gone and reports it; its next word gets no answer.
                return record, False
            continue
        received = _received(vmkeep)
        if not received:
            clients.wait_decided(_DECISION_SECONDS)
            return record, False
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            word = line.decode()
            if word == _DONE:
                return record, True  # answered when nothing of the job is held any more
            if record.stage is Stage.LATE:
                _answer(vmkeep, _LATE)
                continue
            hold = _hold_asked(word)
            try:
                record = _reached(path, record, word)
            except OSError:
                return record, False  # a full disk: without an answer vmkeep gives the point up
            _answer(vmkeep)


def _reached(path: Path, record: JobRecord, word: str) -> JobRecord:
    """Return the record as it is when vmkeep has said a word. A new stage is on disk then."""
    if word.startswith(_HOLD):
        return record
    reached = dataclasses.replace(record, stage=Stage(word))
    reached.save(path.parent)
    return reached


@dataclass(frozen=True, slots=True)
class _Hold:
    """For how long the guest may stand still, and since when it may."""

    since: float
    seconds: float

    def is_over(self, owner: int) -> bool:
        waited = time.monotonic() - self.since
        return waited > self.seconds or (waited > _STOPPED_SECONDS and is_stopped(owner))


_NO_HOLD = _Hold(0.0, math.inf)


def _hold_asked(word: str) -> _Hold:
    """Return for how long the guest may stand still from this word on; a new stage begins with a guest that runs."""
    return _Hold(time.monotonic(), float(word.removeprefix(_HOLD))) if word.startswith(_HOLD) else _NO_HOLD


def _end_hold(record: JobRecord, hold: _Hold, hypervisor: Hypervisor, owner: int) -> tuple[JobRecord, _Hold]:
    """Let a guest go on whose time is over. Where it need not, that time begins anew; where libvirt fails, it stays."""
    if hold is _NO_HOLD or not hold.is_over(owner):
        return record, hold
    try:
        if let_guest_go_on(record, hypervisor):
            return dataclasses.replace(record, stage=Stage.LATE), _NO_HOLD
    except VmkeepError:
        return record, hold
    return record, dataclasses.replace(hold, since=time.monotonic())


def _owner(vmkeep: socket.socket) -> int:
    """Return the process that is, or was, at the other end."""
    pid, _, _ = struct.unpack("3i", vmkeep.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(pid)


def _conversation() -> socket.socket:
    """Return the socket to vmkeep, which came as standard input; programs that a rescue runs do not get it."""
    vmkeep = socket.socket(fileno=os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    return vmkeep


def _received(vmkeep: socket.socket) -> bytes:
    """Return what vmkeep says; nothing when it is dead, also when it died without reading an answer."""
    try:
        return vmkeep.recv(4096)
    except ConnectionResetError:
        return b""


def _answer(vmkeep: socket.socket, word: bytes = _READY) -> None:
    """Tell vmkeep to go on, or not. One that died since it asked is found dead by the next read."""
    with suppress(BrokenPipeError, ConnectionResetError):
        vmkeep.sendall(word)


def _saved_from_full_scratch(record: JobRecord, hypervisor: Hypervisor, owner: HeldClients) -> bool:
    """Resume a VM that stopped on an I/O error during our job; libvirt being away is no reason to end.

    A job whose scratch must not run out is ended (by the caller) as soon as it might.
    """
    if record.stopped or record.keepsake or record.stage is Stage.INSTANT:
        return False
    with suppress(OSError):
        if proven_scratch_falls_short(record):
            return True
    try:
        with impatient(LOOK_SECONDS):
            domain = hypervisor.find_uuid(record.uuid)
            stopped = domain is not None and domain.state().io_error
        return domain is not None and stopped and resume_if_ours(record, domain, owner)
    except VmkeepError:
        return False


if __name__ == "__main__":
    # Taking the modules apart, as the interpreter does at its end, takes 20 ms for which vmkeep would wait.
    os._exit(main())
