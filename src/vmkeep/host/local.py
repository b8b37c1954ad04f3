"""The machine at hand, in process. The only module that reaches hypervisor, statefiles and transfer for flows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vmkeep.config import Settings
from vmkeep.errors import GivenUp, VmkeepError
from vmkeep.filesystem import fault_error
from vmkeep.host import surveying
from vmkeep.host.connecting import LazyConnection, silence
from vmkeep.host.point import Point
from vmkeep.host.protocol import HostIdentity, TaskState
from vmkeep.host.standby import dismiss
from vmkeep.host.survey import Progress, SurveyedVm
from vmkeep.host.tasks import (
    AbandonPoint,
    ApplyRevert,
    BindRestore,
    CheckInPlace,
    CheckRevert,
    ClosePoint,
    CloseSnapshot,
    CopyPoint,
    DefineVm,
    DeliverItems,
    DiscardReplaced,
    KeepCheckpoint,
    LeaveSnapshot,
    MakeSnapshot,
    OpenPoint,
    ParkForRevert,
    ParkVm,
    PrepareFiles,
    PrepareVm,
    PublishItems,
    PublishRestore,
    PutBack,
    PutBackRevert,
    ReleaseReverted,
    ReleaseVm,
    SettleRestore,
    SettleSnapshot,
    StageRestore,
    StageRevert,
    StopForRevert,
    StoreSnapshot,
    Task,
    UndefineVm,
    WithdrawItems,
    WriteRestore,
)
from vmkeep.hypervisor import Hypervisor
from vmkeep.logs import get_logger
from vmkeep.repository import Repository, unanswered

# What a point needs is imported above; the rest when it is asked for, because a point is mostly its start.
if TYPE_CHECKING:
    from vmkeep.host.checkpoint_health import CheckpointHealth
    from vmkeep.host.checkpoint_repair import RepairPlan, RepairStep
    from vmkeep.host.checkpoint_survey import CheckpointRequest, RepairRequest, StepDone
    from vmkeep.host.findings import CheckupRequest, Finding, Mend
    from vmkeep.host.inplace import InPlace
    from vmkeep.host.momentorders import MomentChange, MomentsChanged, VmMoments
    from vmkeep.host.moments import LocalMoments
    from vmkeep.host.snapshot import Snapshotting
    from vmkeep.host.snapshot_health import SnapshotHealth
    from vmkeep.host.snapshot_revert import Revert
    from vmkeep.moments import MomentKind

_log = get_logger(__name__)


@dataclass(slots=True)
class _Operation:
    """The task of an operation that runs or ran last, and what its steps share."""

    task: Task
    thread: threading.Thread | None = None
    result: Any = None
    error: VmkeepError | None = None
    progress: Progress | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    cancelled: VmkeepError | None = None
    point: Point | None = None
    in_place: InPlace | None = None
    revert: Revert | None = None
    snapshotting: Snapshotting | None = None

    def stop(self) -> None:
        """Raise the reason when the operation was cancelled."""
        if self.cancelled is not None:
            raise self.cancelled

    def watch(self, progress: Progress) -> None:
        self.progress = progress


class LocalHost:
    """The Host protocol on this machine. Each task runs in a thread of its own."""

    def __init__(self, settings: Settings, repository: Callable[[], Repository] | None = None) -> None:
        """``repository`` opens it; a host that is only surveyed needs none."""
        self._settings = settings
        self._open_repository = repository
        self._connection = LazyConnection(settings.uri)
        self._operations: dict[str, _Operation] = {}

    def close(self) -> None:
        """Close the connection to libvirt; what was begun on the host is not ended by this.

        Locks are let go of, because a thread that hangs keeps this process, and what it has open, until it comes back.
        Not so while libvirt is waited for: the guardian has not undone anything then, and holds the lock as well; a
        thread that waits for a socket ends with its process.
        """
        if silence() is not None and not all(each.ended.is_set() for each in self._operations.values()):
            return
        for operation in self._operations.values():
            if operation.point is not None:
                operation.point.release()
            if operation.snapshotting is not None:
                operation.snapshotting.release()
        dismiss()
        self._connection.close()

    # -- survey ------------------------------------------------------------------------------------------------

    def identity(self) -> HostIdentity:
        return HostIdentity(*self._connected().identity())

    def vm_uuid(self, name_or_uuid: str) -> str:
        return self._connected().domain(name_or_uuid).uuid

    def vms(self) -> tuple[SurveyedVm, ...]:
        hypervisor = self._connected()
        return tuple(surveying.survey(domain, hypervisor, self._settings) for domain in hypervisor.domains())

    def vm(self, name_or_uuid: str) -> SurveyedVm:
        hypervisor = self._connected()
        return surveying.survey(hypervisor.domain(name_or_uuid), hypervisor, self._settings)

    def refuse_without_rights(self, name_or_uuid: str) -> None:
        """Raise PermissionRefused when this user may not use the files of a VM that a point of it needs."""
        from vmkeep.host.rights import refuse_without_rights

        hypervisor = self._connected()
        refuse_without_rights(hypervisor.domain(name_or_uuid), hypervisor, self._settings)

    def snapshot_xml(self, request: MakeSnapshot) -> str:
        from vmkeep.host.snapshot import snapshot_xml

        return snapshot_xml(self._connected(), request)

    # -- check-up ----------------------------------------------------------------------------------------------

    def checkup(self, request: CheckupRequest) -> tuple[Finding, ...]:
        from vmkeep.host.checkup import check_host

        return check_host(self._settings, self._connected, request)

    def mend(self, order: Mend) -> str:
        from vmkeep.host.checkup import mend

        return mend(self._connected, self._repository, order)

    # -- moments -----------------------------------------------------------------------------------------------

    @cached_property
    def _moments(self) -> LocalMoments:
        from vmkeep.host.moments import LocalMoments

        return LocalMoments(self._settings, self._connected)

    def moments(self, kind: MomentKind, vm: str, *, secure: bool = False, domain: bool = False) -> VmMoments:
        return self._moments.moments(kind, vm, secure=secure, domain=domain)

    def moment_xml(
        self, kind: MomentKind, vm: str, name: str, *, secure: bool = False, domain: bool = True, sizes: bool = False
    ) -> str:
        return self._moments.moment_xml(kind, vm, name, secure=secure, domain=domain, sizes=sizes)

    def moment_definitions(self, kind: MomentKind, vm: str, *, secure: bool = False) -> dict[str, str]:
        return self._moments.moment_definitions(kind, vm, secure=secure)

    def change_moments(self, order: MomentChange, *, stop: Callable[[], None] = lambda: None) -> MomentsChanged:
        return self._moments.change_moments(order, stop=stop)

    # -- their health ------------------------------------------------------------------------------------------

    def checkpoint_health(self, request: CheckpointRequest) -> tuple[CheckpointHealth, ...]:
        from vmkeep.host.checkpoint_survey import look_at_checkpoints

        hypervisor = self._connected()
        return look_at_checkpoints(hypervisor.domain(request.vm), hypervisor, self._settings, request)

    def snapshot_health(self, name_or_uuid: str) -> tuple[SnapshotHealth, ...]:
        from vmkeep.host.snapshot_survey import look_at_snapshots

        hypervisor = self._connected()
        return look_at_snapshots(hypervisor.domain(name_or_uuid), hypervisor)

    def checkpoint_repair(self, request: RepairRequest) -> RepairPlan:
        from vmkeep.host.checkpoint_survey import plan_checkpoint_repair

        hypervisor = self._connected()
        return plan_checkpoint_repair(hypervisor.domain(request.checkpoints.vm), hypervisor, self._settings, request)

    def repair_checkpoint(self, vm_uuid: str, step: RepairStep) -> StepDone:
        from vmkeep.host.checkpoint_survey import repair_checkpoint

        hypervisor = self._connected()
        return repair_checkpoint(hypervisor.domain(vm_uuid), hypervisor, step)

    # -- tasks -------------------------------------------------------------------------------------------------

    def start(self, operation: str, task: Task) -> None:
        before = self._operations.get(operation)
        if before is not None and before.task == task and not before.ended.is_set():
            return
        current = _Operation(task)
        if before is not None:
            current.point = before.point
            current.in_place = before.in_place
            current.revert = before.revert
            current.snapshotting = before.snapshotting
        self._operations[operation] = current
        current.thread = threading.Thread(
            target=self._run, args=(current,), name=f"vmkeep-{type(task).__name__}", daemon=True
        )
        try:
            current.thread.start()
        except (RuntimeError, MemoryError) as error:  # no further thread is to be had
            current.error = fault_error(error)
            current.ended.set()

    def poll(self, operation: str, wait_seconds: float = 0.0) -> TaskState:
        current = self._operations[operation]
        ended = current.ended.wait(wait_seconds)
        if ended:
            return TaskState(ended, current.result, current.error, current.progress)
        return TaskState(ended, progress=current.progress, unanswered=unanswered(), silence=silence())

    def cancel(self, operation: str, reason: VmkeepError) -> None:
        self._operations[operation].cancelled = reason

    def let_guest_go(self, operation: str) -> None:
        point = self._operations[operation].point
        if point is not None:
            point.let_guest_go()

    def _run(self, operation: _Operation) -> None:
        try:
            operation.result = self._carry_out(operation)
        except VmkeepError as error:
            operation.error = error
        except GivenUp as given:
            operation.error = given.error
        # Whatever it is must end the flow as a failure does, with its undos. A task without an error counts as done.
        except BaseException as error:
            _log.exception("fault", task=type(operation.task).__name__)
            operation.error = fault_error(error)
        finally:
            operation.ended.set()

    def _carry_out(self, operation: _Operation) -> Any:  # noqa: C901  one arm a task, and nothing else
        """Dispatch a task; the ones of a point go to the point that OpenPoint made."""
        match operation.task:
            case OpenPoint() as task:
                point = Point(
                    self._settings,
                    self._connected(),
                    self._repository(),
                    task,
                    stop=operation.stop,
                    watch=operation.watch,
                )
                operation.point = point
                return point.open()
            case CopyPoint() as task:
                return self._point(operation).copy(task)
            case KeepCheckpoint():
                return self._point(operation).keep_checkpoint()
            case ClosePoint():
                return self._point(operation).close()
            case AbandonPoint():
                return operation.point.abandon() if operation.point is not None else None
            case (
                PrepareFiles()
                | PrepareVm()
                | DeliverItems()
                | PublishItems()
                | WithdrawItems()
                | DiscardReplaced()
                | DefineVm()
                | UndefineVm() as task
            ):
                return self._restore(operation, task)
            case CheckInPlace() as task:
                from vmkeep.host.inplace import check_in_place

                return check_in_place(self._connected(), self._repository(), self._settings, task)
            case ParkVm() as task:
                return self._in_place(operation, task.operation).park(task)
            case StageRestore() as task:
                return self._in_place(operation, task.operation).stage()
            case WriteRestore() as task:
                return self._in_place(operation, task.operation).write()
            case PublishRestore() as task:
                return self._in_place(operation, task.operation).publish()
            case BindRestore() as task:
                return self._in_place(operation, task.operation).bind()
            case ReleaseVm() as task:
                return self._in_place(operation, task.operation).release(task.vm_uuid)
            case PutBack() as task:
                return self._in_place(operation, task.operation).put_back(task.vm_uuid)
            case SettleRestore() as task:
                if self._goes_to_snapshot(task.operation):
                    return self._revert(operation, task.operation).settle()
                return self._in_place(operation, task.operation).settle()
            case CheckRevert() as task:
                from vmkeep.host.snapshot_premises import check_revert

                return check_revert(self._connected(), self._repository(), self._settings, task)
            case StopForRevert() as task:
                from vmkeep.host.snapshot_premises import stop_for_revert

                return stop_for_revert(self._connected(), self._settings, task)
            case ParkForRevert() as task:
                return self._revert(operation, task.operation).park(task)
            case StageRevert() as task:
                return self._revert(operation, task.operation).stage()
            case ApplyRevert() as task:
                return self._revert(operation, task.operation).apply()
            case ReleaseReverted() as task:
                return self._revert(operation, task.operation).release(task.vm_uuid)
            case PutBackRevert() as task:
                return self._revert(operation, task.operation).put_back(task.vm_uuid)
            case MakeSnapshot() as task:
                self._repository()  # where its states will go
                return self._snapshotting(operation, task.operation).make(task)
            case StoreSnapshot() as task:
                return self._snapshotting(operation, task.operation).store(task, self._repository())
            case CloseSnapshot() as task:
                return self._snapshotting(operation, task.operation).close()
            case LeaveSnapshot() as task:
                return self._snapshotting(operation, task.operation).release()
            case SettleSnapshot() as task:
                return self._snapshotting(operation, task.operation).settle()

    def _restore(self, operation: _Operation, task: Task) -> Any:
        """Carry out a task of a restore to files or as a VM."""
        from vmkeep.host import restore

        match task:
            case PrepareFiles():
                return restore.prepare_files(self._connected, self._repository(), task)
            case PrepareVm():
                return restore.prepare_vm(self._connected(), self._repository(), self._settings, task)
            case DeliverItems():
                return restore.deliver_items(
                    self._connected,
                    self._repository(),
                    self._settings,
                    task,
                    stop=operation.stop,
                    watch=operation.watch,
                )
            case PublishItems():
                return restore.publish_items(task)
            case WithdrawItems():
                return restore.withdraw_items(task)
            case DiscardReplaced():
                return restore.discard_replaced(task)
            case DefineVm():
                return restore.define_vm(self._connected(), self._repository(), task)
            case UndefineVm():
                return restore.undefine_vm(self._connected(), self._repository(), task)

    def _point(self, operation: _Operation) -> Point:
        assert operation.point is not None, "a task of a point without OpenPoint before it"
        operation.point.serve(stop=operation.stop, watch=operation.watch)
        return operation.point

    def _in_place(self, operation: _Operation, operation_id: str) -> InPlace:
        if operation.in_place is None:
            from vmkeep.host.inplace import InPlace

            operation.in_place = InPlace(self._settings, self._connected(), self._repository(), operation_id)
        operation.in_place.serve(stop=operation.stop, watch=operation.watch)
        return operation.in_place

    def _revert(self, operation: _Operation, operation_id: str) -> Revert:
        if operation.revert is None:
            from vmkeep.host.snapshot_revert import Revert

            operation.revert = Revert(self._settings, self._connected(), self._repository(), operation_id)
        operation.revert.serve(stop=operation.stop, watch=operation.watch)
        return operation.revert

    def _goes_to_snapshot(self, operation_id: str) -> bool:
        from vmkeep.host.journal import RestoreJournal, journal_path

        try:
            return RestoreJournal.load(journal_path(self._settings.restores_dir, operation_id)).revert is not None
        except (OSError, ValueError):
            return False  # over just now, or not to be read: the restore says so

    def _snapshotting(self, operation: _Operation, operation_id: str) -> Snapshotting:
        if operation.snapshotting is None:
            from vmkeep.host.snapshot import Snapshotting

            operation.snapshotting = Snapshotting(
                self._settings, self._connected(), operation_id, stop=operation.stop, watch=operation.watch
            )
        operation.snapshotting.serve(stop=operation.stop, watch=operation.watch)
        return operation.snapshotting

    def _connected(self) -> Hypervisor:
        return self._connection.opened()

    def _repository(self) -> Repository:
        assert self._open_repository is not None, "this host was made for surveys only"
        return self._open_repository()
