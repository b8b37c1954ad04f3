"""A snapshot of a VM on this host: libvirt's, with the state files of the same instant. One object for one operation.

Everything that can be refused is refused before the guardian starts. From then on the keepsake on the host
(``vmkeep.host.records.snapshot``) says how far it is, also to whoever comes after a kill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from vmkeep.config import Settings
from vmkeep.custody.encryption import is_encrypted
from vmkeep.custody.states import SealedSecret
from vmkeep.definition import parse_definition
from vmkeep.errors import HostFileMissing, SnapshotIncomplete, VmBusy, VmkeepError
from vmkeep.filesystem import file_errors
from vmkeep.host.guard.guardian import Guardian
from vmkeep.host.guard.rescue import JobRecord
from vmkeep.host.guard.snapshot_rescue import mark_overlays, put_checkpoints_back
from vmkeep.host.records.lock import lock_vm
from vmkeep.host.records.restore import refuse_while_pending
from vmkeep.host.records.snapshot import (
    KeptSource,
    KeptStates,
    SnapshotRecord,
    drop_states,
    keep_states,
    kept_states,
    make_states_durable,
    remove_keepsake,
)
from vmkeep.host.snapshots.outcome import recorded_snapshot, whole_snapshot
from vmkeep.host.snapshots.overlays import settle_overlays
from vmkeep.host.snapshots.plan import INTERNAL, MEMORY, PlannedSnapshot, plan_snapshot
from vmkeep.host.snapshots.surroundings import Surroundings, surroundings
from vmkeep.host.tasks.snapshots import MakeSnapshot, SnapshotMade, SnapshotSettled, SnapshotStored, StoreSnapshot
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.vm.astray import refuse_astray, refuse_lost
from vmkeep.host.vm.fitness import refuse_beside_a_job, refuse_jobs, require_agent
from vmkeep.host.vm.secrets import seal_for_version
from vmkeep.host.vm.standstill import AGENT_WORK_SECONDS, as_text, require_standing, resume_guest, sync_images
from vmkeep.host.vm.states import StateSource, read_state, state_sources, state_warnings
from vmkeep.host.vm.thawing import thaw
from vmkeep.host.vm.versions import StoredStates, store_states
from vmkeep.hypervisor import Domain, DomainSnapshots, Hypervisor, RunState
from vmkeep.locks import FileLock
from vmkeep.pool import Pool
from vmkeep.repository import Repository
from vmkeep.statefiles.capture import CapturedState
from vmkeep.statefiles.location import StateRoots
from vmkeep.stillness import guest_stands_still
from vmkeep.transfer.tools import require_tools
from vmkeep.values import dataclass

_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is to be made, of what."""

    around: Surroundings
    planned: PlannedSnapshot
    sources: tuple[StateSource, ...]


def snapshot_xml(hypervisor: Hypervisor, request: MakeSnapshot) -> str:
    """Return what libvirt would be asked for; raises what refuses the snapshot. Nothing is changed."""
    domain = hypervisor.domain(request.vm_uuid)
    return plan_snapshot(request, surroundings(domain, hypervisor), int(time.time())).xml


