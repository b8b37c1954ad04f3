"""Making a guest safe after vmkeep died in the middle of a point.

The record of a job is written and synced before the first call that touches the guest, and removed when nothing
of the job is left. Whoever finds a record without its owner (the guardian, or the next command) runs ``rescue``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path

from vmkeep.errors import (
    AgentUnavailable,
    HostFileMissing,
    HypervisorError,
    HypervisorUnavailable,
    Interrupted,
    VmBusy,
    VmkeepError,
    VmNotFound,
)
from vmkeep.filesystem import fault_error, file_errors, sync_directory
from vmkeep.host.guard.handshakes import Owner, abort_job, connections_allowed, job_ends
from vmkeep.host.vm.grounds import stand_on
from vmkeep.host.vm.keys import key_of
from vmkeep.host.vm.thawing import Thawing
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.hypervisor.answers import impatient
from vmkeep.transfer.imagefile import describe_image, remove_bitmap
from vmkeep.transfer.nbd import export_names
from vmkeep.values import dataclass

# A call that was under way when vmkeep died is still carried out by libvirtd (a suspend takes 4 ms, backupBegin
# 110 ms on libvirt 9.0, longer with many disks), so one look is not enough: it must stay quiet this long.
_QUIET_SECONDS = 1.0
_STEP_SECONDS = 0.1
_PATIENCE_SECONDS = 60.0
_BEGIN_SECONDS = 20.0
_EXPORTS_SECONDS = 1.0
_RESUME_SECONDS = 5.0
LOOK_SECONDS = 2.0
"""How long a guardian waits for a libvirtd that hangs before it looks again what vmkeep says."""


class Stage(StrEnum):
    """How far the job was, as far as the guest's safety depends on it."""

    PREPARING = "preparing"  # files for the job are being made; a pause is somebody else's
    INSTANT = "instant"  # vmkeep may have suspended the VM
    LATE = "late"  # the guardian let the guest go on, as vmkeep did not; a pause now is somebody else's
    COPY = "copy"  # the VM runs again; a pause now is somebody else's
    KEEP = "keep"  # the point is stored: the new checkpoint is its base from here on
    FROZEN = "frozen"  # all is undone, but the agent has not said that it thawed the guest


_AT_THE_INSTANT = (Stage.INSTANT, Stage.LATE)


@dataclass(frozen=True, slots=True)
class MarkedImage:
    """An image that is given a new bitmap while its VM is off. ``secret`` names what opens it if it is encrypted."""

    target: str
    path: str
    format: str
    secret: str = ""


@dataclass(frozen=True, slots=True)
class ProvenScratch:
    """A scratch file for which room was proven: at no time may there be less than what it can still grow to."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What must be known of a job to undo it. Paths are of this host.

    Of a VM that is off (``stopped``) there is no job to end: only the new bitmaps in ``images`` are to be removed.
    ``quiesced``: the guest's file systems may have been frozen. ``secret`` is the UUID of the libvirt secret that the
    scratch of encrypted disks is encrypted with, empty when there is none. ``proven``: scratch that must not run out,
    because QEMU would not stop the guest then. ``directory`` is the operation's own
    directory of sockets, which need not be that of ``socket``: libvirt's directory of the VM is not ours to remove.
    ``keepsake`` is the directory of a snapshot that is made in place of a point
    (``vmkeep.host.guard.snapshot_rescue``).
    """

    operation: str
    uri: str
    vm: str
    uuid: str
    checkpoint: str
    socket: str
    was_running: bool
    scratch: tuple[str, ...]
    stage: Stage = Stage.INSTANT
    stopped: bool = False
    images: tuple[MarkedImage, ...] = ()
    quiesced: bool = False
    secret: str = ""
    proven: tuple[ProvenScratch, ...] = ()
    directory: str = ""
    keepsake: str = ""

    def save(self, directory: Path) -> Path:
        """Write the record durably; the file is named after the operation. Raises NoSpace and the like."""
        path = record_path(directory, self.operation)
        beside = path.with_suffix(".partial")
        with file_errors(path):
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(dataclasses.asdict(self), stream)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(path)
            sync_directory(directory)
        return path

    @classmethod
    def load(cls, path: Path) -> JobRecord:
        """Read a record; raises ValueError for one that cannot be read."""
        value = json.loads(path.read_text(encoding="utf-8"))
        value["scratch"] = tuple(value["scratch"])
        value["stage"] = Stage(value["stage"])
        value["images"] = tuple(MarkedImage(**image) for image in value.get("images", ()))
        value["proven"] = tuple(ProvenScratch(**scratch) for scratch in value.get("proven", ()))
        return cls(**value)


