"""A VM looked at for a check-up: its job, checkpoints and bitmaps, its state files, its disks, its last point."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line, shell_word
from vmkeep.config import Settings, VmSettings
from vmkeep.custody.standing import Standing, judge_state
from vmkeep.definition import Definition, DefinitionError, TpmBackend, parse_definition
from vmkeep.errors import DiskUnsupported, HeaderRefused, PermissionRefused, StateUnsupported, VmkeepError, VmNotFound
from vmkeep.filesystem import size_text
from vmkeep.host.checkpoints.health import repair_checkpoint, survey_checkpoints
from vmkeep.host.checkup.checkpoints import checkpoint_findings
from vmkeep.host.checkup.heldscratch import held_scratch, let_go
from vmkeep.host.guard.rescue import end_job
from vmkeep.host.records.sockets import operation_of
from vmkeep.host.tasks.checkpoints import CheckpointRequest
from vmkeep.host.tasks.checkup import (
    CheckupRequest,
    CloseScratch,
    DefineSecret,
    EndJob,
    Finding,
    FindingCode,
    ForgetSnapshot,
    MendCheckpoint,
    MergeOverlay,
    Operations,
    RememberedVm,
    VmMend,
)
from vmkeep.host.vm.astray import LOST_REMEDY, astray_disks, lost_vm
from vmkeep.host.vm.chains import chain_faults
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.host.vm.deletions import deletion_notes
from vmkeep.host.vm.fitness import refuse_jobs, stuck_job_remedy
from vmkeep.host.vm.found_states import BACKUP_SUFFIX, found_state
from vmkeep.host.vm.images import image_chains, top_images
from vmkeep.host.vm.merging import merge_overlay
from vmkeep.host.vm.moments import refuse_torn_checkpoints
from vmkeep.host.vm.qemulog import SERVES_IO_THREADS_UNHARMED, qemu_version
from vmkeep.host.vm.rights import STATE_NAMES, lacking_rights
from vmkeep.host.vm.states import state_sources
from vmkeep.host.vm.survey import survey
from vmkeep.hypervisor import Domain, DomainSnapshots, Hypervisor, RunState, Withheld
from vmkeep.locks import FileLock
from vmkeep.planning import clocks
from vmkeep.planning.bitmaps import OLD_QCOW2, Chain, amending
from vmkeep.planning.images import ImageLayer
from vmkeep.statefiles.location import StateRoots
from vmkeep.transfer.imagefile import describe_image, look_at
from vmkeep.values import dataclass

_OLD: Final = timedelta(days=7)
_CLOCK_STATUS: Final = "timedatectl"
_ANY_OF_OURS: Final = "vmkeep-"
_OLDER: Final = (Standing.SUPERSEDED, Standing.CONFLICT, Standing.UNKNOWN)
_MISSING: Final = {"tpm": FindingCode.TPM_MISSING, "nvram": FindingCode.NVRAM_MISSING}


def check_vm(
    domain: Domain,
    hypervisor: Hypervisor,
    settings: Settings,
    request: CheckupRequest,
    operations: Operations,
    *,
    shared: Collection[str],
    parked: bool,
) -> Iterator[Finding]:
    """Yield what there is to say of a VM.

    ``shared`` are paths of images that several VMs of the host use. ``parked``: a restore in place is to be finished,
    so its disks and checkpoints are not what they will be. A VM that vanishes meanwhile has no more findings.
    """
    try:
        patient = _Patient.of(domain, hypervisor, settings, request, operations, shared)
    except VmNotFound:
        return
    except (VmkeepError, DefinitionError) as error:
        yield _unreadable(domain, error)
        return
    for part in patient.parts(parked=parked):
        try:
            yield from part()
        except VmNotFound:
            return
        except (VmkeepError, DefinitionError) as error:
            yield _unreadable(domain, error)  # and what the other parts say stands


def _unreadable(domain: Domain, error: Exception) -> Finding:
    return Finding(FindingCode.VM_UNREADABLE, f"not all of the VM could be looked at: {error}", vm=domain.name)


@dataclass(frozen=True, slots=True)
class _Patient:
    """One VM and all that is known of it."""

    domain: Domain
    hypervisor: Hypervisor
    settings: Settings
    request: CheckupRequest
    operations: Operations
    shared: Collection[str]
    run: RunState
    definition: Definition
    known: RememberedVm

    @classmethod
    def of(
        cls,
        domain: Domain,
        hypervisor: Hypervisor,
        settings: Settings,
        request: CheckupRequest,
        operations: Operations,
        shared: Collection[str],
    ) -> _Patient:
        run = domain.state().run
        definition = with_volumes_found(parse_definition(domain.definition_xml()), hypervisor)
        return cls(domain, hypervisor, settings, request, operations, shared, run, definition, request.vm(domain.uuid))

    @property
    def running(self) -> bool:
        return self.run in (RunState.RUNNING, RunState.PAUSED)

    def parts(self, *, parked: bool) -> tuple[Callable[[], Iterator[Finding]], ...]:
        """Return what is looked at, each by itself."""
        always = (
            self._settings_of_it,
            self._rights,
            self._definition,
            self._writes,
            self._tpm,
            self._state_files,
            self._points,
            self._snapshots,
        )
        return always if parked else (*always, self._disks, self._io_threads, self._moments)

    def _finding(
        self,
        code: FindingCode,
        message: str,
        *,
        remedy: str | None = None,
        path: str | None = None,
        mend: VmMend | None = None,
    ) -> Finding:
        return Finding(code, message, remedy=remedy, vm=self.domain.name, path=path, mend=mend)

    # -- settings and rights -----------------------------------------------------------------------------------

    def _settings_of_it(self) -> Iterator[Finding]:
        known = {disk.target for disk in self.definition.disks}
        for target in self._lasting.exclude:
            if target not in known:
                message = f"the settings leave out its disk {target}, and it has none of that name"
                remedy = f"Correct exclude of the VM in {self.settings.settings_path}."
                path = str(self.settings.settings_path)
                yield self._finding(FindingCode.SETTING_UNUSED, message, remedy=remedy, path=path)

    @property
    def _lasting(self) -> VmSettings:
        return self.settings.of_vm(self.domain.name, self.domain.uuid)

    def _rights(self) -> Iterator[Finding]:
        never = self._lasting.exclude
        lacking = lacking_rights(
            self.definition, self.hypervisor.uri, running=self.running, left_out=never, looking=True
        )
        if lacking:
            message = f"{'; '.join(map(str, lacking))}: a point of it needs root"
            yield self._finding(FindingCode.RIGHTS_LACKING, message, remedy="sudo vmkeep doctor", path=lacking[0].path)

    # -- definition, disks, points -----------------------------------------------------------------------------

    def _definition(self) -> Iterator[Finding]:
        if not self.running or not self.domain.is_persistent():
            return
        next_time = with_volumes_found(parse_definition(self.domain.definition_xml(inactive=True)), self.hypervisor)
        now_has, will_have = _sources(self.definition), _sources(next_time)
        if now_has != will_have:
            differing = sorted(target for target, _ in now_has ^ will_have)
            message = (
                f"it runs with other disks than it will have at its next start ({', '.join(dict.fromkeys(differing))})"
            )
            remedy = command_line("virsh dumpxml", self.domain.name, options="--inactive")
            yield self._finding(FindingCode.DEFINITION_DIFFERS, message, remedy=remedy)
            yield from self._dropped_at_next_start(next_time)
        # Of a VM that is off, the disks themselves are told of.
        for target, fault in chain_faults(next_time, top_images(next_time)).items():
            message = f"disk {target} will be seen otherwise at its next start than its image says: {fault}"
            yield self._finding(
                FindingCode.DEFINITION_DIFFERS, message, remedy=command_line("virsh edit", self.domain.name)
            )

    def _dropped_at_next_start(self, next_time: Definition) -> Iterator[Finding]:
        """Yield the disks whose next start goes back to an image below the one that the guest writes to."""
        for target, chain in image_chains(self.definition).items():
            disk, later = self.definition.disk(target), next_time.disk(target)
            if disk is None or later is None or disk.transient or later.source is None:
                continue
            if any(os.path.realpath(layer.path) == os.path.realpath(later.source) for layer in chain[1:]):
                message = (
                    f"disk {target} is on {disk.source}, and at its next start on {later.source} below it, without "
                    "what the guest wrote since"
                )
                remedy = f"{command_line('virsh edit', self.domain.name)}, unless that is what you want"
                yield self._finding(FindingCode.WRITES_ASTRAY, message, remedy=remedy, path=disk.source)

    def _writes(self) -> Iterator[Finding]:
        if self.run is RunState.OFF and (lost := lost_vm(self.domain)) is not None:
            yield self._finding(FindingCode.WRITES_ASTRAY, lost, remedy=LOST_REMEDY)
        if not self.running or self._is_worked_on():
            return  # a snapshot that is under way changes QEMU first, and libvirt afterwards
        for astray in astray_disks(self.domain, self.definition, self.hypervisor):
            message = f"{astray}; what the guest writes is in no point, and the VM loses it when it is stopped"
            if astray.overlay is None:
                edit = command_line("virsh edit", self.domain.name)
                remedy = f"Shut the guest down, then `{edit}`: give the disk the image that QEMU wrote to"
                yield self._finding(FindingCode.WRITES_ASTRAY, message, remedy=remedy, path=astray.image)
                continue
            mend = MergeOverlay(self.domain.uuid, astray.target, astray.image, astray.overlay)
            yield self._finding(FindingCode.WRITES_ASTRAY, message, path=astray.overlay, mend=mend)

    def _is_worked_on(self) -> bool:
        lock = self.settings.locks_dir / f"{self.domain.uuid}.lock"
        return self.domain.uuid not in self.request.held and FileLock.is_held(lock)

    def _disks(self) -> Iterator[Finding]:
        for disk in survey(self.domain, self.hypervisor, self.settings).disks:
            if disk.problem is not None and not disk.left_out and disk.device not in ("cdrom", "floppy"):
                message = f"disk {disk.target} cannot be in a point: {disk.problem}"
                remedy = command_line(f"vmkeep backup --exclude {shell_word(disk.target)}", self.domain.name)
                yield self._finding(FindingCode.DISK_NOT_KEPT, message, remedy=remedy, path=disk.source)

    def _io_threads(self) -> Iterator[Finding]:
        threaded = [disk.target for disk in self.definition.disks if disk.in_io_thread and not disk.removable]
        if not threaded or not self.running:
            return
        version = qemu_version(self.domain.name, self.hypervisor)
        if version < SERVES_IO_THREADS_UNHARMED:
            qemu = ".".join(map(str, version))
            message = (
                f"disks of it are in I/O threads ({', '.join(threaded)}), and QEMU {qemu} dies when a client of a "
                "backup job leaves such a disk early: vmkeep keeps it alive, other programs may not"
            )
            yield self._finding(FindingCode.IO_THREADS, message)

    def _points(self) -> Iterator[Finding]:
        if self.request.remembered is None:
            return
        backup = command_line("vmkeep backup", self.domain.name)
        yield from self._clocks()
        # That of the state which a restore left is no point that somebody or a timer made.
        newest = next((point for point in self.known.points if not point.safety), None)
        if self._lasting.skip:
            return
        if newest is None:
            yield self._finding(FindingCode.NEVER_BACKED_UP, "there is no point of it", remedy=backup)
            return
        age = datetime.now(UTC) - datetime.fromisoformat(newest.created)
        if age > _OLD:
            message = f"its last point, {newest.id}, is {age.days} days old"
            yield self._finding(FindingCode.POINT_OLD, message, remedy=backup)

    def _clocks(self) -> Iterator[Finding]:
        """Tell of points whose clocks cannot be right. None of it changes what comes before what."""
        stamps = [clocks.Stamp.of(point.id, point.created) for point in reversed(self.known.points)]
        ahead = clocks.ahead(stamps, datetime.now(UTC))
        if ahead:
            furthest = max(ahead, key=lambda stamp: stamp.clock)
            many = "a point of it says" if len(ahead) == 1 else f"{len(ahead)} points of it say"
            message = (
                f"{many} a time that is still to come ({furthest.point}: {furthest}): the clock was ahead then, or "
                "that of this host is behind. What is in them and their order is right; how old they are cannot be told"
            )
            yield self._finding(FindingCode.POINT_AHEAD, message, remedy=_CLOCK_STATUS)
        back = clocks.went_back(stamps)
        if back:
            one, other = back[-1]
            message = (
                f"the clocks of its points are not in the order in which they were made: {other.point} says {other}, "
                f"and {one.point}, which was made before it, says {one}. `@latest` and the lists go by the order, "
                "VM@TIME goes by the clocks; the id of a point always means that point"
            )
            yield self._finding(FindingCode.CLOCK_WENT_BACK, message, remedy=_CLOCK_STATUS)

    def _snapshots(self) -> Iterator[Finding]:
        listed = DomainSnapshots(self.domain).names() if self.known.snapshots else frozenset()
        for snapshot, name in self.known.snapshots:
            if name not in listed:
                message = (
                    f"libvirt does not list the snapshot {name} any more, and its TPM and UEFI state is still kept"
                )
                mend = ForgetSnapshot(self.domain.uuid, snapshot, name)
                yield self._finding(FindingCode.SNAPSHOT_GONE, message, mend=mend)
        yield from self._unfinished_deletions()

    def _unfinished_deletions(self) -> Iterator[Finding]:
        notes = {note.snapshot: note for note in deletion_notes(self.settings.deletions_dir, self.domain.uuid)}
        if not notes:
            return
        written = {disk.source for disk in self.definition.disks}
        for snapshot in self.domain.snapshots():
            name = str(snapshot.name)
            note = notes.get(name)
            if note is None or note.creation_time != snapshot.creation_time or not note.torn:
                continue
            message = (
                f"the deletion of snapshot {name} was begun and did not end: what it kept of disk "
                f"{', '.join(sorted(note.torn))} is overwritten in part, and nothing goes back to it"
            )
            # libvirt merges nothing any more once a disk is on the snapshot's own image.
            merged = any(image.path in written for image in note.images)
            options = "--metadata" if merged else ""
            remedy = command_line("vmkeep snapshot delete", self.domain.name, name, options=options)
            yield self._finding(FindingCode.DELETION_UNFINISHED, message, remedy=remedy)

    # -- TPM and NVRAM -----------------------------------------------------------------------------------------

    def _tpm(self) -> Iterator[Finding]:
        tpm = self.definition.tpm
        if tpm is None:
            return
        if tpm.backend is not TpmBackend.EMULATOR:
            message = f"its TPM is a {tpm.backend} one, whose state is in no point; keep the guest's recovery keys"
            yield self._finding(FindingCode.TPM_NOT_KEPT, message)
        elif tpm.secret_uuid is not None:
            yield from self._tpm_secret(tpm.secret_uuid)

    def _tpm_secret(self, uuid: str) -> Iterator[Finding]:
        here = self.hypervisor.secrets.read(uuid)
        encrypted = f"its TPM state is encrypted with the secret {uuid}"
        if here in (Withheld.ABSENT, Withheld.EMPTY):
            what = "which libvirt does not have" if here is Withheld.ABSENT else "which has no value in libvirt"
            point = next((point.id for point in self.known.points if uuid in point.secrets), "")
            pin = "" if point else self.known.secret_pins.get(uuid, "")
            if point or pin:
                message = f"{encrypted}, {what}; " + (f"point {point} holds it" if point else "its value is kept")
                mend = DefineSecret(self.domain.uuid, uuid, point, pin)
                yield self._finding(FindingCode.TPM_SECRET_MISSING, message, mend=mend)
            else:
                remedy = "virsh secret-define FILE, then virsh secret-set-value, with the secret's UUID and value"
                yield self._finding(FindingCode.TPM_SECRET_MISSING, f"{encrypted}, {what}", remedy=remedy)
        elif isinstance(here, Withheld):
            why = "is private" if here is Withheld.PRIVATE else "libvirt does not give out"
            message = (
                f"{encrypted}, which {why}: it is in no point and kept with no version, so keep its value elsewhere"
            )
            yield self._finding(FindingCode.TPM_NOT_KEPT, message)

    def _state_files(self) -> Iterator[Finding]:
        try:
            sources = state_sources(self.definition, StateRoots.of(self.hypervisor.uri))
        except StateUnsupported as error:
            yield self._finding(FindingCode.TPM_NOT_KEPT, f"not all of its state can be in a point: {error}")
            return
        for source in sources:
            grounds = self.known.grounds
            if not grounds.of_kind(source.kind):
                continue
            judged = judge_state(found_state(source), grounds)
            if judged.standing is Standing.MISSING:
                yield self._state_missing(source.kind, source.path)
            elif judged.from_backup:
                yield self._state_from_backup(source.path)
            elif judged.standing in _OLDER and judged.generation is not None:
                newest = grounds.newest(source.kind)
                generation = judged.generation if newest is None else newest.generation
                yield self._state_superseded(source.kind, source.path, judged.generation, generation)

    def _state_missing(self, kind: str, path: Path) -> Finding:
        what = "blank TPM, to which nothing that the guest sealed opens" if kind == "tpm" else "blank set of them"
        message = f"its {STATE_NAMES[kind]} should be there and is gone: starting the VM now would make a {what}"
        if kind == "nvram":
            message = message.replace("and is gone", "and are gone")
        return self._finding(_MISSING[kind], message, remedy=self._restore_state(kind), path=str(path))

    def _state_superseded(self, kind: str, path: Path, generation: int, newest: int) -> Finding:
        known = (
            "somebody put an older file back" if self.known.grounds.tracked else "an older file is there, meant or not"
        )
        message = (
            f"its {STATE_NAMES[kind]} at {path} equals version {generation}, and version {newest} is the newest: "
            f"{known}, which rolls the guest's state back"
        )
        return self._finding(FindingCode.STATE_SUPERSEDED, message, remedy=self._restore_state(kind), path=str(path))

    def _state_from_backup(self, path: Path) -> Finding:
        message = (
            f"its TPM state should be there and is gone; swtpm would take {path.name}{BACKUP_SUFFIX} in its place, "
            "which is the state before, and rolls the guest's TPM back"
        )
        return self._finding(FindingCode.TPM_MISSING, message, remedy=self._restore_state("tpm"), path=str(path))

    def _restore_state(self, kind: str) -> str:
        """Return the command that puts back the version that counts."""
        return command_line("vmkeep state restore", self.domain.name, options=f"--kind {kind}")

    # -- job, checkpoints, bitmaps -----------------------------------------------------------------------------

    def _moments(self) -> Iterator[Finding]:
        if self._is_worked_on():
            holder = FileLock.holder(self.settings.locks_dir / f"{self.domain.uuid}.lock") or "an operation"
            message = f"{holder} works on it now, so its job, checkpoints and bitmaps were not judged"
            yield self._finding(FindingCode.VM_IN_USE, message)
            return
        yield from self._job()
        yield from self._checkpoints_and_bitmaps()

    def _job(self) -> Iterator[Finding]:
        socket = self.domain.backup_socket()
        if socket is None:
            if self.domain.has_stuck_job():
                message = "libvirt keeps a job that is over, because libvirtd was killed while a backup began"
                remedy = stuck_job_remedy(self.domain.name)
                yield self._finding(FindingCode.JOB_STUCK, message, remedy=remedy)
            else:
                yield from self._held_scratch()
            return
        operation = operation_of(socket, self.settings)
        ended = self.operations.ended(operation) if operation is not None else None
        if ended is not None:
            message = f"a backup job of the operation {ended.id}, which has ended, still runs and fills its scratch"
            yield self._finding(FindingCode.LEFT_JOB, message, mend=EndJob(self.domain.uuid, socket))
        elif operation is None or self.operations.find(operation) is None:
            message = "a backup job that is not this installation's runs; backups are refused until it ends"
            remedy = command_line("virsh domjobinfo", self.domain.name)
            yield self._finding(FindingCode.FOREIGN_JOB, message, remedy=remedy, path=socket or None)

    def _held_scratch(self) -> Iterator[Finding]:
        for path, size_bytes in held_scratch(self.domain).items():
            message = (
                f"QEMU holds the scratch file of a backup that is over, and {size_text(size_bytes)} of its file system "
                "with it until the VM ends: libvirtd died before it had closed the file"
            )
            yield self._finding(FindingCode.SCRATCH_HELD, message, path=path, mend=CloseScratch(self.domain.uuid, path))

    def _checkpoints_and_bitmaps(self) -> Iterator[Finding]:
        chains: dict[str, Chain] = {}
        for disk in self.definition.disks:
            if disk.removable or disk.source is None or disk.source_kind not in ("file", "block"):
                continue
            try:
                chains[disk.target] = _chain(disk.source, disk.image_format)
            except PermissionRefused:
                return  # what this user may not do was said, and without its images nothing of ours can be judged
            except HeaderRefused as error:
                message = f"disk {disk.target} cannot be in a point while the VM is off: {error.message}"
                yield self._finding(FindingCode.IMAGE_UNREADABLE, message, remedy=error.hint, path=disk.source)
                with suppress(VmkeepError):
                    chains[disk.target] = (look_at(disk.source, disk.image_format),)
            except VmkeepError as error:
                message = f"the image of disk {disk.target} cannot be read: {error}"
                yield self._finding(FindingCode.IMAGE_UNREADABLE, message, path=disk.source)
        yield from self._without_bitmaps(chains)
        images = {target: chain[0] for target, chain in chains.items()}
        yield from self._foreign(self.domain.checkpoint_names(), images)
        if self.request.repository is None or self.request.remembered is None:
            return  # without them nothing can be said of ours
        asked = CheckpointRequest(
            vm=self.domain.uuid,
            repository=self.request.repository,
            points=self.known.bases,
            others=self.request.others,
        )
        surveyed = survey_checkpoints(self.domain, self.hypervisor, self.settings, asked)
        yield from checkpoint_findings(self.domain.name, self.domain.uuid, surveyed)

    def _without_bitmaps(self, chains: Mapping[str, Chain]) -> Iterator[Finding]:
        for disk in self.definition.disks:
            amend = amending(disk, chains.get(disk.target, ()))
            if amend is not None:
                message = f"disk {disk.target}: {OLD_QCOW2}, so each backup reads the disk whole"
                remedy = f"with the VM off: {amend}"
                yield self._finding(FindingCode.IMAGE_WITHOUT_BITMAPS, message, remedy=remedy, path=disk.source)

    def _foreign(self, checkpoints: Collection[str], images: Mapping[str, ImageLayer]) -> Iterator[Finding]:
        foreign = sorted(name for name in checkpoints if not name.startswith(_ANY_OF_OURS))
        if foreign:
            message = f"it has checkpoints that are not vmkeep's ({', '.join(foreign)}); they are left alone"
            yield self._finding(FindingCode.FOREIGN_CHECKPOINT, message)
        for target, image in images.items():
            names = {bitmap.name for bitmap in image.bitmaps if not bitmap.name.startswith(_ANY_OF_OURS)}
            if unlisted := sorted(names.difference(checkpoints)):
                message = (
                    f"disk {target} has bitmaps that are not vmkeep's ({', '.join(unlisted)}); they are left alone"
                )
                yield self._finding(FindingCode.FOREIGN_BITMAP, message, path=image.path)


def merge_astray(domain: Domain, hypervisor: Hypervisor, mend: MergeOverlay) -> str:
    """Write an overlay into the image that libvirt says the VM is on. The caller holds the VM's lock."""
    refuse_jobs(domain)
    merge_overlay(domain, mend.target, mend.image, mend.overlay, uri=hypervisor.uri, stop=lambda: None)
    return (
        f"merged {mend.overlay} into {mend.image}, which disk {mend.target} of {domain.name} is on again; the overlay "
        f"is left, and the VM needs it no more: {command_line('rm --', mend.overlay)}"
    )


def mend_vm(domain: Domain, hypervisor: Hypervisor, mend: EndJob | CloseScratch | MendCheckpoint) -> str:
    """Carry out what a finding says. The caller holds the VM's lock."""
    if isinstance(mend, EndJob):
        if domain.backup_socket() == mend.socket:
            end_job(domain, mend.socket)
        return f"ended the backup job of {domain.name}"
    if isinstance(mend, CloseScratch):
        let_go(domain, mend.path)
        return f"had QEMU close the scratch file {mend.path} of {domain.name}"
    refuse_torn_checkpoints(domain)
    told = [repair_checkpoint(domain, hypervisor, step).told for step in mend.steps]
    return f"{domain.name}: {'; '.join(told)}"


def _chain(path: str, image_format: str) -> Chain:
    """Return the images of a disk; only the top one where what is below it is none that is read."""
    try:
        return describe_image(path, image_format)
    except HeaderRefused:
        raise
    except DiskUnsupported:
        return describe_image(path, image_format, chain=False)


def _sources(definition: Definition) -> set[tuple[str, str | None]]:
    return {(disk.target, disk.source) for disk in definition.disks if not disk.removable}
