"""The disks of a running or paused VM, exposed by one backup job of libvirt's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmkeep.config import Settings
from vmkeep.errors import (
    AgentUnavailable,
    HostFileMissing,
    HypervisorUnavailable,
    JobAborted,
    TransferError,
    VmBusy,
    VmkeepError,
    VmNotFound,
)
from vmkeep.host.bases import Bases
from vmkeep.host.exposure import Subject, guarded
from vmkeep.host.guardian import Guardian
from vmkeep.host.instant import Instant, backup_xml, checkpoint_xml, fix_instant, refuse_unwritten_variables
from vmkeep.host.preparation import scratch_directory
from vmkeep.host.safety import JobRecord, Stage, end_job, remove_leavings
from vmkeep.host.socket import job_socket
from vmkeep.hypervisor import Domain, RunState
from vmkeep.planning import DiskPlan, Mode, PointPlan
from vmkeep.transfer.nbd import NbdSource
from vmkeep.transfer.server import ImageServer
from vmkeep.transfer.source import DiskSource

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
            _require_agent(domain, running=running)
        scratch = _scratch(subject, settings)
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
        )
        guardian = guarded(subject, settings, record)
        try:
            stop()
            refuse_beside_a_job(domain)
            job = backup_xml(subject.plan, subject.definition, socket=Path(record.socket), scratch=scratch)
            instant = fix_instant(
                domain,
                job if scratch else None,
                checkpoint_xml(subject.definition, subject.checkpoint, subject.marked),
                subject.states,
                running=running,
                quiesce=quiesce,
            )
            guardian.stage(Stage.COPY)
        except BaseException:
            guardian.rescue_now()
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
            with ImageServer(disk.source, disk.format or "raw", socket) as server:
                yield server.source()
        else:
            bitmap = f"backup-{target}" if planned.mode is Mode.INCREMENTAL else None
            yield NbdSource(self._record.socket, target, bitmap)

    def watched(self, stop: Callable[[], None]) -> Callable[[], None]:
        return stop  # the job keeps the instant, whatever the guest writes

    def prove(self) -> None:
        return

    def explain(self, error: TransferError) -> VmkeepError:
        vm = self._subject.domain.name
        try:
            if self._subject.domain.state().run not in _STANDING:
                return JobAborted("the VM was stopped while its point was copied", vm=vm, disk=error.disk)
            if self._subject.domain.backup_socket() != self._record.socket:
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

    def keep(self) -> None:
        self._guardian.stage(Stage.KEEP)

    def close(self) -> list[str]:
        domain = self._subject.domain
        try:
            if domain.backup_socket() == self._record.socket:
                end_job(domain)
        except VmkeepError as error:
            self._guardian.rescue_now()
            return [f"The backup job could not be ended at once; the guardian goes on with it: {error}"]
        subject = self._subject
        bases = Bases(domain, subject.definition, {}, stopped=False, prefix=subject.prefix, points=())
        warnings = bases.remove_older({subject.checkpoint, *subject.kept})
        remove_leavings(self._record)
        self._guardian.done()
        return warnings

    def abandon(self) -> None:
        self._guardian.rescue_now()


def refuse_beside_a_job(domain: Domain) -> None:
    """Refuse while somebody else's job holds the VM: libvirt would let the suspended guest wait 30 s for it."""
    if domain.has_job():
        raise VmBusy(
            f"libvirt is at another operation on VM {domain.name!r} (a backup, migration, save or dump)",
            vm=domain.name,
            hint="Wait for it to end (`virsh domjobinfo` shows it) and run the command again.",
        )


def _require_agent(domain: Domain, *, running: bool) -> None:
    """Ask the agent before anything is begun: afterwards its silence means that a frozen guest must be waited for."""
    if not running:
        raise AgentUnavailable(
            "the VM is paused, so its guest agent cannot freeze anything",
            vm=domain.name,
            hint="Resume the VM, or leave out --quiesce: the disks of a paused VM keep still anyway.",
        )
    domain.require_agent()


def _scratch(subject: Subject, settings: Settings) -> dict[str, Path]:
    """Return the scratch file of each disk that goes into the job; libvirt takes a transient disk into none."""
    scratch = {}
    for planned in subject.plan.disks:
        disk = subject.definition.disk(planned.target)
        assert disk is not None
        if planned.from_image:
            continue
        directory = scratch_directory(disk, settings)
        if not directory.is_dir():
            raise HostFileMissing(
                f"the directory {directory} for the scratch of disk {disk.target} is not there",
                vm=subject.domain.name,
                disk=disk.target,
                path=str(directory),
                hint="Make it, or set scratch_dir in vmkeep.toml to one that QEMU can write to.",
            )
        stem = Path(disk.source or "disk").name
        scratch[disk.target] = directory / f".{stem}.{disk.target}.{subject.operation[:12]}.scratch"
    return scratch