class SnapshotTask:
    """Makes one snapshot. Its tasks are called one after the other; ``stop`` raises when it is cancelled."""

    def __init__(
        self,
        settings: Settings,
        hypervisor: Hypervisor,
        operation: str,
        *,
        stop: Callable[[], None],
        watch: Callable[[Progress], None],
    ) -> None:
        self._settings = settings
        self._hypervisor = hypervisor
        self._operation = operation
        self._place = settings.snapshots_dir / operation
        self._stop = stop
        self._watch = watch
        self._lock: FileLock | None = None

    # -- MakeSnapshot --------------------------------------------------------------------------------------------

    def make(self, request: MakeSnapshot) -> SnapshotMade:
        """Make it. When this raises, libvirt has made none, or the error (SnapshotIncomplete) says that it has."""
        domain = self._hypervisor.domain(request.vm_uuid)
        self._lock_vm(domain.name, domain.uuid)
        try:
            return self._make(request, domain)
        except BaseException:
            self.release()
            raise

    def _lock_vm(self, name: str, uuid: str) -> None:
        if self._lock is None:
            self._lock = lock_vm(self._settings.locks_dir, uuid, name, f"snapshot {self._operation}", self._stop)

    def _make(self, request: MakeSnapshot, domain: Domain) -> SnapshotMade:
        self._watch(Progress("planning"))
        refuse_while_pending(self._settings, domain.name, domain.uuid)
        require_tools("qemu-img", "setpriv", doing=f"look at the disks of {domain.name}")
        prepared = self._prepare(request, domain)
        keepsake = self._keepsake(request, domain, prepared)
        self._stop()
        keepsake.save(self._settings.snapshots_dir)
        try:
            guardian = self._guarded(keepsake)
            try:
                self._stop()
                if not keepsake.stopped:
                    refuse_beside_a_job(domain)
                self._watch(Progress("snapshot"))
                self._ask(request, domain, prepared, keepsake, guardian.hold)
            except BaseException:
                guardian.rescue_now()
                raise
            guardian.done()
        except BaseException as error:
            self._clear_up(domain, keepsake, error)
            raise
        return whole_snapshot(domain, keepsake, self._place)

    def _prepare(self, request: MakeSnapshot, domain: Domain) -> _Prepared:
        off = domain.state().run is RunState.OFF
        if not off:
            refuse_jobs(domain)
        around = surroundings(domain, self._hypervisor)
        if off:
            refuse_lost(domain)
        else:
            refuse_astray(domain, around.definition, self._hypervisor, self._settings, besides=self._operation)
        planned = plan_snapshot(request, around, int(time.time()))
        sources = state_sources(around.definition, StateRoots.of(self._hypervisor.uri))
        if request.quiesce:
            require_agent(domain, running=around.state.run is RunState.RUNNING)
        if not off:
            # What cannot be read while the guest stands still cannot be read now, and now nothing was done yet.
            for source in sources:
                read_state(source, domain.name)
        return _Prepared(around, planned, sources)

    def _keepsake(self, request: MakeSnapshot, domain: Domain, prepared: _Prepared) -> SnapshotRecord:
        planned, run = prepared.planned, prepared.around.state.run
        stopped = run is RunState.OFF
        return SnapshotRecord(
            operation=self._operation,
            uri=self._hypervisor.uri,
            vm=domain.name,
            vm_uuid=domain.uuid,
            name=planned.name,
            begun=int(time.time()),
            kind=planned.kind,
            was_running=run is RunState.RUNNING,
            stopped=stopped,
            sources=tuple(KeptSource(each.kind, str(each.path), each.file, each.format) for each in prepared.sources),
            overlays=planned.overlays,
            checkpoints=tuple(domain.checkpoint_definitions().items()) if stopped else (),
            memory_file=planned.snapshot.memory.file or "",
            quiesced=request.quiesce,
            left_out=planned.left_out,
            warnings=(*planned.warnings, *state_warnings(prepared.around.definition)),
            reused=request.reuse_external,
        )

    def _guarded(self, keepsake: SnapshotRecord) -> Guardian:
        assert self._lock is not None
        record = JobRecord(
            operation=self._operation,
            uri=keepsake.uri,
            vm=keepsake.vm,
            uuid=keepsake.vm_uuid,
            checkpoint="",
            socket="",
            was_running=keepsake.was_running,
            scratch=(),
            stopped=keepsake.stopped,
            quiesced=keepsake.quiesced,
            keepsake=str(self._place),
        )
        with file_errors(self._settings.guards_dir):
            self._settings.guards_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        guardian = Guardian(record, self._settings.guards_dir, hold=(self._lock.descriptor,))
        guardian.wait_ready()
        return guardian

    def _ask(
        self,
        request: MakeSnapshot,
        domain: Domain,
        prepared: _Prepared,
        keepsake: SnapshotRecord,
        hold: Callable[[float], None],
    ) -> None:
        if keepsake.stopped:
            self._ask_of_stopped(request, domain, prepared, keepsake)
        else:
            with guest_stands_still():
                self._ask_of_standing(request, domain, prepared, keepsake, hold)
            if keepsake.kind != "disks" and keepsake.was_running:
                DomainSnapshots(domain).say_it_ran(keepsake.name)
        make_states_durable(self._place)

    def _ask_of_standing(
        self,
        request: MakeSnapshot,
        domain: Domain,
        prepared: _Prepared,
        keepsake: SnapshotRecord,
        hold: Callable[[float], None],
    ) -> None:
        """Freeze, suspend, snapshot, read the state files, resume, thaw: all of one instant."""
        halted, pause_seconds = False, self._settings.longest_pause_seconds
        if keepsake.was_running:
            sync_images(prepared.around.chains)
        try:
            if request.quiesce:
                hold(AGENT_WORK_SECONDS)
                domain.freeze()
            begun = time.monotonic()
            try:
                if keepsake.was_running:
                    hold(pause_seconds)
                    domain.suspend()
                created = datetime.now(UTC)
                self._create(request, domain, prepared.planned)
                states = tuple(read_state(source, domain.name) for source in prepared.sources)
                if keepsake.was_running:
                    hold(pause_seconds)
                require_standing(domain, "its snapshot was made")
                pause_ms = (time.monotonic() - begun) * 1000 if keepsake.was_running else 0.0
                keep_states(self._place, KeptStates(as_text(created), round(pause_ms, 1), states))
                if request.halt:
                    domain.power_off()
                    halted = True
            finally:
                if keepsake.was_running and not halted:
                    resume_guest(domain)
            if request.quiesce and not halted:
                hold(AGENT_WORK_SECONDS)
        finally:
            if request.quiesce and not halted:
                thaw(domain)

    def _create(self, request: MakeSnapshot, domain: Domain, planned: PlannedSnapshot) -> None:
        """Ask libvirt. Saving memory takes as long as it takes; it is watched, and ended when it is cancelled."""
        snapshots = DomainSnapshots(domain)
        if planned.kind != MEMORY:
            snapshots.create(planned.xml, disk_only=planned.disk_only, reuse=request.reuse_external)
            return
        reason: VmkeepError | None = None
        with Pool(1, thread_name_prefix="vmkeep-snapshot") as maker:
            most = 0
            made = maker.submit(snapshots.create, planned.xml, disk_only=False, reuse=request.reuse_external)
            while not wait([made], _LOOK_SECONDS).done:
                done, total = snapshots.saved_bytes()
                most = max(most, done)  # libvirt tells nothing of it any more when it comes to the disks
                self._watch(Progress("saving memory", None, most, max(most, total)))
                try:
                    self._stop()
                except VmkeepError as stopped:
                    reason = stopped
                    snapshots.abort()
            try:
                made.result()
            except VmkeepError as error:
                raise (reason or error) from error

    def _ask_of_stopped(
        self, request: MakeSnapshot, domain: Domain, prepared: _Prepared, keepsake: SnapshotRecord
    ) -> None:
        """Let libvirt forget the checkpoints of a VM that is off, as long as it makes the snapshot.

        libvirt 9.0 refuses one of a VM that is off while it lists a checkpoint. Overlays get the bitmaps afterwards.
        """
        name = domain.name
        for _, xml in keepsake.checkpoints:
            domain.redefine_checkpoint(xml)  # nothing changes by it, but that libvirt is known to take it
        states = _states_of_stopped(prepared.sources, name)
        keep_states(self._place, KeptStates(as_text(datetime.now(UTC)), 0.0, states))
        try:
            for checkpoint, _ in keepsake.checkpoints:
                domain.forget_checkpoint(checkpoint)
            planned = prepared.planned
            disk_only = planned.kind != INTERNAL
            DomainSnapshots(domain).create(planned.xml, disk_only=disk_only, reuse=request.reuse_external)
        finally:
            put_checkpoints_back(keepsake, domain)
        mark_overlays(keepsake, domain)
        again = _states_of_stopped(prepared.sources, name)
        # libvirt 11.3 takes UEFI variables in qcow2 into an internal snapshot, which changes their file and not them.
        inside = {source.kind for source in prepared.sources if source.format == "qcow2" and not disk_only}
        if domain.state().run is RunState.OFF and _but(inside, again) != _but(inside, states):
            drop_states(self._place)
            raise VmBusy(f"the state files of VM {name!r} were changed while its snapshot was made", vm=name)

    # -- what came of it -----------------------------------------------------------------------------------------

    def _clear_up(self, domain: Domain, keepsake: SnapshotRecord, error: BaseException) -> None:
        """Forget what was begun after a failure; raises SnapshotIncomplete when libvirt has made the snapshot.

        One that is whole all the same is left for the next command, which records it.
        """
        try:
            put_checkpoints_back(keepsake, domain)
            made = recorded_snapshot(domain, keepsake)
            if made is None:
                for told in settle_overlays(self._hypervisor, domain, keepsake, self._place, lambda: None):
                    error.add_note(told)
        except VmkeepError as later:
            error.add_note(f"the next command of vmkeep goes on with it: {later}")
            return
        if made is None:
            _remove_memory(keepsake)
            remove_keepsake(self._place)
            return
        if kept_states(self._place) is not None:
            error.add_note(f"snapshot {keepsake.name!r} is there, and the next command of vmkeep records it")
            return
        remove_keepsake(self._place)
        raise SnapshotIncomplete(
            f"snapshot {keepsake.name!r} of VM {keepsake.vm!r} was made without TPM state and UEFI variables: {error}",
            vm=keepsake.vm,
        ) from error

    # -- StoreSnapshot and the end -------------------------------------------------------------------------------

    def store(self, task: StoreSnapshot, repository: Repository) -> SnapshotStored:
        """Put the states into the repository. They stay on the host until CloseSnapshot."""
        keepsake, kept = SnapshotRecord.load(self._place), kept_states(self._place)
        assert kept is not None, "a snapshot that was made has its states"
        self._watch(Progress("storing state"))
        stored = store_states(repository, repository, kept.states, task.known, keepsake.vm_uuid)
        sealed, warning = self._sealed(task, repository, keepsake.vm_uuid, kept.states, stored)
        for sentence in (*stored.older, *([warning] if warning else [])):
            self._watch(Progress("storing state", note=f"warning: {sentence}"))
        return SnapshotStored(
            tuple(
                {
                    "id": ref.version_id,
                    "vm_uuid": keepsake.vm_uuid,
                    "kind": ref.kind,
                    "generation": ref.generation,
                    "sha256": ref.sha256,
                    "size_bytes": ref.size_bytes,
                    "created": kept.created,
                    "because": ref.because,
                }
                for ref in stored.refs
            ),
            () if sealed is None else (sealed,),
        )

    def _sealed(
        self,
        task: StoreSnapshot,
        repository: Repository,
        vm_uuid: str,
        states: Sequence[CapturedState],
        stored: StoredStates,
    ) -> tuple[SealedSecret | None, str]:
        """Seal what opens the TPM state of the snapshot, by the definition that the VM has now."""
        domain = self._hypervisor.find_uuid(vm_uuid)
        if domain is None or not any(each.kind == "tpm" and is_encrypted(each.content) for each in states):
            return None, ""
        version_id = next(ref.version_id for ref in stored.refs if ref.kind == "tpm")
        definition = parse_definition(domain.definition_xml())
        return seal_for_version(self._hypervisor, repository, definition, vm_uuid, version_id, task.secrets)

    def close(self) -> None:
        """The catalogue has it: nothing needs to be kept here any more."""
        remove_keepsake(self._place)
        self.release()

    def settle(self) -> SnapshotSettled:
        """Look what became of a snapshot whose process died. What is left to do for a VM that is off is done."""
        try:
            keepsake = SnapshotRecord.load(self._place)
        except (FileNotFoundError, ValueError):
            remove_keepsake(self._place)  # killed before anything was begun
            return SnapshotSettled("an interrupted snapshot was never begun")
        about = f"an interrupted snapshot ({keepsake.name}) of VM {keepsake.vm!r}"
        domain = self._hypervisor.find_uuid(keepsake.vm_uuid)
        if domain is None:
            remove_keepsake(self._place)
            return SnapshotSettled(f"{about} is gone with the VM")
        self._lock_vm(keepsake.vm, keepsake.vm_uuid)
        put_checkpoints_back(keepsake, domain)
        if recorded_snapshot(domain, keepsake) is None:
            told = settle_overlays(self._hypervisor, domain, keepsake, self._place, self._stop)
            remove_keepsake(self._place)
            return SnapshotSettled("; ".join((f"{about} was not made", *told)))
        if keepsake.stopped:
            mark_overlays(keepsake, domain)
        elif keepsake.kind != "disks" and keepsake.was_running:
            DomainSnapshots(domain).say_it_ran(keepsake.name)
        try:
            return SnapshotSettled(f"{about} was finished", whole_snapshot(domain, keepsake, self._place))
        except SnapshotIncomplete as error:
            return SnapshotSettled(
                f"{about} was made by libvirt, and its TPM state and UEFI variables are not kept with it: it stays as "
                f"a snapshot of the disks. {error.hint}"
            )

    def release(self) -> None:
        """Let go of the VM's lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def release_guest(self) -> None:
        """Nothing holds the guest here but the instant, which the guardian watches."""


def _states_of_stopped(sources: tuple[StateSource, ...], vm: str) -> tuple[CapturedState, ...]:
    """Read the state files that are there; a VM that was never started has none yet."""
    states = []
    for source in sources:
        with suppress(HostFileMissing):
            states.append(read_state(source, vm))
    return tuple(states)


def _but(kinds: set[str], states: tuple[CapturedState, ...]) -> tuple[CapturedState, ...]:
    return tuple(state for state in states if state.kind not in kinds)


def _remove_memory(keepsake: SnapshotRecord) -> None:
    """Remove the half of a memory that libvirt did not remove; nothing was at its place before."""
    if keepsake.memory_file:
        with suppress(OSError):
            Path(keepsake.memory_file).unlink(missing_ok=True)
