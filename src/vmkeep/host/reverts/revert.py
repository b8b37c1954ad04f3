"""A VM taken back to a snapshot of libvirt: new overlays over the images that hold its state, and all else with them.

libvirt 9.0 cannot revert an external snapshot, and no libvirt reverts UEFI variables or TPM with the disks. So it is
done here, in one way for all versions. The VM is kept from starting as in a restore in place, by the same lock,
definition and journal, until its new overlays, its state files and libvirt's records are ready. Nothing of the VM as it
was is written over before, so taking it back means to drop what was made. Internal snapshots are libvirt's own to
revert; an internal snapshot of the VM as it was, made first, is the way back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vmkeep.definition.parking import is_parked, unpark
from vmkeep.definition.repointing import repoint
from vmkeep.errors import Interrupted, NoSpace, TransferError, VmkeepError
from vmkeep.filesystem import OF_STORAGE, fault_error, file_error, file_errors, sync_directory
from vmkeep.host.checkpoints.rebinding import rebind_to_bitmaps
from vmkeep.host.records.restore import (
    JournalOverlay,
    RestoreJournal,
    RestoreStage,
    SnapshotRevert,
    refuse_while_pending,
)
from vmkeep.host.restores.items import discard_replaced, publish_items, withdraw_items
from vmkeep.host.restores.unfinished import Unfinished
from vmkeep.host.reverts.check import refuse_foreign_bitmaps
from vmkeep.host.reverts.choice import choose
from vmkeep.host.reverts.journal import new_journal
from vmkeep.host.snapshots.branches import guard_branches
from vmkeep.host.tasks.restores import DeliveredItem, DiscardReplaced, PublishItems, WithdrawItems
from vmkeep.host.tasks.reverts import ParkForRevert, RevertParked, RevertReleased
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.tasks.unfinished import RestoreSettled
from vmkeep.host.vm.definition import read_definition, with_volumes_found
from vmkeep.host.vm.deletions import refuse_torn
from vmkeep.host.vm.fitness import require_off
from vmkeep.host.vm.moments import read_snapshot
from vmkeep.hypervisor import Domain, DomainSnapshots, RunState, snapshots_of
from vmkeep.logs import get_logger
from vmkeep.moments import parse_checkpoint
from vmkeep.paths import give_away
from vmkeep.statefiles.installation import make_folder, stage_file, stage_tpm
from vmkeep.statefiles.location import swtpm_owner
from vmkeep.transfer.imagefile import (
    add_bitmap,
    change_internal_snapshot,
    describe_image,
    internal_snapshots,
    make_overlay,
    remove_bitmap,
)

_log = get_logger(__name__)
_WAIT_SECONDS = 0.1


class Revert(Unfinished):
    """One revert to a snapshot."""

    kind = "revert"
    doubt = "it is kept from starting"

    # -- ParkForRevert -----------------------------------------------------------------------------------------

    def park(self, request: ParkForRevert) -> RevertParked:
        """Write the journal and keep the VM from starting; on failure nothing of it is left."""
        domain = self._hypervisor.domain(request.vm_uuid)
        self._parking.lock(domain, self._stop)
        try:
            require_off(domain)
            journal = self._parking.load()
            if journal is None:
                # Another restore may have been left unfinished between the check and the lock.
                refuse_while_pending(self._settings, domain.name, domain.uuid)
            present = self._parking.definition_xml(domain, journal)
            definition = with_volumes_found(read_definition(present, domain), self._hypervisor)
            xml = snapshots_of(domain).definition(request.choice.snapshot, secure=True)
            refuse_torn(self._settings.deletions_dir, domain, xml)
            reversal = choose(self._hypervisor, domain, definition, xml, request.choice, request.known)
            if reversal.internal and not request.choice.drop_checkpoints:
                refuse_foreign_bitmaps(domain, reversal, self._prefix)
            if journal is None:
                journal = new_journal(
                    self._settings, self._hypervisor, self._parking, request, domain, present, definition, reversal
                )
                self._parking.save(journal)
            self._parking.park(domain, journal)
        except BaseException:
            self._parking.unlock()
            raise
        revert = _revert_of(journal)
        return RevertParked(
            vm_uuid=domain.uuid,
            vm_name=domain.name,
            disks=tuple(image.target for image in reversal.images),
            states=tuple(state.kind for state in reversal.states),
            memory=reversal.with_memory,
            whole=reversal.whole,
            images=tuple(overlay.path for overlay in revert.overlays),
            left=tuple(overlay.former for overlay in revert.overlays if not overlay.discard),
            warnings=reversal.warnings,
        )

    # -- StageRevert -------------------------------------------------------------------------------------------

    def stage(self) -> None:
        """Put everything beside its place, then let the journal allow more."""
        journal, domain = self._parking.resume(self._stop)
        revert = _revert_of(journal)
        if journal.stage is not RestoreStage.PARKED:
            return  # an attempt that was killed had come further
        for item in journal.items:
            self._stop()
            self._deliver(item, dict(revert.states)[item.role], domain.name)
        self._make_overlays(revert.overlays)
        for disk in journal.disks:
            self._stop()
            if self._way_back in internal_snapshots(disk.path, disk.format):
                change_internal_snapshot("-d", disk.path, disk.format, self._way_back)
            change_internal_snapshot("-c", disk.path, disk.format, self._way_back)
        self._parking.save(replace(journal, stage=RestoreStage.WRITING))

    @property
    def _way_back(self) -> str:
        """The internal snapshot of the VM as it was before libvirt reverted to another."""
        return f"vmkeep-{self._operation[:12]}"

    def _deliver(self, item: DeliveredItem, version_id: str, vm: str) -> None:
        version, content = self._repository.state(version_id)
        # That it fits the VM was looked at first (``snapshot_premises``).
        _log.info("state file of a snapshot", vm=vm, kind=item.role, version=version_id)
        staged = Path(item.staged)
        if item.role == "tpm":
            stage_tpm(staged, item.file or version.file, content, owner=swtpm_owner(version.owner))
        else:
            make_folder(staged.parent, 0o755)
            stage_file(staged, content)

    def _make_overlays(self, overlays: Sequence[JournalOverlay]) -> None:
        """Make them anew, empty, with their bitmaps; nothing of a guest is in one before the VM is released."""
        for overlay in overlays:
            self._stop()
            self._watch(Progress("overlays", overlay.target))
            make_overlay(overlay.path, describe_image(overlay.base, overlay.base_format)[0])
            for name, granularity in overlay.bitmaps:
                try:
                    add_bitmap(overlay.path, "qcow2", name, granularity_bytes=granularity)
                except (TransferError, NoSpace) as error:
                    # The next point finds it missing and reads the disk whole.
                    _log.warning("no bitmap", disk=overlay.target, bitmap=name, error=error.message)
            try:
                give_away(overlay.path, overlay.owner, overlay.group, overlay.mode)
            except OSError as error:
                raise file_error(error, Path(overlay.path)) from error
            sync_directory(Path(overlay.path).parent)

    # -- ApplyRevert -------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Do what can still be taken back: state files, libvirt's current snapshot, the memory."""
        journal = self._parking.load()
        if journal is None:
            raise Interrupted(f"the revert {self._operation} was taken back already")
        revert, domain = _revert_of(journal), self._parking.domain(journal)
        self._parking.lock(domain, self._stop)
        if journal.stage in (RestoreStage.BACK, RestoreStage.ROLLED_BACK):
            raise Interrupted(f"the process was killed while the revert of VM {journal.vm!r} was taken back")
        if journal.stage is RestoreStage.RELEASED or self._is_there(domain, journal, revert):
            return
        self._parking.require_parked(domain, journal)
        publish_items(PublishItems(journal.items, force=True))
        if revert.internal:
            self._drop_bitmaps(domain, journal)
            DomainSnapshots(domain).revert(revert.snapshot, paused=revert.with_memory)
            return
        self._make_current(domain, revert.snapshot, revert.checkpoints)
        if revert.memory:
            # Those of an attempt that was killed may have been open in a QEMU that is gone.
            self._make_overlays(revert.overlays)
            xml = repoint(
                self._hypervisor.saved_definition(revert.memory, domain.name),
                {overlay.target: overlay.path for overlay in revert.overlays},
            )
            self._watch(Progress("memory"))
            self._hypervisor.restore_memory(revert.memory, xml, domain.name)

    def _is_there(self, domain: Domain, journal: RestoreJournal, revert: SnapshotRevert) -> bool:
        """Tell whether an attempt that was killed had come to its last effect: the memory, or libvirt's own revert."""
        if revert.internal:
            # libvirt sets the definition of the snapshot in the same call.
            present = domain.definition_xml(inactive=True, secure=True)
            return bool(journal.parked_path) and not is_parked(present, journal.parked_path)
        # libvirt goes on with a call whose client is dead. It may fail yet.
        while revert.memory and domain.state().starting:
            self._stop()
            time.sleep(_WAIT_SECONDS)
        return bool(revert.memory) and self._runs_on(domain, revert.overlays)

    def _runs_on(self, domain: Domain, overlays: Sequence[JournalOverlay]) -> bool:
        if domain.state().run is RunState.OFF or not overlays:
            return False
        sources = {disk.source for disk in read_definition(domain.definition_xml(), domain).disks}
        return all(overlay.path in sources for overlay in overlays)

    def _drop_bitmaps(self, domain: Domain, journal: RestoreJournal) -> None:
        """Remove the bitmaps that QEMU applies no internal snapshot with, and their checkpoints."""
        revert = _revert_of(journal)
        for disk in journal.disks:
            (top,) = describe_image(disk.path, disk.format, chain=False)
            for bitmap in top.bitmaps:
                if bitmap.name.startswith(self._prefix) or revert.drop_checkpoints:
                    remove_bitmap(disk.path, disk.format, bitmap.name)
        for name in sorted(domain.checkpoint_names()):
            if name.startswith(self._prefix) or revert.drop_checkpoints:
                domain.forget_checkpoint(name)

    def _make_current(self, domain: Domain, name: str, checkpoints: Sequence[str]) -> None:
        """Make a snapshot libvirt's current one.

        While a VM is off and has checkpoints libvirt 9.0 takes no snapshot, redefined ones neither ("cannot perform
        block operations while checkpoint exists"). The journal holds them, and they are listed again afterwards.
        """
        _forget_for_now(domain, checkpoints)
        listed = snapshots_of(domain)
        xml = listed.definition(name, secure=True)
        snapshot, _ = read_snapshot(xml, domain)
        listed.redefine(name, xml, state=snapshot.state, current=True)

    # -- ReleaseReverted ---------------------------------------------------------------------------------------

    def release(self, vm_uuid: str) -> RevertReleased:
        """Let the VM start on its new images; from the moment that the journal says so it goes forward only."""
        journal = self._parking.load()
        if journal is None:
            self._parking.sweep_lock(vm_uuid)
            found = self._hypervisor.find_uuid(vm_uuid)
            return RevertReleased("off" if found is None else str(found.state().run), "", (), ())
        domain = self._parking.domain(journal)
        self._parking.lock(domain, self._stop)
        if journal.stage is not RestoreStage.RELEASED:
            if journal.stage in (RestoreStage.BACK, RestoreStage.ROLLED_BACK):
                raise Interrupted(f"the process was killed while the revert of VM {journal.vm!r} was taken back")
            journal = replace(journal, stage=RestoreStage.RELEASED)
            self._parking.save(journal)
        revert = _revert_of(journal)
        self._point_to(domain, journal, revert.overlays)
        warnings, discarded = self._tidy(domain, journal, revert)
        not_started = self._run(domain, revert)
        self._parking.end(journal)
        return RevertReleased(str(domain.state().run), not_started, discarded, tuple(warnings))

    def _point_to(self, domain: Domain, journal: RestoreJournal, overlays: Sequence[JournalOverlay]) -> None:
        """Define the VM with its new images, and no more parked, in one call."""
        present = domain.definition_xml(inactive=True, secure=True)
        back = (
            unpark(present, journal.parked_path, journal.parked_target, journal.parked_element)
            if journal.parked_path
            else None
        )
        if back is not None:
            self._hypervisor.define(repoint(back, {overlay.target: overlay.path for overlay in overlays}), domain.name)

    def _tidy(
        self, domain: Domain, journal: RestoreJournal, revert: SnapshotRevert
    ) -> tuple[list[str], tuple[str, ...]]:
        """Remove what was kept, and let libvirt list what is so now. The VM is right whatever this meets."""
        warnings: list[str] = []
        discarded = []
        try:
            warnings.extend(discard_replaced(DiscardReplaced(journal.items)))
            for overlay in revert.overlays:
                if overlay.discard:
                    with file_errors(Path(overlay.former)):
                        Path(overlay.former).unlink(missing_ok=True)
                    discarded.append(overlay.former)
        except OF_STORAGE as error:
            warnings.append(f"What was replaced could not be removed: {error}. `vmkeep doctor` shows what is left.")
        try:
            if revert.internal:
                self._drop_way_back(domain, journal)
            elif revert.overlays:
                warnings += self._list_moments(domain, revert)
            else:
                _list_again(domain, revert.checkpoints)
        except (VmkeepError, OSError) as error:
            told = fault_error(error).message
            warnings.append(f"What libvirt lists of checkpoints and snapshots could not be put right: {told}")
        return warnings, tuple(discarded)

    def _list_moments(self, domain: Domain, revert: SnapshotRevert) -> list[str]:
        """Let libvirt list snapshots and checkpoints as they fit the new images; return warnings."""
        warnings = []
        _forget_for_now(domain, revert.checkpoints)
        try:
            guard_branches(self._hypervisor, domain)
        except VmkeepError as error:
            warnings.append(
                f"libvirt could not be told of the images that other snapshots need ({error.message}): do not delete "
                "snapshots of this VM with virsh."
            )
        _list_again(domain, revert.checkpoints)
        held = {overlay.target: {name for name, _ in overlay.bitmaps} for overlay in revert.overlays}
        definition = read_definition(domain.definition_xml(inactive=True), domain)
        warnings += [
            f"The checkpoint {name}, which is another tool's, has no bitmap in the disks that went back."
            for name in rebind_to_bitmaps(domain, definition, held, prefix=self._prefix)
        ]
        return warnings

    def _drop_way_back(self, domain: Domain, journal: RestoreJournal) -> None:
        """Remove the internal snapshot that was made first; a VM that runs already lets libvirt do it."""
        held = [disk for disk in journal.disks if self._way_back in internal_snapshots(disk.path, disk.format)]
        if not held:
            return
        if domain.state().run is RunState.OFF:
            for disk in held:
                change_internal_snapshot("-d", disk.path, disk.format, self._way_back)
            return
        DomainSnapshots(domain).delete_internal(self._way_back, [disk.target for disk in held])

    def _run(self, domain: Domain, revert: SnapshotRevert) -> str:
        """Start or resume the VM where it should run; return why it does not."""
        try:
            run = domain.state().run
            if run is RunState.OFF and revert.run != "off":
                domain.start(paused=revert.run == "paused", reset_nvram=revert.reset_nvram)
            elif run is RunState.PAUSED and revert.run == "running":
                domain.resume()
        except VmkeepError as error:
            return error.message
        return ""

    # -- PutBackRevert -----------------------------------------------------------------------------------------

    def _put_back(self, journal: RestoreJournal, domain: Domain) -> None:
        self._parking.lock(domain, self._stop)
        if journal.stage is RestoreStage.RELEASED:
            self.release(journal.vm_uuid)
            return
        revert = _revert_of(journal)
        if revert.internal and not revert.with_memory and self._was_started(domain, journal, revert):
            # libvirt had reverted it, and whoever started it since found all of the snapshot.
            self._parking.save(replace(journal, stage=RestoreStage.RELEASED))
            self.release(journal.vm_uuid)
            return
        if journal.stage is not RestoreStage.ROLLED_BACK:
            begun = journal.stage is not RestoreStage.PARKED
            if begun and (revert.internal or self._runs_on(domain, revert.overlays)):
                domain.power_off()  # of the revert, and paused: its guest has executed nothing
            if begun and not revert.internal:
                self._parking.require_parked(domain, journal)
            if begun:
                self._parking.save(replace(journal, stage=RestoreStage.BACK))
            withdraw_items(WithdrawItems(journal.items))
            self._undo_disks(domain, journal, revert, begun=begun)
            journal = replace(journal, stage=RestoreStage.ROLLED_BACK)
            # Before the VM may start: from here on nothing of it is taken back.
            self._parking.save(journal)
        if revert.internal:
            self._hypervisor.define(revert.definition, domain.name)
        self._parking.unpark(domain, journal)
        self._parking.end(journal)

    def _was_started(self, domain: Domain, journal: RestoreJournal, revert: SnapshotRevert) -> bool:
        begun = journal.stage is RestoreStage.WRITING
        return begun and domain.state().run is not RunState.OFF and self._is_there(domain, journal, revert)

    def _undo_disks(self, domain: Domain, journal: RestoreJournal, revert: SnapshotRevert, *, begun: bool) -> None:
        for overlay in revert.overlays:
            Path(overlay.path).unlink(missing_ok=True)
        for disk in journal.disks:
            if self._way_back not in internal_snapshots(disk.path, disk.format):
                continue
            if begun:
                self._drop_bitmaps(domain, journal)
                change_internal_snapshot("-a", disk.path, disk.format, self._way_back)
        for disk in journal.disks:
            if self._way_back in internal_snapshots(disk.path, disk.format):
                change_internal_snapshot("-d", disk.path, disk.format, self._way_back)
        if begun and not revert.internal:
            self._undo_current(domain, revert)
            _list_again(domain, revert.checkpoints)

    def _undo_current(self, domain: Domain, revert: SnapshotRevert) -> None:
        """Make the former current snapshot that again. It decides only from which one the next hangs."""
        if revert.former_current in ("", revert.snapshot):
            return
        try:
            self._make_current(domain, revert.former_current, revert.checkpoints)
        except VmkeepError as error:
            _log.warning("current snapshot", vm=domain.name, snapshot=revert.former_current, error=error.message)

    def _settled(self, journal: RestoreJournal, *, forward: bool) -> RestoreSettled:
        how = "finished" if forward else "taken back: the VM is as it was before"
        revert = _revert_of(journal)
        point, known = revert.aim if forward and journal.whole else revert.origin
        told = f"an interrupted revert of VM {journal.vm!r} to snapshot {revert.snapshot} was {how}"
        return RestoreSettled(told, journal.vm_uuid, point or None, known)


# -- what all of it needs --------------------------------------------------------------------------------------


def _forget_for_now(domain: Domain, checkpoints: Sequence[str]) -> None:
    """Let libvirt forget checkpoints of which the journal has all; first it is proved that it takes them again."""
    listed = domain.checkpoint_names()
    known = {str(parse_checkpoint(xml, redefine=True).name): xml for xml in checkpoints}
    there = [name for name in known if name in listed]
    for name in there:
        domain.redefine_checkpoint(known[name])
    for name in there:
        domain.forget_checkpoint(name)


def _list_again(domain: Domain, checkpoints: Sequence[str]) -> None:
    """Let libvirt list checkpoints again that were forgotten; those that it lists are left alone."""
    listed = domain.checkpoint_names()
    for xml in checkpoints:
        if parse_checkpoint(xml, redefine=True).name not in listed:
            domain.redefine_checkpoint(xml)


def _revert_of(journal: RestoreJournal) -> SnapshotRevert:
    assert journal.revert is not None, "the journal is of a restore in place to a point"
    return journal.revert
