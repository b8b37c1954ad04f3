"""The disks of a running or paused VM, exposed by one backup job of libvirt's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

from vmkeep.config import Settings
from vmkeep.errors import (
    HypervisorError,
    HypervisorUnavailable,
    JobAborted,
    TransferError,
    VmBusy,
    VmkeepError,
    VmNotFound,
)
from vmkeep.host.checkpoints.bases import Bases
from vmkeep.host.checkpoints.changes import checkpoint_xml
from vmkeep.host.guard.guardian import Guardian
from vmkeep.host.guard.handshakes import job_ended, job_ends, making_connection
from vmkeep.host.guard.rescue import JobRecord, ProvenScratch, Stage, end_job, forget_secret, remove_leavings
from vmkeep.host.points.exposure import Subject, guarded
from vmkeep.host.points.instant import Instant, backup_xml, fix_instant
from vmkeep.host.points.scratch import encrypted_targets, make_scratch, scratch_files
from vmkeep.host.records.sockets import job_socket
from vmkeep.host.vm.fitness import refuse_beside_a_job, refuse_jobs, require_agent
from vmkeep.host.vm.qemulog import death_of
from vmkeep.host.vm.standstill import sync_images
from vmkeep.host.vm.states import refuse_unwritten_variables
from vmkeep.hypervisor import Domain, RunState
from vmkeep.planning import MOST_CLIENTS, DiskPlan, Mode, PointPlan
from vmkeep.stillness import guest_stands_still
from vmkeep.transfer.connections import Connections
from vmkeep.transfer.nbd import NbdSource
from vmkeep.transfer.server import ImageServer
from vmkeep.transfer.source import DiskSource

_ENDING_SECONDS = 1.0
# After abortJob libvirt lists a job for some 0.3 s (30 disks), and as long as QEMU's storage is held up.
_GONE_SECONDS = 30.0
_STANDING = (RunState.RUNNING, RunState.PAUSED)


class RunningExposure:
    """A pull job with all disks that libvirt takes into one, and the images of those that it does not."""

    warnings: tuple[str, ...] = ()

    def __init__(
        self, subject: Subject, settings: Settings, record: JobRecord, guardian: Guardian, instant: Instant
    ) -> None:
        self._subject = subject
        self._settings = settings
        self._record = record
        self._guardian = guardian
        self._clients = Connections(record.socket, connecting=partial(making_connection, Path(record.directory)))
        self.instant = instant

    @classmethod
    def open(cls, subject: Subject, settings: Settings, *, quiesce: bool, stop: Callable[[], None]) -> RunningExposure:
        """Fix the instant; on failure nothing of it is left."""
        domain = subject.domain
        state = domain.state()
        running = state.run is RunState.RUNNING
        if state.asleep:
            refuse_unwritten_variables(subject.states, domain.name)
        if quiesce:
            require_agent(domain, running=running)
        scratch = scratch_files(subject, settings)
        refuse_jobs(domain, scratch)
        encrypted = encrypted_targets(subject, scratch)
        record = JobRecord(
            operation=subject.operation,
            uri=subject.uri,
            vm=domain.name,
            uuid=domain.uuid,
            checkpoint=subject.checkpoint,
            socket=str(job_socket(domain, subject.uri, settings, subject.operation)),
            directory=str(subject.directory(settings)),
            was_running=running,
            scratch=tuple(str(path) for path in scratch.values()),
            quiesced=quiesce,
            secret=str(UUID(subject.operation)) if encrypted else "",
            stage=Stage.PREPARING,
            proven=tuple(
                ProvenScratch(str(scratch[disk.target]), disk.scratch_bytes)
                for disk in subject.plan.disks
                if disk.scratch_bytes is not None and disk.target in scratch
            ),
        )
        guardian = guarded(subject, settings, record)
        try:
            stop()
            refuse_beside_a_job(domain)
            made = make_scratch(subject, record, scratch, encrypted, stop)
            if encrypted:
                refuse_beside_a_job(domain)  # that took seconds
            _refuse_changed_state(domain, running=running)
            guardian.stage(Stage.INSTANT)
            job = backup_xml(
                subject.plan,
                subject.definition,
                socket=Path(record.socket),
                scratch=scratch,
                encrypted=encrypted,
                secret=record.secret,
            )
            if running:
                sync_images(subject.chains)
            with guest_stands_still():
                instant = fix_instant(
                    domain,
                    job if scratch else None,
                    checkpoint_xml(subject.definition, subject.checkpoint, subject.marked),
                    subject.states,
                    running=running,
                    quiesce=quiesce,
                    scratch_made=made,
                    hold=guardian.hold,
                    pause_seconds=settings.longest_pause_seconds,
                )
            # QEMU has opened the scratch, and nobody needs to open it again.
            forget_secret(record, subject.hypervisor)
            guardian.stage(Stage.COPY)
        except BaseException as error:
            guardian.rescue_now()
            died = death_of(domain, subject.uri, "at the instant of the point")
            if died is not None and isinstance(error, VmkeepError):
                raise died from error
            if isinstance(error, HypervisorError) and _has_ended(domain):
                raise JobAborted("the VM was stopped just before its point was begun", vm=domain.name) from error
            raise
        return cls(subject, settings, record, guardian, instant)

    @property
    def plan(self) -> PointPlan:
        return self._subject.plan

    @contextmanager
    def source(self, planned: DiskPlan) -> Iterator[DiskSource]:
        target = planned.target
        disk = self._subject.definition.disk(target)
        assert disk is not None
        if planned.from_image:
            # libvirt runs no job on it. The guest's changes are in an overlay that is dropped when it stops; what
            # stays is the image below, which nobody writes to.
            assert disk.source is not None
            socket = self._subject.directory(self._settings) / f"nbd-{target}"
            with ImageServer(disk.source, disk.image_format, socket) as server:
                yield server.source()
        else:
            disks = len(self._record.scratch)
            bitmap = f"qemu:dirty-bitmap:backup-{target}" if planned.mode is Mode.INCREMENTAL else None
            export = self._clients.export(
                target,
                bitmap=bitmap,
                most=MOST_CLIENTS // disks,
                keeper=self._guardian.clients if disk.in_io_thread else None,
            )
            yield NbdSource(export, bitmap)
            if disks > MOST_CLIENTS and not disk.in_io_thread:
                self._clients.close(target)  # the next disks need the room, and QEMU lets these leave

    def watched(self, stop: Callable[[], None]) -> Callable[[], None]:
        return stop  # the job keeps the instant, whatever the guest writes

    def prove(self) -> None:
        return

    def explain(self, error: TransferError) -> VmkeepError:
        domain, vm = self._subject.domain, self._subject.domain.name
        try:
            # QEMU's end breaks connections before libvirt knows of it.
            ended = job_ends(domain, self._record.socket, _ENDING_SECONDS)
            died = death_of(domain, self._subject.uri, "while the point was copied")
            if died is not None:
                return died
            if domain.state().run not in _STANDING:
                return JobAborted("the VM was stopped while its point was copied", vm=vm, disk=error.disk)
            if ended:
                return job_ended("the backup job was ended while the point was copied", vm=vm, disk=error.disk)
        except HypervisorUnavailable:
            return JobAborted("libvirt went away while the point was copied", vm=vm, disk=error.disk)
        except VmNotFound:
            died = death_of(domain, self._subject.uri, "while the point was copied")
            return died or JobAborted(
                "the VM is gone; it was removed while its point was copied", vm=vm, disk=error.disk
            )
        return error

    def keep(self) -> None:
        self._guardian.stage(Stage.KEEP)

    def close(self) -> list[str]:
        domain, subject = self._subject.domain, self._subject
        try:
            if domain.backup_socket() == self._record.socket:
                end_job(domain, self._record.socket, self._record.directory)
        except VmkeepError as error:
            return self._close_late(error)
        bases = Bases(domain, subject.definition, {}, stopped=False, prefix=subject.prefix, points=())
        warnings = bases.remove_older({subject.checkpoint, *subject.kept})
        try:
            if not job_ends(domain, self._record.socket, _GONE_SECONDS):
                raise VmBusy(f"libvirt still lists the backup job of VM {domain.name!r}", vm=domain.name)
        except VmNotFound:
            pass  # a transient VM was stopped, and the job with it
        except VmkeepError as error:
            return warnings + self._close_late(error)
        self._clients.close()
        remove_leavings(self._record)
        self._guardian.done()
        died = death_of(domain, subject.uri, "when the point was stored already")
        return warnings if died is None else [*warnings, f"{died.message}."]

    def _close_late(self, error: VmkeepError) -> list[str]:
        self.abandon()
        return [f"The backup job could not be ended at once; the guardian goes on with it: {error}"]

    def abandon(self) -> None:
        if self._guardian.rescue_now():
            self._clients.close()


def _has_ended(domain: Domain) -> bool:
    """Return whether the VM is gone, or off; a libvirt that does not answer tells nothing."""
    try:
        return domain.state().run not in _STANDING
    except VmNotFound:
        return True
    except HypervisorError:
        return False


def _refuse_changed_state(domain: Domain, *, running: bool) -> None:
    """Refuse when somebody paused the VM, or let it run, while the scratch was made: that must stay as it is."""
    if (domain.state().run is RunState.RUNNING) is not running:
        raise VmBusy(
            f"VM {domain.name!r} was paused, resumed or stopped while its point was prepared",
            vm=domain.name,
            hint="Run the command again.",
        )
