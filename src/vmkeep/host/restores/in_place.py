"""A restore over the VM itself: the one operation that writes over the only copy, so it is made to end well anywhere.

The VM is kept from starting first. The journal, synced before the first write, decides what every later step does, in
this process or in the one after a crash: each task can be repeated. When a task fails the VM is made what it was at its
safety point; when that fails too it stays parked, and the journal stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.custody.encryption import is_encrypted
from vmkeep.definition import Definition
from vmkeep.errors import HostFileMissing, PointChanged, VmNotFound
from vmkeep.filesystem import sync_directory
from vmkeep.host.checkpoints.rebinding import broken_bitmaps, rebind
from vmkeep.host.records.restore import JournalDisk, RestoreJournal, RestoreStage, refuse_while_pending
from vmkeep.host.restores.items import check_state, item_at, publish_items
from vmkeep.host.restores.overwriting import (
    WITHOUT_BITMAPS,
    Overwriting,
    changed_since_safety_point,
    image_mark,
    stored_disk,
)
from vmkeep.host.restores.selection import Selection, look_at_images, select
from vmkeep.host.restores.unfinished import Unfinished
from vmkeep.host.tasks.restores import (
    CheckInPlace,
    DeliveredItem,
    DisksWritten,
    InPlaceChecked,
    ParkVm,
    PublishItems,
    VmParked,
)
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.tasks.unfinished import RestoreSettled
from vmkeep.host.vm.definition import read_definition, with_volumes_found
from vmkeep.host.vm.fitness import require_off
from vmkeep.host.vm.keys import key_of
from vmkeep.host.vm.secrets import SecretPlan, define_secrets, plan_secrets, point_needs, refuse_another_key
from vmkeep.host.vm.states import StateSource, read_state, state_sources
from vmkeep.host.vm.unseen import refuse_unseen_images
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.paths import give_away
from vmkeep.repository import PointRecord, Repository
from vmkeep.statefiles.installation import make_folder, stage_file, stage_tpm
from vmkeep.statefiles.location import StateRoots, swtpm_owner
from vmkeep.transfer.delivery import deliver_disk
from vmkeep.transfer.imagekey import ImageKey
from vmkeep.transfer.tools import require_tools


def check_in_place(
    hypervisor: Hypervisor, repository: Repository, settings: Settings, request: CheckInPlace
) -> InPlaceChecked:
    """Refuse what cannot be done, before anything is changed.

    Raises VmNotFound, VmRunning, RestorePending, and what the selection refuses.
    """
    record = repository.point(request.point_id)
    domain = _find(hypervisor, record, request.vm_uuid)
    refuse_while_pending(settings, domain.name, domain.uuid)
    require_off(domain)
    require_tools("qemu-img", "qemu-nbd", "setpriv", doing=f"write the disks of {domain.name}")
    definition = with_volumes_found(
        read_definition(domain.definition_xml(inactive=True, secure=True), domain), hypervisor
    )
    refuse_unseen_images(domain, definition)
    selection, _ = _select(hypervisor, record, definition, request.only, request.tpm)
    secrets = _plan_secrets(hypervisor, repository, record, definition, selection)
    return InPlaceChecked(
        domain.uuid,
        domain.name,
        selection.missing,
        (*selection.warnings, *secrets.warnings),
        disks=tuple(disk.target for disk in selection.disks),
        images={
            disk.target: image_mark(disk.image.path)
            for disk in selection.disks
            if not disk.made and disk.image.format in WITHOUT_BITMAPS
        },
    )


class InPlace(Unfinished):
    """One restore in place."""

    kind = "restore"
    doubt = "it is kept from starting, and its disks may not be whole"

    def __init__(
        self,
        settings: Settings,
        hypervisor: Hypervisor,
        repository: Repository,
        operation: str,
        *,
        stop: Callable[[], None],
        watch: Callable[[Progress], None],
    ) -> None:
        super().__init__(settings, hypervisor, repository, operation, stop=stop, watch=watch)
        self._overwriting = Overwriting(settings, repository, operation, self._key)

    def _key(self, disk: JournalDisk) -> ImageKey | None:
        journal = self._parking.load()
        return key_of(self._hypervisor, disk.secret, vm=journal.vm if journal else None, disk=disk.target)

    # -- ParkVm ------------------------------------------------------------------------------------------------

    def park(self, request: ParkVm) -> VmParked:
        """Write the journal and keep the VM from starting; on failure nothing of it is left."""
        record = self._repository.point(request.point_id)
        domain = _find(self._hypervisor, record, request.vm_uuid)
        self._parking.lock(domain, self._stop)
        try:
            require_off(domain)
            journal = self._parking.load()
            present = self._parking.definition_xml(domain, journal)
            definition = with_volumes_found(read_definition(present, domain), self._hypervisor)
            selection, items = _select(self._hypervisor, record, definition, request.only, request.tpm, request)
            secrets = _plan_secrets(self._hypervisor, self._repository, record, definition, selection)
            if journal is None:
                journal = self._parking.new_journal(request, domain, present, definition, selection, items)
                self._parking.save(journal)
            self._parking.park(domain, journal)
        except BaseException:
            self._parking.unlock()
            raise
        return VmParked(
            vm_uuid=domain.uuid,
            vm_name=domain.name,
            disks=tuple(disk.target for disk in selection.disks),
            states=tuple(state.kind for state in selection.states),
            whole=selection.whole,
            warnings=(*selection.warnings, *secrets.warnings),
        )

    # -- StageRestore ------------------------------------------------------------------------------------------

    def stage(self) -> tuple[str, ...]:
        """Plan what is written, put files beside their places, then let the journal allow writes."""
        journal, domain = self._parking.resume(self._stop)
        record, safety = self._repository.point(journal.point), self._repository.point(journal.safety)
        if journal.stage is RestoreStage.PARKED:
            self._refuse_changed_states(domain, journal, safety)
            disks = tuple(self._planned(disk, record, safety, domain) for disk in journal.disks)
            journal = replace(journal, disks=disks)
        for item in journal.items:
            self._stop()
            self._deliver(item, record)
        for disk in journal.disks:
            if disk.runs:
                # A failure that can be known before the first write needs no rolling back.
                self._overwriting.try_open(disk, self._stop)
        self._parking.save(replace(journal, stage=RestoreStage.WRITING))
        return ()

    def _planned(self, disk: JournalDisk, record: PointRecord, safety: PointRecord, domain: Domain) -> JournalDisk:
        if disk.made:
            return disk
        self._watch(Progress("planning", disk.target))
        return self._overwriting.plan(disk, record, safety, domain, self._stop)

    def _refuse_changed_states(self, domain: Domain, journal: RestoreJournal, safety: PointRecord) -> None:
        """Refuse when a state file is not the safety point's: the VM ran after it."""
        held = {state.kind: state for state in safety.states}
        for source in _sources(self._hypervisor, self._parking.definition(domain, journal)):
            if source.kind not in held:
                continue
            try:
                if read_state(source, domain.name).sha256 != held[source.kind].sha256:
                    raise changed_since_safety_point(domain, str(source.path))
            except HostFileMissing as error:
                raise changed_since_safety_point(domain, str(source.path)) from error

    def _deliver(self, item: DeliveredItem, record: PointRecord) -> None:
        """Write one state file or new image beside its place."""
        staged = Path(item.staged)
        if item.role != "disk":
            ref = next(state for state in record.states if state.kind == item.role)
            version, content = self._repository.state_of(record, ref.version_id)
            check_state(ref, content, record)
            if item.role == "tpm":
                stage_tpm(staged, item.file or ref.file, content, owner=swtpm_owner(version.owner))
            else:
                make_folder(staged.parent, 0o755)
                stage_file(staged, content)
            return
        stored = stored_disk(record, item.name)
        assert stored is not None

        def progress(position: int) -> None:
            self._watch(Progress("writing", item.name, position, stored.size_bytes))

        staged.unlink(missing_ok=True)
        deliver_disk(
            self._repository,
            stored,
            staged,
            item.format,
            key=key_of(self._hypervisor, item.secret, vm=record.vm_name, disk=item.name),
            workers=self._settings.workers,
            stop=self._stop,
            progress=progress,
        )
        final = Path(item.final)
        if final.exists():
            about = final.stat()
            give_away(staged, about.st_uid, about.st_gid, about.st_mode & 0o7777)
        sync_directory(staged.parent)

    # -- WriteRestore ------------------------------------------------------------------------------------------

    def write(self) -> DisksWritten:
        """Write the planned ranges of the point over the disks, durably."""
        journal, _ = self._parking.resume(self._stop)
        return self._write(journal.disks, self._repository.point(journal.point))

    def _write(self, disks: Sequence[JournalDisk], record: PointRecord) -> DisksWritten:
        return self._overwriting.write(disks, record, stop=self._stop, watch=self._watch)

    # -- the end -----------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Rename state files and new images into place; what they replace is kept beside."""
        journal, _ = self._parking.resume(self._stop)
        if any(item.role == "tpm" for item in journal.items):
            self._define_secrets(journal)
        publish_items(PublishItems(journal.items, force=True))

    def _define_secrets(self, journal: RestoreJournal) -> None:
        """Give libvirt what it lacks to open the TPM state. It stays when the restore is taken back: nothing needs it
        then, and nothing is harmed by it.
        """
        record = self._repository.point(journal.point)
        needed = point_needs(record)
        plan = plan_secrets(self._hypervisor, self._repository, record, needed, vm=journal.vm, must_open=True)
        define_secrets(self._hypervisor, self._repository, record, plan)

    def bind(self) -> tuple[str, ...]:
        """Make the point the base of its disks."""
        journal, domain = self._parking.resume(self._stop)
        definition = self._parking.definition(domain, journal)
        name = self._prefix + journal.point
        told = rebind(domain, definition, journal.disks, name, prefix=self._prefix, key=self._key)
        return told + tuple(
            _harmed_bitmap(name, disk.target)
            for disk in journal.disks
            for name in broken_bitmaps(disk, prefix=self._prefix)
            if name not in disk.broken
        )

    def release(self, vm_uuid: str) -> tuple[str, ...]:
        """Let the VM start again and remove what was kept; only the former can fail."""
        return self._let_start(vm_uuid)

    # -- PutBack -----------------------------------------------------------------------------------------------

    def _roll_back(self, journal: RestoreJournal, domain: Domain) -> None:
        """Write the safety point over what may have been written, too."""
        super()._roll_back(journal, domain)
        written_over = tuple(disk for disk in journal.disks if not disk.made)
        self._write(written_over, self._repository.point(journal.safety))
        definition = self._parking.definition(domain, journal)
        rebind(domain, definition, written_over, self._prefix + journal.safety, prefix=self._prefix, key=self._key)

    def _end(self, journal: RestoreJournal) -> None:
        self._overwriting.end()
        super()._end(journal)

    def _settled(self, journal: RestoreJournal, *, forward: bool) -> RestoreSettled:
        how = "finished" if forward else "rolled back: the VM is as it was before"
        told = f"an interrupted restore of VM {journal.vm!r} to point {journal.point} was {how}"
        return RestoreSettled(told, journal.vm_uuid, journal.point if forward and journal.whole else journal.safety)


