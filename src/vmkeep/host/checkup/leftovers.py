"""What operations leave on a host when they are killed: files beside images and state files, sockets, locks.

Each such name holds the first twelve characters of an operation's id. Only what belongs to an operation that this
installation knows, and that has ended, is a left-over: one that is under way still needs it, and one that is not
known may be another installation's, which works on the same directories. An operation that has ended never goes on,
so what was judged so stays so, whatever is begun meanwhile.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.errors import StoreError, VmBusy
from vmkeep.filesystem import file_error, sync_directory
from vmkeep.host.guard.rescue import JobRecord, Stage
from vmkeep.host.records.restore import RestoreJournal, RestoreStage
from vmkeep.host.records.snapshot import SnapshotRecord
from vmkeep.host.tasks.checkup import (
    Finding,
    FindingCode,
    KnownOperation,
    MakePrivate,
    Operations,
    PutAsideBack,
    RemoveLeft,
    RemoveLock,
)
from vmkeep.locks import FileLock
from vmkeep.statefiles.installation import remove

_LEFT: Final = re.compile(r"\.(?P<name>.+)\.(?P<operation>[0-9a-f]{12})\.(?P<kind>scratch|partial|replaced|published)")
_SHORT_ID: Final = re.compile(r"[0-9a-f]{12}")
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def living_operations(settings: Settings, operations: Iterable[KnownOperation]) -> Operations:
    """Return the operations, with those living that have a guardian or a restore in place to be finished."""
    pending = {path.stem for path in _entries(settings.restores_dir) if path.suffix == ".json"}
    return Operations.of(
        tuple(
            KnownOperation(operation.id, "living")
            if operation.state in ("done", "failed")
            and (operation.id in pending or FileLock.is_held(settings.guards_dir / f"{operation.id}.lock"))
            else operation
            for operation in operations
        )
    )


# -- files beside images and state files -------------------------------------------------------------------------


def left_files(directories: Iterable[Path], operations: Operations) -> Iterator[Finding]:
    """Yield a finding for each file or directory of vmkeep's that belongs to no operation under way."""
    for directory in sorted({Path(os.path.realpath(each)) for each in directories}):
        for path in _entries(directory):
            named = _LEFT.fullmatch(path.name)
            if named is None:
                continue
            finding = _judge(path, named["name"], named["operation"], named["kind"], operations)
            if finding is not None:
                yield finding


def _judge(path: Path, name: str, short_id: str, kind: str, operations: Operations) -> Finding | None:
    known = operations.find(short_id)
    if known is None:
        message = f"a {_WORDS[kind]} of an operation ({short_id}) that this installation does not know"
        return Finding(FindingCode.UNKNOWN_LEFT, message, remedy=_remove_unknown(path), path=str(path))
    ended = operations.ended(short_id)
    if ended is None:
        return None  # under way, or told as interrupted
    if kind == "replaced" and not (ended.state == "done" and os.path.lexists(path.with_name(name))):
        return _kept_aside(path, path.with_name(name), ended)
    message = f"a {_WORDS[kind]} of the operation {ended.id}, which has ended"
    return Finding(FindingCode.LEFT_FILE, message, path=str(path), mend=RemoveLeft(str(path), short_id))


_WORDS: Final = {
    "scratch": "scratch file of a backup",
    "partial": "half-written file of a restore",
    "published": "marker file of a restore",
    "replaced": "file that a restore replaced",
}


def _kept_aside(aside: Path, final: Path, operation: KnownOperation) -> Finding:
    """Judge what may be the only copy of a file that somebody had: it is put back or left, and never removed."""
    there = os.path.lexists(final)
    message = f"what was at {final} was moved here by the restore {operation.id}, which {operation.state}"
    if operation.state == "failed" and not there:
        message = f"{message}, and nothing is at its place"
        return Finding(FindingCode.KEPT_ASIDE, message, path=str(aside), mend=PutAsideBack(str(aside), str(final)))
    message += "; look which of both you want" if there else ", and nothing is at its place; it is left for you"
    remedy = command_line("mv -T --", aside, final)
    return Finding(FindingCode.KEPT_ASIDE, message, remedy=remedy, path=str(aside))