def record_path(directory: Path, operation: str) -> Path:
    """Return where the record of an operation lies."""
    return directory / f"{operation}.json"


def rescue(record: JobRecord, hypervisor: Hypervisor | None = None, *, owner: Owner | None = None) -> None:
    """Undo what a dead vmkeep left of a point: the pause, the job, the checkpoint, the socket, the scratch files.

    After a snapshot, let the guest go on, and keep what makes the snapshot whole.

    ``owner`` is the process of vmkeep if it may still live. The guest comes first: it is resumed before anything slow
    is done. Repeats until all has been quiet for a second. Raises HypervisorUnavailable when libvirt does not answer
    for a minute; the record then stays. Raises AgentUnavailable when all was done but that the guest may be frozen.
    """
    thawing = _thawing(record)
    if record.stage is Stage.FROZEN:
        _thaw_again(record, thawing, hypervisor)
    elif record.keepsake:
        from vmkeep.host.guard.snapshot_rescue import rescue_snapshot  # which needs this module

        rescue_snapshot(record, thawing, hypervisor)
    else:
        _rescue_point(record, thawing, hypervisor, owner)
    thawing.finish(record.vm)


def carry_out(path: Path, record: JobRecord, undo: Callable[[], None]) -> None:
    """Undo a job, and remove its record; the one of a guest that may still be frozen stays and says so."""
    try:
        undo()
    except AgentUnavailable:
        dataclasses.replace(record, stage=Stage.FROZEN).save(path.parent)
        raise
    path.unlink(missing_ok=True)


def _thawing(record: JobRecord, *, once: bool = False) -> Thawing:
    """Return what is owed to the guest. A vmkeep that is late may still freeze it before it hears that it is."""
    owed = record.quiesced and record.stage in (*_AT_THE_INSTANT, Stage.FROZEN)
    return Thawing(owed=owed, once=once or record.stage is Stage.FROZEN)


def _thaw_again(record: JobRecord, thawing: Thawing, hypervisor: Hypervisor | None) -> None:
    domain = (hypervisor or stand_on(Hypervisor.connect(record.uri))).find_uuid(record.uuid)
    with suppress(VmNotFound):
        if domain is not None:
            thawing.ask(domain)


def _rescue_point(record: JobRecord, thawing: Thawing, hypervisor: Hypervisor | None, owner: Owner | None) -> None:
    started = time.monotonic()
    deadline = started + _PATIENCE_SECONDS
    quiet_since: float | None = None
    while True:
        try:
            if hypervisor is None:
                hypervisor = stand_on(Hypervisor.connect(record.uri))
            # Whatever libvirtd did for the dead client is over by then, or libvirtd itself was restarted.
            begun = record.stage not in _AT_THE_INSTANT or time.monotonic() > started + _BEGIN_SECONDS
            changed = _rescue_once(record, thawing, hypervisor, begun=begun, owner=owner)
        except HypervisorUnavailable:
            hypervisor = None
            changed = True
            if time.monotonic() > deadline:
                raise
        except (HypervisorError, VmBusy):
            # A call that died with vmkeep still holds the VM's job lock; it ends by itself.
            changed = True
            if time.monotonic() > deadline:
                raise
        now = time.monotonic()
        if changed:
            quiet_since = None
        elif quiet_since is None:
            quiet_since = now
        settled = record.stage in (Stage.COPY, Stage.KEEP)
        if quiet_since is not None and (settled or now - quiet_since >= _QUIET_SECONDS):
            break
        time.sleep(_STEP_SECONDS)
    remove_leavings(record)


