"""A point of one VM on this host: plan, instant, copy, end. One object lives from OpenPoint to its close.

Nothing of the guest is touched before the repository is open for writing and the guardian watches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from vmkeep.config import Settings
from vmkeep.definition import Definition, parse_definition
from vmkeep.errors import (
    HypervisorUnavailable,
    IntegrityError,
    JobAborted,
    PointNotFound,
    TransferError,
    VmBusy,
    VmkeepError,
    VmNotFound,
)
from vmkeep.host.guardian import Guardian
from vmkeep.host.instant import Instant, backup_xml, checkpoint_xml, fix_instant, state_sources
from vmkeep.host.lock import FileLock
from vmkeep.host.preparation import (
    base_of,
    definition_to_keep,
    disk_sizes,
    plannable_disks,
    refusal,
    scratch_directory,
    state_warnings,
)
from vmkeep.host.safety import JobRecord, Stage, end_job, remove_leavings
from vmkeep.host.survey import Progress
from vmkeep.host.tasks import CopyPoint, KnownPoint, KnownState, OpenPoint, PointClosed, PointCopied, PointOpened
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.planning import (
    BitmapHealth,
    DiskPlan,
    Mode,
    PointPlan,
    PointRequest,
    Refused,
    plan_point,
)
from vmkeep.repository import ExcludedDisk, PointDisk, PointRecord, PointWriter, Repository, StateRef, StateVersion
from vmkeep.statefiles.capture import CapturedState
from vmkeep.statefiles.location import StateRoots
from vmkeep.transfer.capture import capture_disk
from vmkeep.transfer.nbd import NbdSource

_log = structlog.get_logger(__name__)
_GUARDIAN_SECONDS = 10.0
_WAIT_SECONDS = 0.1


@dataclass(slots=True)
class _Opened:
    """What exists between the instant and the end of the job."""

    domain: Domain
    definition: Definition
    definition_xml: str
    plan: PointPlan
    base: PointRecord | None
    sizes: dict[str, int]
    dirty_bytes: dict[str, int]
    guardian: Guardian
    record: JobRecord
    writer: PointWriter
    instant: Instant
    warnings: list[str] = field(default_factory=list)


class Point:
    """Takes one point. Its tasks are called one after the other; ``stop`` raises when the operation is cancelled."""

    def __init__(
        self,
        settings: Settings,
        hypervisor: Hypervisor,
        repository: Repository,
        request: OpenPoint,
        *,
        stop: Callable[[], None],
        watch: Callable[[Progress], None],
    ) -> None:
        self._settings = settings
        self._hypervisor = hypervisor
        self._repository = repository
        self._request = request
        self._stop = stop
        self._watch = watch
        self._lock: FileLock | None = None
        self._opened: _Opened | None = None
        # Part of the name is the repository, so that two of them can keep the same VM without removing each
        # other's checkpoints as left-overs.
        self._prefix = f"vmkeep-{repository.id[:8]}-"
        self._checkpoint = self._prefix + request.point_id

    def serve(self, *, stop: Callable[[], None], watch: Callable[[Progress], None]) -> None:
        """Let the next task answer to these."""
        self._stop = stop
        self._watch = watch

    # -- OpenPoint ---------------------------------------------------------------------------------------------

    def open(self) -> PointOpened:
        """Plan and fix the instant; on failure nothing of it is left."""
        domain = self._hypervisor.domain(self._request.vm_uuid)
        self._lock = self._lock_vm(domain)
        try:
            return self._open(domain)
        except BaseException:
            self._release()
            raise

    def _open(self, domain: Domain) -> PointOpened:
        self._watch(Progress("planning"))
        _refuse_beside_a_job(domain)
        run = domain.state().run
        live_xml = domain.definition_xml(secure=True)
        live = parse_definition(live_xml)
        definition_xml, warnings = definition_to_keep(domain, live, live_xml)
        sources = state_sources(live, StateRoots.of(self._hypervisor.uri))
        warnings += state_warnings(live)
        known = self._remove_left_overs(domain) if run in (RunState.RUNNING, RunState.PAUSED) else frozenset[str]()
        base_point, base = self._find_base(known, warnings)
        sizes = disk_sizes(domain, live)
        dirty = self._dirty_bytes(domain, base_point, known)
        plan = self._plan(domain.name, run, live, base_point, known, sizes, dirty)
        warnings += [warned.message for warned in plan.warnings]
        self._stop()
        host = self._hypervisor.identity()[1]
        writer = self._repository.begin(
            purpose=f"point {self._request.point_id}",
            host=host,
            cache=self._settings.cache_dir,
            workers=self._settings.workers,
            point_id=self._request.point_id,
        )
        try:
            guardian, record = self._start_guardian(domain, live, plan, was_running=run is RunState.RUNNING)
        except BaseException:
            writer.abort()
            raise
        try:
            self._watch(Progress("instant"))
            self._stop()
            _refuse_beside_a_job(domain)
            socket = Path(record.socket)
            scratch = dict(zip((disk.target for disk in plan.disks), map(Path, record.scratch), strict=True))
            instant = fix_instant(
                domain,
                backup_xml(plan, live, socket=socket, scratch=scratch),
                checkpoint_xml(plan, live, self._checkpoint),
                sources,
                running=record.was_running,
            )
            guardian.stage(Stage.COPY)
        except BaseException:
            writer.abort()
            guardian.rescue_now()
            raise
        self._opened = _Opened(
            domain, live, definition_xml, plan, base, sizes, dirty, guardian, record, writer, instant, warnings
        )
        incremental = any(disk.mode is Mode.INCREMENTAL for disk in plan.disks)
        return PointOpened(
            point_id=self._request.point_id,
            vm_uuid=domain.uuid,
            vm_name=domain.name,
            created=instant.created,
            checkpoint=self._checkpoint,
            base=base.id if base is not None and incremental else None,
            pause_ms=instant.pause_ms,
            warnings=tuple(warnings),
        )

    def _lock_vm(self, domain: Domain) -> FileLock:
        path = self._settings.locks_dir / f"{domain.uuid}.lock"
        deadline = time.monotonic() + _GUARDIAN_SECONDS
        note = f"point {self._request.point_id} (process {os.getpid()})"
        while (lock := FileLock.try_acquire(path, note=note)) is None:
            self._stop()
            if FileLock.is_inherited(path) and time.monotonic() < deadline:
                time.sleep(_WAIT_SECONDS)  # the guardian of a killed point is about to be done
                continue
            holder = FileLock.holder(path) or "another operation"
            raise VmBusy(f"{holder} works on VM {domain.name!r}", vm=domain.name)
        return lock

    def _remove_left_overs(self, domain: Domain) -> frozenset[str]:
        """Delete checkpoints of ours that belong to no point; return the names that libvirt lists then."""
        names = domain.checkpoint_names()
        of_points = {base.checkpoint for base in self._request.bases}
        left_over = {name for name in names if name.startswith(self._prefix) and name not in of_points}
        for name in sorted(left_over):
            _log.info("left-over checkpoint", vm=domain.name, checkpoint=name)
            domain.delete_checkpoint(name)
        return names - left_over

    def _find_base(self, listed: frozenset[str], warnings: list[str]) -> tuple[KnownPoint | None, PointRecord | None]:
        """Return the newest point whose checkpoint libvirt lists (or else the newest) with its record."""
        bases = self._request.bases
        chosen = next((base for base in bases if base.checkpoint in listed), bases[0] if bases else None)
        if chosen is None or self._request.full:
            return chosen, None
        try:
            return chosen, self._repository.point(chosen.point_id)
        except (IntegrityError, PointNotFound) as error:
            warnings.append(f"The point {chosen.point_id} cannot be built on, so all disks are read whole: {error}")
            return None, None

    def _dirty_bytes(self, domain: Domain, base: KnownPoint | None, listed: frozenset[str]) -> dict[str, int]:
        if base is None or self._request.full or base.checkpoint not in listed:
            return {}
        return domain.checkpoint_dirty_bytes(base.checkpoint)

    def _plan(
        self,
        vm: str,
        run: RunState,
        live: Definition,
        base: KnownPoint | None,
        listed: frozenset[str],
        sizes: dict[str, int],
        dirty: dict[str, int],
    ) -> PointPlan:
        bitmaps = {
            disk.target: BitmapHealth.SOUND if disk.target in dirty else BitmapHealth.BROKEN for disk in live.disks
        }
        outcome = plan_point(
            PointRequest(
                vm=vm,
                running=run in (RunState.RUNNING, RunState.PAUSED),
                disks=plannable_disks(live, sizes, self._settings.scratch_dir),
                base=None if base is None else base_of(base),
                checkpoint_listed=base is not None and base.checkpoint in listed,
                bitmaps=bitmaps,
                force_full=self._request.full,
                exclude=frozenset(self._request.exclude),
            )
        )
        if isinstance(outcome, Refused):
            raise refusal(outcome, vm)
        return outcome

    def _start_guardian(
        self, domain: Domain, live: Definition, plan: PointPlan, *, was_running: bool
    ) -> tuple[Guardian, JobRecord]:
        directory = self._settings.run_dir / self._request.point_id[:12]
        scratch = []
        for planned in plan.disks:
            disk = live.disk(planned.target)
            assert disk is not None
            assert disk.source is not None
            name = f".{Path(disk.source).name}.{planned.target}.{self._request.point_id[:12]}.scratch"
            scratch.append(str(scratch_directory(disk.source, self._settings.scratch_dir) / name))
        record = JobRecord(
            operation=self._request.point_id,
            uri=self._hypervisor.uri,
            vm=domain.name,
            uuid=domain.uuid,
            checkpoint=self._checkpoint,
            socket=str(directory / "nbd"),
            was_running=was_running,
            scratch=tuple(scratch),
        )
        self._settings.guards_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        assert self._lock is not None
        guardian = Guardian(record, self._settings.guards_dir, hold=(self._lock.descriptor,))
        guardian.wait_ready()
        try:
            # After the guardian, which removes it: nothing is left when vmkeep is killed in between.
            _make_socket_directory(directory, live.dac_owner)
        except BaseException:
            guardian.rescue_now()
            raise
        return guardian, record

    # -- CopyPoint ---------------------------------------------------------------------------------------------

    def copy(self, request: CopyPoint) -> PointCopied:
        """Copy the disks and commit the point; the job is left running."""
        opened = self._require_opened()
        try:
            disks = self._copy_disks(opened)
            states, new_states = self._store_states(opened)
            record = PointRecord(
                id=request.point_id,
                vm_uuid=opened.domain.uuid,
                vm_name=opened.domain.name,
                kind="incremental" if any(disk.mode == Mode.INCREMENTAL for disk in disks) else "full",
                parent=request.parent,
                created=opened.instant.created,
                host=self._hypervisor.identity()[1],
                checkpoint=self._checkpoint,
                pause_ms=opened.instant.pause_ms,
                labels=dict(request.labels),
                disks=disks,
                excluded=tuple(ExcludedDisk(gone.target, str(gone.reason)) for gone in opened.plan.excluded),
                states=tuple(states),
                definition=opened.definition_xml,
                warnings=tuple(opened.warnings),
            )
            self._stop()
            self._watch(Progress("committing"))
            committed = opened.writer.commit(record)
        except TransferError as error:
            raise self._explain(opened, error) from error
        plain = committed.as_json()
        del plain["definition"]  # it may hold passwords of consoles, and the repository keeps it sealed
        return PointCopied(record=plain, states=tuple(state.as_json() for state in new_states))

    def _copy_disks(self, opened: _Opened) -> tuple[PointDisk, ...]:
        expected = {
            disk.target: opened.dirty_bytes[disk.target] if disk.mode is Mode.INCREMENTAL else opened.sizes[disk.target]
            for disk in opened.plan.disks
        }
        total, done = sum(expected.values()), 0
        copied = []
        for planned in opened.plan.disks:

            def progress(settled: int, target: str = planned.target) -> None:
                nonlocal done
                done += settled
                self._watch(Progress("copying", target, min(done, total), total))

            copied.append(self._copy_disk(opened, planned, progress))
        return tuple(copied)

    def _copy_disk(self, opened: _Opened, planned: DiskPlan, progress: Callable[[int], None]) -> PointDisk:
        target = planned.target
        incremental = planned.mode is Mode.INCREMENTAL
        base = None
        if incremental:
            assert opened.base is not None
            base = next(disk.stored for disk in opened.base.disks if disk.target == target)
        source = NbdSource(opened.record.socket, target, f"backup-{target}" if incremental else None)
        block_bytes = base.block_bytes if base is not None else self._settings.block_bytes
        disk = opened.writer.disk(size_bytes=source.size_bytes, block_bytes=block_bytes, base=base)
        captured = capture_disk(
            source,
            disk,
            block_bytes=block_bytes,
            workers=self._settings.workers,
            stop=self._stop,
            progress=progress,
        )
        stored = disk.finish()
        defined = opened.definition.disk(target)
        assert defined is not None
        return PointDisk(
            target=target,
            mode=str(planned.mode),
            reason=str(planned.reason),
            source=defined.source or "",
            format=defined.format or "",
            bytes_read=captured.bytes_read,
            bytes_stored=disk.bytes_stored,
            stored=stored,
        )

    def _store_states(self, opened: _Opened) -> tuple[list[StateRef], list[StateVersion]]:
        """Store the state files that changed; content that is the newest version already is only referred to."""
        refs, new = [], []
        newest = {state.kind: state for state in self._request.states}
        for captured in opened.instant.states:
            before = newest.get(captured.kind)
            if before is not None and self._is_stored(before, captured):
                kind, version_id, generation = before.kind, before.version_id, before.generation
                refs.append(StateRef(kind, version_id, generation, before.sha256, before.size_bytes, before.file))
                continue
            version = opened.writer.put_state(
                captured.content,
                vm_uuid=opened.domain.uuid,
                kind=captured.kind,
                generation=before.generation + 1 if before is not None else 1,
                file=captured.file,
                owner=captured.owner,
                group=captured.group,
                mode=captured.mode,
            )
            new.append(version)
            refs.append(version.ref())
        return refs, new

    def _is_stored(self, before: KnownState, captured: CapturedState) -> bool:
        """Return whether the newest version has this content and can still be read."""
        if (before.sha256, before.file) != (captured.sha256, captured.file):
            return False
        try:
            return self._repository.state(before.version_id)[1] == captured.content
        except IntegrityError:
            return False

    def _explain(self, opened: _Opened, error: TransferError) -> VmkeepError:
        """Return what really happened when the export broke off."""
        vm = opened.domain.name
        try:
            if opened.domain.state().run not in (RunState.RUNNING, RunState.PAUSED):
                return JobAborted("the VM was stopped while its point was copied", vm=vm, disk=error.disk)
            if opened.domain.backup_socket() != opened.record.socket:
                return JobAborted(
                    "the backup job was ended while the point was copied; a full scratch disk is the usual cause",
                    vm=vm,
                    disk=error.disk,
                    hint="Free space beside the disk images, or set scratch_dir in vmkeep.toml, and run it again.",
                )
        except HypervisorUnavailable:
            return JobAborted("libvirt went away while the point was copied", vm=vm, disk=error.disk)
        except VmNotFound:
            return JobAborted("the VM is gone; it was removed while its point was copied", vm=vm, disk=error.disk)
        return error

    # -- the end -----------------------------------------------------------------------------------------------

    def keep_checkpoint(self) -> None:
        """Make the guardian keep the new checkpoint from here on."""
        self._require_opened().guardian.stage(Stage.KEEP)

    def close(self) -> PointClosed:
        """End the job and delete the older checkpoints of ours. The point is stored: trouble here is a warning."""
        opened = self._require_opened()
        warnings = []
        try:
            if opened.domain.backup_socket() == opened.record.socket:
                end_job(opened.domain)
        except VmkeepError as error:
            warnings.append(f"The backup job could not be ended at once; the guardian goes on with it: {error}")
            opened.guardian.rescue_now()
        else:
            warnings += self._delete_older(opened)
            remove_leavings(opened.record)
            opened.guardian.done()
        self._opened = None
        self._release()
        return PointClosed(tuple(warnings))

    def _delete_older(self, opened: _Opened) -> list[str]:
        """Each older checkpoint costs every write of the guest a bitmap update, so only the new base is kept."""
        warnings = []
        try:
            older = {name for name in opened.domain.checkpoint_names() if name.startswith(self._prefix)}
        except VmkeepError as error:
            return [f"The older checkpoints could not be listed; the next point removes them: {error}"]
        for name in sorted(older - {self._checkpoint}):
            try:
                opened.domain.delete_checkpoint(name)
            except VmkeepError as error:
                warnings.append(f"The older checkpoint {name} stays until the next point: {error}")
        return warnings

    def abandon(self) -> None:
        """Undo everything: the VM is as it was before the point."""
        if self._opened is not None:
            opened, self._opened = self._opened, None
            opened.writer.abort()
            opened.guardian.rescue_now()
        self._release()

    def _require_opened(self) -> _Opened:
        if self._opened is None:
            raise JobAborted("the backup job is not open any more")
        return self._opened

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _refuse_beside_a_job(domain: Domain) -> None:
    """Refuse while somebody else's job holds the VM: libvirt would let the suspended guest wait 30 s for it."""
    if domain.has_job():
        raise VmBusy(
            f"libvirt is at another operation on VM {domain.name!r} (a backup, migration, save or dump)",
            vm=domain.name,
            hint="Wait for it to end (`virsh domjobinfo` shows it) and run the command again.",
        )


def _make_socket_directory(directory: Path, owner: tuple[int, int] | None) -> None:
    """Make the directory in which QEMU, as its own user, creates the socket; others cannot enter it."""
    directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    if owner is not None and os.geteuid() == 0:
        os.chown(directory, *owner)