# -- sockets and locks -------------------------------------------------------------------------------------------


def left_sockets(settings: Settings, operations: Operations) -> Iterator[Finding]:
    """Yield a finding for each socket directory that no operation under way has."""
    for path in _entries(settings.run_dir):
        if _SHORT_ID.fullmatch(path.name) is None or not path.is_dir() or path.is_symlink():
            continue
        if operations.find(path.name) is None:
            message = f"the sockets of an operation ({path.name}) that this installation does not know"
            yield Finding(FindingCode.UNKNOWN_LEFT, message, remedy=_remove_unknown(path), path=str(path))
        elif (ended := operations.ended(path.name)) is not None:
            message = f"the sockets of the operation {ended.id}, which has ended"
            yield Finding(FindingCode.LEFT_SOCKET, message, path=str(path), mend=RemoveLeft(str(path), path.name))


def interrupted_jobs(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each record of a backup job that nobody looks after any more."""
    for path in _entries(settings.guards_dir):
        if path.suffix != ".json" or FileLock.is_held(path.with_suffix(".lock")):
            continue
        try:
            record = JobRecord.load(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"the record of an interrupted backup cannot be read: {error}"
            remedy = f"Look at the VM's pause, job and checkpoints with virsh, then: {command_line('rm --', path)}"
            yield Finding(FindingCode.POINT_INTERRUPTED, message, remedy=remedy, path=str(path))
            continue
        if record.stage is Stage.FROZEN:
            message = "the guest may still be frozen: its agent did not thaw it after a point that failed"
            yield Finding(FindingCode.POINT_INTERRUPTED, message, vm=record.vm, path=str(path), recovered=True)
            continue
        paused = " The VM may be paused since then." if record.was_running and record.stage is Stage.INSTANT else ""
        what = "snapshot" if record.keepsake else "backup"
        message = f"a {what} of the VM was killed together with its guardian, and is not undone yet.{paused}"
        yield Finding(FindingCode.POINT_INTERRUPTED, message, vm=record.vm, path=str(path), recovered=True)


def unrecorded_snapshots(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each snapshot that was begun, and that nobody works on any more."""
    for place in _entries(settings.snapshots_dir):
        try:
            keepsake = SnapshotRecord.load(place)
        except (OSError, ValueError) as error:
            if place.is_dir() and not isinstance(error, FileNotFoundError):
                message = f"what is kept of an interrupted snapshot cannot be read: {error}"
                yield Finding(FindingCode.SNAPSHOT_UNRECORDED, message, path=str(place), recovered=True)
            continue
        if FileLock.is_held(settings.locks_dir / f"{keepsake.vm_uuid}.lock"):
            continue  # it is under way
        message = (
            f"the snapshot {keepsake.name} was interrupted; its TPM and UEFI state is recorded if it was made. The "
            "guest may be on images that libvirt does not know of: fix it before the VM is stopped or started"
        )
        yield Finding(FindingCode.SNAPSHOT_UNRECORDED, message, vm=keepsake.vm, path=str(place), recovered=True)


def stale_locks(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each lock file that nobody holds. Those of owners and guardians go with the recovery."""
    message = "no process holds this lock; its process was killed"
    for path in _entries(settings.locks_dir):
        if path.suffix == ".lock" and not FileLock.is_held(path):
            yield Finding(FindingCode.STALE_LOCK, message, path=str(path), mend=RemoveLock(str(path)))
    for path in (*_entries(settings.owners_dir), *_entries(settings.guards_dir)):
        if path.suffix == ".lock" and not path.with_suffix(".json").exists() and not FileLock.is_held(path):
            yield Finding(FindingCode.STALE_LOCK, message, path=str(path), recovered=True)


def pending_restores(settings: Settings) -> Iterator[tuple[str, Finding]]:
    """Yield the VM's UUID, or the name of the journal, with a finding for each restore in place to be finished."""
    for path in _entries(settings.restores_dir):
        if path.suffix != ".json":
            continue
        try:
            journal = RestoreJournal.load(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            message = f"the journal of a restore in place cannot be read: {error}"
            remedy = f"Look at the VM's disks with virsh edit; when they are right: {command_line('rm --', path)}"
            yield path.stem, Finding(FindingCode.RESTORE_PENDING, message, remedy=remedy, path=str(path))
            continue
        if FileLock.is_held(settings.locks_dir / f"{journal.vm_uuid}.lock"):
            continue  # it is under way
        message = (
            f"a restore in place to {journal.aim} was not finished: the disks may not be whole, "
            "and the VM is kept from starting"
        )
        if journal.stage is RestoreStage.RELEASED:
            message = f"what a restore in place to {journal.aim} kept aside was not removed"
        finding = Finding(FindingCode.RESTORE_PENDING, message, vm=journal.vm, path=str(path), recovered=True)
        yield journal.vm_uuid, finding


# -- who may read what -------------------------------------------------------------------------------------------


def open_to_others(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for the home and for each key that others may look into."""
    if _is_open(settings.home):
        message = "other users may look into vmkeep's home, where the catalogue names VMs and their history"
        yield _not_private(FindingCode.HOME_NOT_PRIVATE, message, settings.home)
    for path in (settings.keys_dir, *_entries(settings.keys_dir)):
        if (path == settings.keys_dir or path.suffix == ".key") and _is_open(path):
            message = "other users may read the key, which opens everything in the repository"
            yield _not_private(FindingCode.KEY_NOT_PRIVATE, message, path)
    signing = settings.signing_key_path
    for path in _entries(settings.home):
        # Keys that were put aside have its name with something behind it.
        if path.name.startswith(signing.name) and _is_open(path):
            message = "other users may read the key with which this installation signs its points, and sign in its name"
            yield _not_private(FindingCode.KEY_NOT_PRIVATE, message, path)


def _not_private(code: FindingCode, message: str, path: Path) -> Finding:
    remedy = command_line("chmod go-rwx --", path)
    return Finding(code, message, remedy=remedy, path=str(path), mend=_privacy(path))


def _is_open(path: Path) -> bool:
    try:
        about = path.lstat()
    except OSError:
        return False
    return not stat.S_ISLNK(about.st_mode) and bool(about.st_mode & _OTHERS)


def _privacy(path: Path) -> MakePrivate | None:
    return MakePrivate(str(path)) if os.geteuid() in (0, path.lstat().st_uid) else None


# -- mending -----------------------------------------------------------------------------------------------------


def remove_left(mend: RemoveLeft) -> str:
    """Remove what an ended operation left; that it is gone already is fine."""
    path = Path(mend.path)
    named = _LEFT.fullmatch(path.name)
    mark = named["operation"] if named is not None else path.name
    if mark != mend.operation:
        raise StoreError(f"{path} is no left-over of the operation {mend.operation}", path=str(path))
    try:
        remove(path)
        sync_directory(path.parent)
    except OSError as error:
        raise file_error(error, path) from error
    return f"removed {path}"


def put_back(mend: PutAsideBack) -> str:
    """Rename what was moved aside to its place, unless something came to be there."""
    aside, final = Path(mend.aside), Path(mend.final)
    try:
        if os.path.lexists(final):
            raise StoreError(f"{final} is there again, so {aside} was left as it is", path=str(aside))
        aside.rename(final)
        sync_directory(final.parent)
    except OSError as error:
        raise file_error(error, final) from error
    return f"put {final} back"


def remove_lock(mend: RemoveLock) -> str:
    """Remove a lock file by taking the lock and letting it go."""
    path = Path(mend.path)
    lock = FileLock.try_acquire(path, note=f"doctor (process {os.getpid()})")
    if lock is None:
        raise VmBusy(f"{path} is held by {FileLock.holder(path) or 'a process'} now", path=str(path))
    lock.release()
    return f"removed {path}"


def make_private(mend: MakePrivate) -> str:
    """Take the rights of group and others away; a link is not followed."""
    path = Path(mend.path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & ~_OTHERS)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise file_error(error, path) from error
    return f"made {path} private"


def _entries(directory: Path) -> list[Path]:
    """Return what is in a directory, sorted; nothing for one that is not there or may not be read."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _remove_unknown(path: Path) -> str:
    return f"If no other vmkeep uses this host: {command_line('rm -r --', path)}"