def _rescue_once(
    record: JobRecord, thawing: Thawing, hypervisor: Hypervisor, *, begun: bool, owner: Owner | None
) -> bool:
    """Do what is needed now; return whether anything was. ``begun``: no backupBegin can be under way any more."""
    domain = hypervisor.find_uuid(record.uuid)
    if record.stopped:
        return _remove_marks(record, domain, hypervisor)
    if domain is None:
        thawing.forget()
        return forget_secret(record, hypervisor)
    changed = resume_if_ours(record, domain, owner)
    changed = forget_secret(record, hypervisor) or changed
    try:
        changed = thawing.ask(domain) or changed
        if domain.backup_socket() == record.socket:
            if not (begun or _has_begun(record)):
                return True
            end_job(domain, record.socket, record.directory, owner)
            changed = True
        # Deleting needs a running VM; with the VM off the next backup removes what is left.
        deletable = record.stage is not Stage.KEEP and domain.state().run in (RunState.RUNNING, RunState.PAUSED)
        if deletable and record.checkpoint in domain.checkpoint_names():
            if not begun and domain.has_job():
                return True
            domain.delete_checkpoint(record.checkpoint)
            changed = True
    except VmNotFound:
        thawing.forget()
        return changed  # stopped and gone while we looked: nothing of ours can be left in it
    return changed


def _has_begun(record: JobRecord) -> bool:
    """Return whether backupBegin is over, as far as can be seen: the exports are the last thing that it makes.

    libvirtd 9.0 crashes when a job is aborted, or its checkpoint deleted, while the backupBegin of a client that
    died meanwhile goes on in it: both are let in between two of its steps and free what it goes on to use
    (qemuBackupBegin, qemuBackupJobTerminate; seen, and with it the libvirt of every VM of the host was away).
    """
    if not connections_allowed(record.directory):
        return True  # its end was asked for already, and QEMU may not be asked any more
    names = export_names(record.socket, _EXPORTS_SECONDS)
    return names is not None and len(names) == len(record.scratch)


def forget_secret(record: JobRecord, hypervisor: Hypervisor) -> bool:
    """Remove the secret of the scratch from libvirt; return whether there was one. QEMU has read it, or never will."""
    return bool(record.secret) and hypervisor.secrets.forget(record.secret)


def _remove_marks(record: JobRecord, domain: Domain | None, hypervisor: Hypervisor) -> bool:
    """Remove the new bitmaps from the images of a VM that was off; return whether there was one.

    A VM that was started meanwhile has loaded them: then libvirt removes them.
    """
    if record.stage is Stage.KEEP:
        return False
    changed = False
    running = domain is not None and domain.state().run in (RunState.RUNNING, RunState.PAUSED)
    if domain is not None and not running:
        changed = domain.forget_checkpoint(record.checkpoint)
    marked: list[str] = []
    for image in record.images:
        with suppress(HostFileMissing):
            if describe_image(image.path, image.format, chain=False)[0].bitmap(record.checkpoint) is None:
                continue
            if running:
                marked.append(image.target)
                continue
            key = key_of(hypervisor, image.secret, vm=record.vm, disk=image.target)
            changed = remove_bitmap(image.path, image.format, record.checkpoint, key) or changed
    if domain is not None and marked:
        domain.drop_bitmaps(record.checkpoint, marked)
        changed = True
    return changed


def resume_if_ours(record: JobRecord, domain: Domain, owner: Owner | None = None) -> bool:
    """Resume the VM when vmkeep suspended it, or when it stopped on a full scratch disk; return whether it did.

    A VM that was paused before stays paused, and so does one that somebody pauses during the copy.
    """
    state = domain.state()
    if state.run is not RunState.PAUSED:
        return False
    if state.io_error:
        if record.stage is Stage.INSTANT or domain.backup_socket() != record.socket:
            return False
        end_job(domain, record.socket, record.directory, owner)
        return True
    if record.was_running and record.stage is Stage.INSTANT:
        domain.resume()
        return True
    return False


def let_guest_go_on(record: JobRecord, hypervisor: Hypervisor) -> bool:
    """Resume and thaw a guest that vmkeep, which lives, has stand still for too long; return whether it did.

    Nothing else is undone: what vmkeep asked libvirt for may still be carried out, and libvirtd 9.0 crashes when a job
    is ended meanwhile. What a snapshot needs to be whole is kept first. False: the guest does not stand still, or does
    because libvirt saves its memory, which takes minutes for a large one. Raises what libvirt does.
    """
    # What is changed is waited for: of a guest that went on it must be known that it did.
    with impatient(LOOK_SECONDS):
        domain = hypervisor.find_uuid(record.uuid)
        if domain is None or not (record.quiesced or domain.state().run is RunState.PAUSED):
            return False
    if record.keepsake:
        from vmkeep.host.guard.snapshot_rescue import rescue_snapshot  # which needs this module

        if domain.has_job():
            return False
        rescue_snapshot(record, _thawing(record, once=True), hypervisor)
        return True
    resume_if_ours(record, domain)
    # Once, whatever comes of it: vmkeep, which lives, thaws as well, and must hear that the guest went on.
    _thawing(record, once=True).ask(domain)
    return True


