"""A point of one VM on this host: plan, instant, copy, end. One object lives from OpenPoint to its close.

Nothing of the VM but what is this repository's own is touched before the repository is open for writing and the
guardian watches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vmkeep.config import Settings
from vmkeep.errors import IntegrityError, JobAborted, PointNotFound, TransferError
from vmkeep.filesystem import require_descriptors
from vmkeep.host.points.examination import Examined, examine, refuse_unreadable_names
from vmkeep.host.points.exposure import Exposure, Subject
from vmkeep.host.points.running import RunningExposure
from vmkeep.host.points.stopped import StoppedExposure
from vmkeep.host.records.lock import lock_vm, take_turn
from vmkeep.host.records.unended import refuse_while_pending
from vmkeep.host.tasks.points import CopyPoint, OpenPoint, PointClosed, PointCopied, PointOpened
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.vm.disks import refusal
from vmkeep.host.vm.versions import store_states
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.locks import FileLock
from vmkeep.logs import get_logger
from vmkeep.planning import (
    MOST_CLIENTS,
    Base,
    BitmapHealth,
    DiskPlan,
    Mode,
    PointPlan,
    PointRequest,
    Reason,
    Refused,
    plan_point,
)
from vmkeep.planning.model import KnownPoint
from vmkeep.planning.names import checkpoint_prefix
from vmkeep.repository import ExcludedDisk, PointDisk, PointRecord, PointWriter, Repository
from vmkeep.repository.fields import as_lines
from vmkeep.repository.record import known_point
from vmkeep.transfer.capture import BaseMismatch, capture_disk
from vmkeep.transfer.source import DiskSource
from vmkeep.values import dataclass

_log = get_logger(__name__)
# Blocks of each base that are read again to prove it; 256 KiB in all.
_WITNESSES = 4
# Scratch, sockets and pipes of qemu-nbd and qemu-img, and what the libraries open for a moment.
_DESCRIPTORS = 64


@dataclass(frozen=True, slots=True)
class _Planned:
    """The plan, and the points it builds on, by id."""

    plan: PointPlan
    bases: Mapping[str, PointRecord]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists between the instant and the end of the point."""

    examined: Examined
    bases: Mapping[str, PointRecord]
    exposure: Exposure
    writer: PointWriter
    warnings: tuple[str, ...]

    @property
    def plan(self) -> PointPlan:
        return self.exposure.plan


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
        self._turn: FileLock | None = None
        self._opened: _Opened | None = None
        self._guest_is_free = False
        self._letting_go = threading.Lock()
        self._prefix = checkpoint_prefix(repository.id)
        self._checkpoint = self._prefix + request.point_id

    # -- OpenPoint ---------------------------------------------------------------------------------------------

    def open(self) -> PointOpened:
        """Plan and fix the instant; on failure nothing of it is left."""
        domain = self._hypervisor.domain(self._request.vm_uuid)
        doing = f"point {self._request.point_id}"
        self._lock = lock_vm(self._settings.locks_dir, domain.uuid, domain.name, doing, self._stop)
        try:
            return self._open(domain, self._lock)
        except BaseException:
            self.release()
            raise

    def _open(self, domain: Domain, lock: FileLock) -> PointOpened:
        # Before anything is read of the VM: a wait must not make the plan older, or hold a guest.
        self._turn = take_turn(
            self._settings.locks_dir,
            self._settings.points_at_once,
            f"point {self._request.point_id} of {domain.name}",
            self._stop,
            lambda: self._watch(Progress("waiting for other points")),
        )
        self._watch(Progress("planning"))
        refuse_while_pending(self._settings, domain.name, domain.uuid)
        examined = examine(
            domain,
            self._hypervisor,
            self._settings,
            prefix=self._prefix,
            points=self._request.points,
            find_point=lambda point_id: self._point_of_repository(point_id, domain.uuid),
        )
        planned = self._plan(examined)
        self._stop()
        opened = self._begin(examined, planned, lock)
        self._opened = opened
        used = [disk.base_point for disk in opened.plan.disks if disk.base_point is not None]
        return PointOpened(
            point_id=self._request.point_id,
            vm_uuid=domain.uuid,
            vm_name=domain.name,
            created=opened.exposure.instant.created,
            checkpoint=self._checkpoint,
            base=next((base.point_id for base in examined.standing.bases if base.point_id in used), None),
            pause_ms=opened.exposure.instant.pause_ms,
            warnings=opened.warnings,
        )

    def _point_of_repository(self, point_id: str, vm_uuid: str) -> KnownPoint | None:
        """Return a point of the VM that is in the repository, whoever made it."""
        try:
            if self._repository.is_to_be_removed(point_id):
                return None
            record = self._repository.point(point_id)
        except (IntegrityError, PointNotFound):
            return None
        return known_point(record) if record.vm_uuid == vm_uuid else None

    def _plan(self, examined: Examined) -> _Planned:
        """Plan each disk, with the points it builds on; those that cannot be read are done without."""
        request = PointRequest(
            vm=examined.domain.name,
            running=not examined.stopped,
            disks=examined.disks,
            bases=tuple(base for base in examined.standing.bases if base.point_id not in self._request.doubtful),
            force_full=self._request.full,
            exclude=frozenset(self._request.exclude),
            never=frozenset(self._settings.of_vm(examined.domain.name, examined.domain.uuid).exclude)
            - frozenset(self._request.demanded),
            killed=examined.killed,
        )
        warnings: list[str] = []
        while True:
            outcome = plan_point(request)
            if isinstance(outcome, Refused):
                raise refusal(outcome, request.vm, excludable=not self._request.demanded)
            records: dict[str, PointRecord] = {}
            for point_id in {disk.base_point for disk in outcome.disks if disk.base_point is not None}:
                try:
                    records[point_id] = self._repository.point(point_id)
                except (IntegrityError, PointNotFound) as error:
                    warnings.append(f"The point {point_id} cannot be built on: {error}")
                    usable = tuple(base for base in request.bases if base.point_id != point_id)
                    request = replace(request, bases=usable)
                    break
            else:
                warnings += [warned.message for warned in outcome.warnings]
                refuse_unreadable_names(examined, outcome, host=self._hypervisor.identity()[1])
                return _Planned(outcome, records, tuple(warnings))

    def _begin(self, examined: Examined, planned: _Planned, lock: FileLock) -> _Opened:
        """Open the repository for writing, then fix the instant; on failure nothing of either is left."""
        subject = Subject(
            operation=self._request.point_id,
            hypervisor=self._hypervisor,
            domain=examined.domain,
            definition=examined.definition,
            chains=examined.chains,
            plan=planned.plan,
            states=examined.states,
            known_states=frozenset(state.kind for state in self._request.states),
            checkpoint=self._checkpoint,
            kept=_kept(examined.standing.bases, planned.plan),
            prefix=self._prefix,
            lock=lock,
        )
        self._require_descriptors(subject)
        writer = self._begin_writing()
        try:
            self._watch(Progress("instant"))
            exposure = self._expose(subject, stopped=examined.stopped)
        except BaseException:
            writer.abort()
            raise
        warnings = (*examined.warnings, *planned.warnings, *exposure.warnings)
        return _Opened(examined, planned.bases, exposure, writer, warnings)

    def _expose(self, subject: Subject, *, stopped: bool) -> Exposure:
        if stopped:
            # What is off is at rest: --quiesce has nothing to ask of it.
            return StoppedExposure.open(subject, self._settings, stop=self._stop)
        quiesce = self._request.quiesce
        return RunningExposure.open(subject, self._settings, quiesce=quiesce, stop=self._stop)

    def _require_descriptors(self, subject: Subject) -> None:
        """Refuse before the instant what would break off in the middle: a disk is read over several connections."""
        disks = len(subject.plan.disks)
        # A connection has two descriptors, of libnbd and of the guardian's duplicate; a worker has a pack and its file.
        clients = max(disks, min(MOST_CLIENTS, disks * (self._settings.workers + 2)))
        number = _DESCRIPTORS + 2 * clients + 4 * self._settings.workers
        require_descriptors(number, f"a point of VM {subject.domain.name!r} with {disks} disks")

    def _begin_writing(self) -> PointWriter:
        return self._repository.begin(
            purpose=f"point {self._request.point_id}",
            host=self._hypervisor.identity()[1],
            cache=self._settings.cache_dir,
            workers=self._settings.workers,
            point_id=self._request.point_id,
            relist=self._request.full,
        )

    # -- CopyPoint ---------------------------------------------------------------------------------------------

    def copy(self, request: CopyPoint) -> PointCopied:
        """Copy the disks and commit the point; the job is left running."""
        opened = self._require_opened()
        try:
            disks = self._copy_disks(opened)
            states = store_states(
                opened.writer,
                self._repository,
                opened.exposure.instant.states,
                self._request.states,
                opened.examined.domain.uuid,
            )
            secrets = opened.writer.put_secrets(opened.examined.secrets, vm_uuid=opened.examined.domain.uuid)
            record = PointRecord(
                id=request.point_id,
                vm_uuid=opened.examined.domain.uuid,
                vm_name=opened.examined.domain.name,
                # Of a VM all of whose disks are scanned, each point is whole in itself.
                kind="incremental" if any(disk.mode == Mode.INCREMENTAL for disk in disks) else "full",
                parent=request.parent,
                created=opened.exposure.instant.created,
                host=self._hypervisor.identity()[1],
                checkpoint=self._checkpoint if any(disk.bitmap for disk in opened.plan.disks) else None,
                pause_ms=opened.exposure.instant.pause_ms,
                labels=dict(request.labels),
                disks=disks,
                excluded=tuple(ExcludedDisk(gone.target, str(gone.reason)) for gone in opened.plan.excluded),
                states=states.refs,
                definition=opened.examined.definition_xml,
                # What libvirt, QEMU or a guest's agent said may stand in them.
                warnings=tuple(map(as_lines, (*opened.warnings, *states.older, *request.warnings))),
                secrets=secrets,
                sequence=request.sequence,
            )
            self._stop()
            opened.exposure.prove()
            self._watch(Progress("committing"))
            committed = opened.writer.commit(record)
        except TransferError as error:
            raise opened.exposure.explain(error) from error
        plain = committed.as_json()
        del plain["definition"]  # it may hold passwords of consoles, and the repository keeps it sealed
        states_json = tuple(state.as_json() for state in states.new)
        return PointCopied(record=plain, states=states_json, digest=committed.digest)

    def _copy_disks(self, opened: _Opened) -> tuple[PointDisk, ...]:
        expected = {disk.target: _expected_bytes(opened, disk) for disk in opened.plan.disks}
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
        with opened.exposure.source(planned) as source:
            try:
                return self._copy_from(opened, planned, source, progress)
            except BaseMismatch as mismatch:
                _log.warning("base mismatch", vm=opened.examined.domain.name, disk=planned.target, block=mismatch.block)
        whole = replace(planned, mode=Mode.FULL, reason=Reason.BASE_MISMATCH, base_point=None, base_checkpoint=None)
        with opened.exposure.source(whole) as source:
            return self._copy_from(opened, whole, source, progress)

    def _copy_from(
        self, opened: _Opened, planned: DiskPlan, source: DiskSource, progress: Callable[[int], None]
    ) -> PointDisk:
        target = planned.target
        base, witnesses = None, {}
        if planned.base_point is not None:
            base = next(disk.stored for disk in opened.bases[planned.base_point].disks if disk.target == target)
            witnesses = self._repository.sample_blocks(base, _WITNESSES)
        block_bytes = base.block_bytes if base is not None else self._settings.block_bytes
        disk = opened.writer.disk(size_bytes=source.size_bytes, block_bytes=block_bytes, base=base)
        try:
            captured = capture_disk(
                source,
                disk,
                block_bytes=block_bytes,
                workers=self._settings.workers,
                stop=opened.exposure.watched(self._stop),
                progress=progress,
                witnesses=witnesses,
            )
        except BaseMismatch:
            opened.writer.drop(disk)
            raise
        stored = disk.finish()
        defined = opened.examined.definition.disk(target)
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

    # -- the end -----------------------------------------------------------------------------------------------

    def keep_checkpoint(self) -> None:
        """Make the guardian keep the new checkpoint from here on."""
        self._require_opened().exposure.keep()

    def close(self) -> PointClosed:
        """End the job and delete the older checkpoints of ours. The point is stored: trouble here is a warning."""
        warnings = self._require_opened().exposure.close()
        self._opened = None
        self.release()
        return PointClosed(tuple(warnings))

    def abandon(self) -> None:
        """Undo everything: the VM is as it was before the point."""
        if self._opened is not None:
            # The guest first: the writer waits for what is on its way to the repository, for as long as that takes.
            self.release_guest()
            opened, self._opened = self._opened, None
            opened.writer.abort()
        self.release()

    def release_guest(self) -> None:
        """End the job and its checkpoint; for a point that cannot be finished any more. Any thread may ask for it."""
        with self._letting_go:
            if self._opened is not None and not self._guest_is_free:
                self._opened.exposure.abandon()
                self._guest_is_free = True

    def _require_opened(self) -> _Opened:
        if self._opened is None:
            raise JobAborted("the backup job is not open any more")
        return self._opened

    def release(self) -> None:
        """Let go of the VM's lock, and of the turn."""
        for lock in (self._turn, self._lock):
            if lock is not None:
                lock.release()
        self._turn = self._lock = None


def _expected_bytes(opened: _Opened, planned: DiskPlan) -> int:
    """Return how much of a disk the progress is counted against: what is dirty where that is known, else its size."""
    dirty = opened.examined.standing.dirty_bytes.get(planned.base_checkpoint or "", {})
    return dirty.get(planned.target, opened.examined.sizes[planned.target])


def _kept(bases: Sequence[Base], plan: PointPlan) -> frozenset[str]:
    """Return the checkpoints that disks left out of this point are read against when they are in one again."""
    kept = set()
    for gone in plan.excluded:
        sound = (base for base in bases if base.listed and base.bitmaps.get(gone.target) is BitmapHealth.SOUND)
        base = next(sound, None)
        if base is not None:
            kept.add(base.checkpoint)
    return frozenset(kept)
