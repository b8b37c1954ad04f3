"""A restore over the VM itself: the one operation that writes over the only copy, so it is made to end well anywhere.

The VM is kept from starting first. The journal, synced before the first write, decides what every later step does, in
this process or in the one after a crash: each task can be repeated. When a task fails the VM is made what it was at its
safety point; when that fails too it stays parked, and the journal stays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal, cast

import structlog

from vmkeep.config import Settings
from vmkeep.definition import Definition, DefinitionError, SourceKind, parse_definition
from vmkeep.definition.parking import is_parked, park, unpark
from vmkeep.errors import (
    HostFileMissing,
    Interrupted,
    InvalidRequest,
    RestorePending,
    VmBusy,
    VmkeepError,
    VmNotFound,
    VmRunning,
)
from vmkeep.filesystem import sync_directory
from vmkeep.host.bases import checkpoint_prefix
from vmkeep.host.instant import StateSource, read_state, state_sources
from vmkeep.host.journal import (
    JournalDisk,
    RestoreJournal,
    RestoreStage,
    journal_path,
    pending_restore,
    refuse_while_pending,
)
from vmkeep.host.lock import FileLock
from vmkeep.host.preparation import with_volumes_found
from vmkeep.host.rebinding import broken_bitmaps, rebind
from vmkeep.host.restore import check_state, discard_replaced, item_at, publish_items, withdraw_items
from vmkeep.host.selection import Selection, look_at_images, select
from vmkeep.host.survey import Progress
from vmkeep.host.tasks import (
    CheckInPlace,
    DeliveredItem,
    DiscardReplaced,
    DisksWritten,
    InPlaceChecked,
    ParkVm,
    PublishItems,
    RestoreSettled,
    VmParked,
    WithdrawItems,
)
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.repository import PointRecord, Repository, StoredDisk
from vmkeep.statefiles.installation import stage_file, stage_tpm
from vmkeep.statefiles.location import StateRoots, swtpm_owner
from vmkeep.transfer.delivery import deliver_disk
from vmkeep.transfer.imagefile import describe_image
from vmkeep.transfer.inplace import overwrite, overwrite_differing
from vmkeep.transfer.server import ImageServer

__all__ = ["InPlace", "check_in_place", "pending_restore", "refuse_while_pending"]

_log = structlog.get_logger(__name__)
_DIRTY = 1
_LOCK_SECONDS = 10.0
# After kill -9 of vmkeep its qemu-nbd closes the image in order, which takes as long as the storage needs.
_CLOSING_SECONDS = 60.0
_WAIT_SECONDS = 0.1
# Nothing of ours has an image open before the first write, so nothing is waited for long.
_BUSY_SECONDS = 1.0


def check_in_place(
    hypervisor: Hypervisor, repository: Repository, settings: Settings, request: CheckInPlace
) -> InPlaceChecked:
    """Refuse what cannot be done, before anything is changed.

    Raises VmNotFound, VmRunning, RestorePending, and what the selection refuses.
    """
    record = repository.point(request.point_id)
    domain = _find(hypervisor, record)
    refuse_while_pending(settings, domain.name, domain.uuid)
    _require_off(domain)
    definition = with_volumes_found(_parsed(domain.definition_xml(inactive=True, secure=True), domain), hypervisor)
    selection, _ = _select(hypervisor, record, definition, request.only, request.tpm)
    return InPlaceChecked(domain.uuid, domain.name, selection.missing, selection.warnings)


class InPlace:
    """One restore in place. Its tasks are called one after the other; ``stop`` raises when it was cancelled."""

    def __init__(self, settings: Settings, hypervisor: Hypervisor, repository: Repository, operation: str) -> None:
        self._settings = settings
        self._hypervisor = hypervisor
        self._repository = repository
        self._operation = operation
        self._prefix = checkpoint_prefix(repository.id)
        self._lock: FileLock | None = None
        self._stop: Callable[[], None] = lambda: None
        self._watch: Callable[[Progress], None] = lambda _progress: None

    def serve(self, *, stop: Callable[[], None], watch: Callable[[Progress], None]) -> None:
        """Let the next task answer to these."""
        self._stop = stop
        self._watch = watch

    # -- ParkVm ------------------------------------------------------------------------------------------------

    def park(self, request: ParkVm) -> VmParked:
        """Write the journal and keep the VM from starting; on failure nothing of it is left."""
        record = self._repository.point(request.point_id)
        domain = _find(self._hypervisor, record)
        self._acquire(domain)
        try:
            _require_off(domain)
            journal = self._load_if_there()
            present = self._definition_xml(domain, journal)
            definition = with_volumes_found(_parsed(present, domain), self._hypervisor)
            selection, items = _select(self._hypervisor, record, definition, request.only, request.tpm, request)
            if journal is None:
                journal = self._new_journal(request, domain, present, definition, selection, items)
                journal.save(self._settings.restores_dir)
            try:
                self._park(domain, journal)
            except BaseException:
                self._unpark(domain, journal)
                journal.remove(self._settings.restores_dir)
                raise
        except BaseException:
            self._release_lock()
            raise
        return VmParked(
            vm_uuid=domain.uuid,
            vm_name=domain.name,
            disks=tuple(disk.target for disk in selection.disks),
            states=tuple(state.kind for state in selection.states),
            whole=selection.whole,
            warnings=selection.warnings,
        )

    def _new_journal(
        self,
        request: ParkVm,
        domain: Domain,
        present: str,
        definition: Definition,
        selection: Selection,
        items: tuple[DeliveredItem, ...],
    ) -> RestoreJournal:
        path = self._settings.restores_dir / f"restore-of-{domain.name}-not-finished--run-vmkeep-doctor"
        target = element = ""
        if any(disk.source_kind is not SourceKind.NONE and not disk.removable for disk in definition.disks):
            parked = park(present, str(path))
            target, element = parked.target, parked.element
        return RestoreJournal(
            operation=self._operation,
            uri=self._hypervisor.uri,
            vm=domain.name,
            vm_uuid=domain.uuid,
            point=request.point_id,
            safety=request.safety_id,
            disks=tuple(
                JournalDisk(disk.target, disk.image.path, disk.image.format, disk.made) for disk in selection.disks
            ),
            items=items,
            parked_path=str(path) if target else "",
            parked_target=target,
            parked_element=element,
            whole=selection.whole,
        )

    def _park(self, domain: Domain, journal: RestoreJournal) -> None:
        if not journal.parked_path:
            return
        present = domain.definition_xml(inactive=True, secure=True)
        if not is_parked(present, journal.parked_path):
            self._hypervisor.define(park(present, journal.parked_path).definition, domain.name)
        # It may have been started just before. From here on it cannot be.
        _require_off(domain)

    # -- StageRestore ------------------------------------------------------------------------------------------

    def stage(self) -> tuple[str, ...]:
        """Plan what is written, put files beside their places, then let the journal allow writes."""
        journal, domain = self._resume()
        record, safety = self._repository.point(journal.point), self._repository.point(journal.safety)
        if journal.stage is RestoreStage.PARKED:
            self._refuse_changed_states(domain, journal, safety)
            disks = tuple(self._plan(disk, record, safety, domain) for disk in journal.disks)
            journal = replace(journal, disks=disks)
        for item in journal.items:
            self._stop()
            self._deliver(item, record)
        for disk in journal.disks:
            if disk.runs:
                # A failure that can be known before the first write needs no rolling back.
                with self._served_for_writing(disk, self._stop, patience_seconds=_BUSY_SECONDS):
                    pass
        replace(journal, stage=RestoreStage.WRITING).save(self._settings.restores_dir)
        return ()

    def _plan(self, disk: JournalDisk, record: PointRecord, safety: PointRecord, domain: Domain) -> JournalDisk:
        if disk.made:
            return disk
        self._watch(Progress("planning", disk.target))
        want, have = _stored(record, disk.target), _stored(safety, disk.target)
        if have is None or want is None:
            raise InvalidRequest(f"the safety point {safety.id} lacks disk {disk.target}", vm=domain.name)
        self._refuse_written_image(disk, safety, domain)
        broken = broken_bitmaps(disk, prefix=self._prefix)
        if not self._is_safety_point(disk, safety, have, want, domain):
            return replace(disk, runs=((0, want.blocks),) if want.blocks else (), exact=False, broken=broken)
        runs: list[tuple[int, int]] = []
        for block, _ref in self._repository.difference(have, want):
            if runs and sum(runs[-1]) == block:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                self._stop()
                runs.append((block, 1))
        return replace(disk, runs=tuple(runs), exact=True, broken=broken)

    def _is_safety_point(
        self, disk: JournalDisk, safety: PointRecord, have: StoredDisk, want: StoredDisk, domain: Domain
    ) -> bool:
        """Return whether the disk is proved to hold what the safety point holds: nothing was written since.

        Raises VmBusy when it is proved to hold something else.
        """
        if disk.format != "qcow2" or not self._repository.comparable(have, want):
            return False
        (top,) = describe_image(disk.path, disk.format, chain=False)
        bitmap = top.bitmap(self._prefix + safety.id)
        if bitmap is None or bitmap.in_use or not bitmap.recording:
            return False
        with ImageServer(disk.path, disk.format, self._socket(), bitmap=bitmap.name) as server:
            if any(flags & _DIRTY for _start, _length, flags in server.source().dirty_map()):
                raise _changed(domain, disk.path)
        return True

    def _refuse_written_image(self, disk: JournalDisk, safety: PointRecord, domain: Domain) -> None:
        """Refuse a raw file that was written after the safety point; its time is all that tells."""
        path = Path(disk.path)
        if disk.format == "raw" and path.is_file():
            taken = datetime.fromisoformat(safety.created).timestamp()
            if path.stat().st_mtime > taken:
                raise _changed(domain, disk.path)

    def _refuse_changed_states(self, domain: Domain, journal: RestoreJournal, safety: PointRecord) -> None:
        """Refuse when a state file is not the safety point's: the VM ran after it."""
        held = {state.kind: state for state in safety.states}
        for source in _sources(self._hypervisor, self._unparked(domain, journal)):
            if source.kind not in held:
                continue
            try:
                if read_state(source, domain.name).sha256 != held[source.kind].sha256:
                    raise _changed(domain, str(source.path))
            except HostFileMissing as error:
                raise _changed(domain, str(source.path)) from error

    def _deliver(self, item: DeliveredItem, record: PointRecord) -> None:
        """Write one state file or new image beside its place."""
        staged = Path(item.staged)
        if item.role != "disk":
            ref = next(state for state in record.states if state.kind == item.role)
            version, content = self._repository.state(ref.version_id)
            check_state(ref, content, record)
            if item.role == "tpm":
                stage_tpm(staged, item.file or ref.file, content, owner=swtpm_owner(version.owner))
            else:
                staged.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                stage_file(staged, content)
            return
        stored = _stored(record, item.name)
        assert stored is not None

        def progress(position: int) -> None:
            self._watch(Progress("writing", item.name, position, stored.size_bytes))

        staged.unlink(missing_ok=True)
        deliver_disk(
            self._repository,
            stored,
            staged,
            cast("Literal['qcow2', 'raw']", item.format),
            workers=self._settings.workers,
            stop=self._stop,
            progress=progress,
        )
        final = Path(item.final)
        if final.exists():
            about = final.stat()
            os.chown(staged, about.st_uid, about.st_gid)
            staged.chmod(about.st_mode & 0o7777)
        sync_directory(staged.parent)

    # -- WriteRestore ------------------------------------------------------------------------------------------

    def write(self) -> DisksWritten:
        """Write the planned ranges of the point over the disks, durably."""
        journal, _ = self._resume()
        return self._write(journal, self._repository.point(journal.point), self._stop)

    def _write(self, journal: RestoreJournal, record: PointRecord, stop: Callable[[], None]) -> DisksWritten:
        planned = {disk.target: _planned_bytes(disk, record) for disk in journal.disks}
        total, done, written = sum(planned.values()), 0, 0
        for disk in journal.disks:

            def progress(settled: int, target: str = disk.target) -> None:
                nonlocal done
                done += settled
                self._watch(Progress("writing", target, done, total))

            if disk.runs:
                written += self._write_disk(disk, record, stop, progress)
        return DisksWritten(written, total)

    def _write_disk(
        self, disk: JournalDisk, record: PointRecord, stop: Callable[[], None], progress: Callable[[int], None]
    ) -> int:
        stored = _stored(record, disk.target)
        assert stored is not None
        assert disk.runs is not None
        with self._served_for_writing(disk, stop) as server:
            zero_map = () if disk.exact else tuple(server.source().zero_map())
            connection = server.connect()
            pieces = self._repository.read_runs(stored, disk.runs, workers=self._settings.workers)
            if disk.exact:
                written = overwrite(connection, pieces, stop=stop, progress=progress)
            else:
                written = overwrite_differing(
                    connection, pieces, zero_map, block_bytes=stored.block_bytes, stop=stop, progress=progress
                )
            connection.flush()
        return written

    @contextmanager
    def _served_for_writing(
        self, disk: JournalDisk, stop: Callable[[], None], *, patience_seconds: float = _CLOSING_SECONDS
    ) -> Iterator[ImageServer]:
        """Serve the image; a qemu-nbd of a killed vmkeep that still closes it is waited for."""
        deadline = time.monotonic() + patience_seconds
        while True:
            server = ImageServer(disk.path, disk.format, self._socket(), writable=True)
            try:
                server.__enter__()
                break
            except VmBusy:
                if time.monotonic() > deadline:
                    raise
                stop()
                time.sleep(_WAIT_SECONDS)
        try:
            yield server
        except BaseException as error:
            server.__exit__(type(error), error, error.__traceback__)
            raise
        server.__exit__(None, None, None)

    # -- the end -----------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Rename state files and new images into place; what they replace is kept beside."""
        journal, _ = self._resume()
        publish_items(PublishItems(journal.items, force=True))

    def bind(self) -> tuple[str, ...]:
        """Make the point the base of its disks."""
        journal, domain = self._resume()
        definition = self._unparked(domain, journal)
        rebind(domain, definition, journal.disks, self._prefix + journal.point, prefix=self._prefix)
        return tuple(
            _harmed_bitmap(name, disk.target)
            for disk in journal.disks
            for name in broken_bitmaps(disk, prefix=self._prefix)
            if name not in disk.broken
        )

    def release(self, vm_uuid: str) -> tuple[str, ...]:
        """Let the VM start again and remove what was kept; only the former can fail."""
        journal = self._load_if_there()
        if journal is None:
            self._sweep_lock(vm_uuid)
            return ()  # an attempt that was killed had come to its end
        domain = self._domain(journal)
        self._acquire(domain)
        if journal.stage is not RestoreStage.RELEASED:
            self._resume()
            journal = replace(journal, stage=RestoreStage.RELEASED)
            journal.save(self._settings.restores_dir)
        self._unpark(domain, journal)
        warnings = []
        try:
            discard_replaced(DiscardReplaced(journal.items))
        except OSError as error:
            warnings.append(f"What was replaced could not be removed: {error}. `vmkeep doctor` shows what is left.")
        self._end(journal)
        return tuple(warnings)

    # -- PutBack -----------------------------------------------------------------------------------------------

    def put_back(self, vm_uuid: str) -> None:
        """Make the VM what it was at its safety point; can be repeated. Raises RestorePending when it cannot be."""
        self._stop = lambda: None  # a cancelled restore is rolled back, and that must not be cancelled
        journal = self._load_if_there()
        if journal is None:
            self._sweep_lock(vm_uuid)
            return
        try:
            self._put_back(journal, self._domain(journal))
        except VmkeepError as error:
            raise self._pending(journal, error) from error
        except (OSError, DefinitionError) as error:
            raise self._pending(journal, VmkeepError(f"{type(error).__name__}: {error}")) from error
        finally:
            self._release_lock()

    def _put_back(self, journal: RestoreJournal, domain: Domain) -> None:
        self._acquire(domain)
        if journal.stage is RestoreStage.RELEASED:
            self.release(journal.vm_uuid)
            return
        if journal.stage is RestoreStage.PARKED:
            withdraw_items(WithdrawItems(journal.items))
        elif journal.stage is not RestoreStage.ROLLED_BACK:
            self._roll_back(journal, domain)
            journal = replace(journal, stage=RestoreStage.ROLLED_BACK)
            # Before the VM may start: from here on its disks are the guest's again.
            journal.save(self._settings.restores_dir)
        self._unpark(domain, journal)
        self._end(journal)

    def _roll_back(self, journal: RestoreJournal, domain: Domain) -> None:
        """Write the safety point over what may have been written, and put back what was replaced."""
        self._require_parked(domain, journal)
        replace(journal, stage=RestoreStage.BACK).save(self._settings.restores_dir)
        withdraw_items(WithdrawItems(journal.items))
        written_over = tuple(disk for disk in journal.disks if not disk.made)
        self._write(replace(journal, disks=written_over), self._repository.point(journal.safety), self._stop)
        definition = self._unparked(domain, journal)
        rebind(domain, definition, written_over, self._prefix + journal.safety, prefix=self._prefix)

    def settle(self) -> RestoreSettled | None:
        """End a restore that no flow carries on; None when another process does, or it is over."""
        journal = self._load_if_there()
        if journal is None:
            return None
        try:
            self._acquire(self._domain(journal), wait=False)
        except VmBusy:
            return None
        journal = self._load_if_there()
        if journal is None:  # it came to its end while we looked
            self._release_lock()
            return None
        forward = journal.stage is RestoreStage.RELEASED
        self.put_back(journal.vm_uuid)
        how = "finished" if forward else "rolled back: the VM is as it was before"
        told = f"an interrupted restore of VM {journal.vm!r} to point {journal.point} was {how}"
        return RestoreSettled(told, journal.vm_uuid, journal.point if forward and journal.whole else journal.safety)

    def _pending(self, journal: RestoreJournal, error: VmkeepError) -> RestorePending:
        return RestorePending(
            f"VM {journal.vm!r} could not be made what it was before its restore ({error.message}); it is kept from "
            "starting, and its disks may not be whole",
            vm=journal.vm,
            disk=error.disk,
            path=str(journal_path(self._settings.restores_dir, journal.operation)),
            hint=error.hint if isinstance(error, RestorePending) else None,
        )

    # -- journal, lock and definition --------------------------------------------------------------------------

    def _load_if_there(self) -> RestoreJournal | None:
        path = journal_path(self._settings.restores_dir, self._operation)
        try:
            return RestoreJournal.load(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RestorePending(f"the journal {path} of a restore cannot be read: {error}", path=str(path)) from error

    def _resume(self) -> tuple[RestoreJournal, Domain]:
        """Return journal and VM of a restore that goes forward, with the lock held and the VM parked."""
        journal = self._load_if_there()
        if journal is None:
            raise Interrupted(f"the restore {self._operation} was rolled back already")
        domain = self._domain(journal)
        self._acquire(domain)
        if journal.stage in (RestoreStage.BACK, RestoreStage.ROLLED_BACK):
            raise Interrupted(
                f"the process was killed while the restore of VM {journal.vm!r} was rolled back", vm=journal.vm
            )
        self._require_parked(domain, journal)
        return journal, domain

    def _require_parked(self, domain: Domain, journal: RestoreJournal) -> None:
        _require_off(domain)
        if journal.parked_path and not is_parked(
            domain.definition_xml(inactive=True, secure=True), journal.parked_path
        ):
            path = journal_path(self._settings.restores_dir, journal.operation)
            raise RestorePending(
                f"the definition of VM {journal.vm!r} was put back by hand while its restore was not finished, so its "
                "disks may be of two points and were left alone",
                vm=journal.vm,
                path=str(path),
                hint=f"Remove {path}, then restore in place once more: point {journal.safety} is the VM before.",
            )

    def _domain(self, journal: RestoreJournal) -> Domain:
        found = self._hypervisor.find(journal.vm_uuid)
        if found is None:
            raise VmNotFound(
                f"VM {journal.vm!r} is gone in the middle of its restore",
                vm=journal.vm,
                hint=f"Remove {journal_path(self._settings.restores_dir, journal.operation)}, and restore the point as "
                "a VM with --as NAME.",
            )
        return found

    def _definition_xml(self, domain: Domain, journal: RestoreJournal | None) -> str:
        """Return the inactive definition as it is without its parking."""
        present = domain.definition_xml(inactive=True, secure=True)
        if journal is None or not journal.parked_path:
            return present
        return unpark(present, journal.parked_path, journal.parked_target, journal.parked_element) or present

    def _unparked(self, domain: Domain, journal: RestoreJournal) -> Definition:
        return _parsed(self._definition_xml(domain, journal), domain)

    def _unpark(self, domain: Domain, journal: RestoreJournal) -> None:
        if not journal.parked_path:
            return
        present = domain.definition_xml(inactive=True, secure=True)
        back = unpark(present, journal.parked_path, journal.parked_target, journal.parked_element)
        if back is not None:
            self._hypervisor.define(back, domain.name)

    def _socket(self) -> Path:
        directory = self._settings.run_dir / self._operation[:12]
        directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory / "nbd"

    def _acquire(self, domain: Domain, *, wait: bool = True) -> None:
        """Take the VM's lock if it is not held already; the children of a killed process are waited for."""
        if self._lock is not None:
            return
        path = self._settings.locks_dir / f"{domain.uuid}.lock"
        note = f"restore {self._operation} (process {os.getpid()})"
        deadline = time.monotonic() + _LOCK_SECONDS
        while (lock := FileLock.try_acquire(path, note=note)) is None:
            if wait and FileLock.is_inherited(path) and time.monotonic() < deadline:
                self._stop()
                time.sleep(_WAIT_SECONDS)
                continue
            holder = FileLock.holder(path) or "another operation"
            raise VmBusy(f"{holder} works on VM {domain.name!r}", vm=domain.name)
        self._lock = lock

    def _end(self, journal: RestoreJournal) -> None:
        directory = self._settings.run_dir / self._operation[:12]
        if directory.is_dir():
            directory.rmdir()
        journal.remove(self._settings.restores_dir)
        self._release_lock()

    def _sweep_lock(self, vm_uuid: str) -> None:
        """Let go of the lock, also of the file of one whose process was killed just before it removed it."""
        self._release_lock()
        lock = FileLock.try_acquire(self._settings.locks_dir / f"{vm_uuid}.lock")
        if lock is not None:
            lock.release()

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


# -- what both look at -----------------------------------------------------------------------------------------


def _find(hypervisor: Hypervisor, record: PointRecord) -> Domain:
    found = hypervisor.find(record.vm_uuid)
    if found is None:
        raise VmNotFound(
            f"VM {record.vm_name!r} ({record.vm_uuid}) of the point is not on this host",
            vm=record.vm_name,
            hint=f"Restore it as a VM: `vmkeep restore {record.id} --as NAME`.",
        )
    return found


def _require_off(domain: Domain) -> None:
    if domain.state().run is not RunState.OFF:
        raise VmRunning(f"VM {domain.name!r} is not off", vm=domain.name)
    if domain.has_saved_memory():
        raise VmRunning(
            f"VM {domain.name!r} has a saved memory image, which belongs to its present disks",
            vm=domain.name,
            hint=f"Start the VM and shut it down, or drop the memory: `virsh managedsave-remove {domain.name}`.",
        )


def _harmed_bitmap(name: str, target: str) -> str:
    return (
        f"The bitmap {name} of disk {target}, which is another tool's, cannot be trusted any more: QEMU's server was "
        "killed while the disk was written."
    )


def _changed(domain: Domain, path: str) -> VmBusy:
    return VmBusy(
        f"VM {domain.name!r} was changed after its safety point was taken; it was started meanwhile, or something else "
        f"wrote to {path}",
        vm=domain.name,
        path=path,
        hint="Nothing was restored. Run the command again while the VM stays off.",
    )


def _parsed(xml: str, domain: Domain) -> Definition:
    try:
        return parse_definition(xml)
    except DefinitionError as error:
        raise InvalidRequest(f"the definition of VM {domain.name!r} cannot be read: {error}", vm=domain.name) from error


def _sources(hypervisor: Hypervisor, definition: Definition) -> tuple[StateSource, ...]:
    return state_sources(definition, StateRoots.of(hypervisor.uri))


def _select(
    hypervisor: Hypervisor,
    record: PointRecord,
    definition: Definition,
    only: tuple[str, ...],
    tpm: str,
    request: ParkVm | None = None,
) -> tuple[Selection, tuple[DeliveredItem, ...]]:
    """Return what goes back and the files that are renamed for it (their names need the operation)."""
    selection = select(record, definition, look_at_images(definition), _sources(hypervisor, definition), only, tpm)
    operation = request.operation if request is not None else ""
    items = [
        item_at("disk", disk.target, Path(os.path.realpath(disk.image.path)), operation, disk.image.format)
        for disk in selection.disks
        if disk.made
    ]
    items += [
        replace(item_at(state.kind, state.kind, state.place, operation), file=state.file) for state in selection.states
    ]
    return selection, tuple(items)


def _stored(record: PointRecord, target: str) -> StoredDisk | None:
    return next((disk.stored for disk in record.disks if disk.target == target), None)


def _planned_bytes(disk: JournalDisk, record: PointRecord) -> int:
    stored = _stored(record, disk.target)
    if stored is None:
        return 0
    return sum(
        min(count * stored.block_bytes, stored.size_bytes - first * stored.block_bytes)
        for first, count in disk.runs or ()
    )