def proven_scratch_falls_short(record: JobRecord) -> bool:
    """Return whether others have taken room that the scratch was proven to have."""
    places: dict[int, list[ProvenScratch]] = {}
    for scratch in record.proven:
        with suppress(OSError):
            places.setdefault(Path(scratch.path).parent.stat().st_dev, []).append(scratch)
    return any(_falls_short(scratches) for scratches in places.values())


def _falls_short(scratches: Sequence[ProvenScratch]) -> bool:
    # The free space first: what the scratch takes in between then counts for it, not against it.
    about = os.statvfs(Path(scratches[0].path).parent)
    missing = 0
    for scratch in scratches:
        try:
            taken = Path(scratch.path).stat().st_blocks * 512
        except FileNotFoundError:
            return False  # the job is over
        missing += max(0, scratch.size_bytes - taken)
    return about.f_bavail * about.f_frsize < missing


def end_job(domain: Domain, socket: str, directory: str = "", owner: Owner | None = None) -> None:
    """End the backup job, and resume a VM that its full scratch disk had stopped: QEMU then repeats the write.

    The job goes first: as long as it is there the write that failed would fail again, and a QEMU that is resumed while
    it takes the job apart may die (``vmkeep.host.points.scratch`` has why). The arguments, and what is raised, are
    those of ``abort_job``.
    """
    abort_job(domain, socket, directory, owner)
    deadline = time.monotonic() + _RESUME_SECONDS
    if domain.state().io_error:
        job_ends(domain, socket, _RESUME_SECONDS)
    while domain.state().io_error:
        try:
            domain.resume()
            return
        except (HypervisorError, VmBusy):
            if time.monotonic() > deadline:
                raise
            time.sleep(_STEP_SECONDS)


def remove_leavings(record: JobRecord) -> None:
    """Remove the sockets and scratch files that QEMU or libvirt did not remove."""
    # An older record has no directory: its socket was in the operation's own.
    directory = Path(record.directory) if record.directory else Path(record.socket).parent
    if directory.name == record.operation[:12]:
        shutil.rmtree(directory, ignore_errors=True)
    with suppress(OSError):
        Path(record.socket).unlink(missing_ok=True)
    for scratch in record.scratch:
        with suppress(OSError):
            Path(scratch).unlink(missing_ok=True)


def rescue_abandoned(directory: Path) -> tuple[str, ...]:
    """Rescue after every job whose owner and guardian are both dead (a killed guardian, a host that crashed).

    Returns a sentence for each. A record that cannot be carried out stays for the next time.
    """
    from vmkeep.locks import FileLock

    told: list[str] = []
    for stem in sorted({path.stem for path in directory.glob("*.*")}):
        path = directory / f"{stem}.json"
        lock = FileLock.try_acquire(path.with_suffix(".lock"))
        if lock is None:
            continue  # its guardian lives and does the same
        with lock:
            path.with_suffix(".partial").unlink(missing_ok=True)
            try:
                record = JobRecord.load(path)
                carry_out(path, record, partial(rescue, record))
            except FileNotFoundError:
                continue  # its guardian was faster, or its process was killed before there was a record
            except Interrupted:
                raise
            except AgentUnavailable as error:
                told.append(f"{error.message}. {error.hint}")
                continue
            except (VmkeepError, OSError, ValueError, KeyError, TypeError) as error:
                told.append(f"the left-overs recorded in {path} could not be removed: {fault_error(error).message}")
                continue
            if record.stage is Stage.FROZEN:
                told.append(f"the guest of VM {record.vm!r} is thawed")
                continue
            what = "was undone" if not record.keepsake else "holds its guest no more"
            told.append(f"an interrupted {'snapshot' if record.keepsake else 'point'} of VM {record.vm!r} {what}")
    return tuple(told)