# -- what both look at -----------------------------------------------------------------------------------------


def _find(hypervisor: Hypervisor, record: PointRecord, vm_uuid: str) -> Domain:
    """Return the VM of the point, which is the one that was named. Raises PointChanged and VmNotFound."""
    if vm_uuid not in ("", record.vm_uuid):
        raise PointChanged(
            f"point {record.id} in the repository says that it is of VM {record.vm_name!r} ({record.vm_uuid}), and the "
            f"VM that was named is {vm_uuid}",
            vm=record.vm_name,
        )
    found = hypervisor.find_uuid(record.vm_uuid)
    if found is None:
        raise VmNotFound(
            f"VM {record.vm_name!r} ({record.vm_uuid}) of the point is not on this host",
            vm=record.vm_name,
            hint=f"Restore it as a VM: `{command_line('vmkeep restore', record.id, options='--as NAME')}`.",
        )
    return found


def _harmed_bitmap(name: str, target: str) -> str:
    return (
        f"The bitmap {name} of disk {target}, which is another tool's, cannot be trusted any more: QEMU's server was "
        "killed while the disk was written."
    )


def _sources(hypervisor: Hypervisor, definition: Definition) -> tuple[StateSource, ...]:
    return state_sources(definition, StateRoots.of(hypervisor.uri))


def _plan_secrets(
    hypervisor: Hypervisor,
    repository: Repository,
    record: PointRecord,
    definition: Definition,
    selection: Selection,
) -> SecretPlan:
    """Return what happens to the secrets of a TPM state that goes back; nothing needs any when none does."""
    if not any(state.kind == "tpm" for state in selection.states):
        return SecretPlan()
    needed = point_needs(record)
    version = next((state.version_id for state in record.states if state.kind == "tpm"), None)
    opens = needed[0].uuid if needed else None
    here = None if definition.tpm is None else definition.tpm.secret_uuid
    if version is not None and opens != here:
        refuse_another_key(definition, opens, encrypted=is_encrypted(repository.state(version)[1]))
    return plan_secrets(hypervisor, repository, record, needed, vm=definition.name, must_open=True)


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
    for disk in selection.disks:
        key_of(hypervisor, disk.secret, vm=definition.name, disk=disk.target)  # that it can be had, before anything
    operation = request.operation if request is not None else ""
    items = [
        replace(
            item_at("disk", disk.target, Path(os.path.realpath(disk.image.path)), operation, disk.image.format),
            secret=disk.secret,
        )
        for disk in selection.disks
        if disk.made
    ]
    items += [
        replace(item_at(state.kind, state.kind, state.place, operation), file=state.file) for state in selection.states
    ]
    return selection, tuple(items)
