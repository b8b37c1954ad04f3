"""Running flows in this process: DBOS with an executor id of its own, and what a dead process left behind.

Each process has its own executor id, because with DBOS's default one a second process runs the steps of the
first again (seen). A lock on a file named after the id proves that the process lives. At its start an engine
looks for flows whose owner is dead and undoes or finishes them, by the rule at the head of each flow.
"""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy.exc import DatabaseError

from vmkeep.catalog import SAFETY_LABEL, Operation, OperationState
from vmkeep.commandline import command_line
from vmkeep.errors import (
    ChoiceRequired,
    DiskUnsupported,
    GivenUp,
    Interrupted,
    NoSpace,
    PointNotFound,
    RestorePending,
    SecretMissing,
    SecretPrivate,
    StateUnsupported,
    StoreError,
    VmkeepError,
    VmNotFound,
    VmStarted,
)
from vmkeep.filesystem import OF_STORAGE, fault_error, file_error, make_private_file, require_descriptors
from vmkeep.flows.durable import DBOS, DBOSConfig, SetWorkflowID, WorkflowStatus
from vmkeep.flows.forget_snapshot import SNAPSHOT_CHANGE
from vmkeep.flows.hosts import refuse_distrusted
from vmkeep.flows.installation import Premises
from vmkeep.flows.patience import patiently
from vmkeep.flows.plan import AfterCrash, Flow, Run, workflow_of
from vmkeep.flows.requests import (
    FilesRestored,
    InPlaceRestored,
    PointTaken,
    RestoreFiles,
    RestoreInPlace,
    RestoreVm,
    RevertSnapshot,
    SnapshotReverted,
    SnapshotTaken,
    TakePoint,
    TakeSnapshot,
    VmRestored,
)
from vmkeep.flows.restore_files import restore_files
from vmkeep.flows.restore_in_place import restore_in_place
from vmkeep.flows.restore_vm import restore_vm
from vmkeep.flows.revert_snapshot import choice_of, known_snapshot, revert_snapshot
from vmkeep.flows.rows import refuse_foreign_rows
from vmkeep.flows.services import Services
from vmkeep.flows.take_point import FLOW_NAME as TAKE_POINT
from vmkeep.flows.take_point import record_committed_point, remove_point, take_point
from vmkeep.flows.take_snapshot import FLOW_NAME as TAKE_SNAPSHOT
from vmkeep.flows.take_snapshot import settle_snapshot, take_snapshot
from vmkeep.flows.values import FlowSerializer, refuse_pickle
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.restores import CheckInPlace, InPlaceChecked
from vmkeep.host.tasks.reverts import CheckRevert, RevertChecked, StopForRevert
from vmkeep.host.tasks.survey import FindVm, Progress
from vmkeep.host.tasks.task import Task
from vmkeep.host.tasks.unfinished import ListUnfinished, RequireUnneeded, RescueGuests, SettleRestore
from vmkeep.locks import FileLock
from vmkeep.logs import get_logger
from vmkeep.sqlite import raised_within, sqlite_error

_log = get_logger(__name__)
"""Label of a point that was taken before a restore in place; its value is the point that was restored."""
R = TypeVar("R")
Watch = Callable[[Progress], None]

_FLOWS: tuple[Flow[Any, Any], ...] = (
    take_point,
    restore_files,
    restore_vm,
    restore_in_place,
    revert_snapshot,
    take_snapshot,
)
# One version for ever: DBOS would leave the flows of another version alone. That a newer vmkeep can finish what
# an older one began is a rule for those who change a flow (docs/internals/flows.md).
_APPLICATION_VERSION = "1"
# Databases with their logs, locks, the connection to libvirt; what a task needs besides it asks for itself.
_DESCRIPTORS = 48
_RESULT_SECONDS = 0.05
# So long after a flow ended the flow database has what it will have of it; so long after one was taken up it runs.
_RECORDING_SECONDS = 5.0
_TAKING_UP_SECONDS = 30.0
_DELETE_POINT = "point.delete"
"""The kind of an operation that is no flow: both of its steps can be repeated."""


class Engine:
    """Runs flows. One a process; use it with ``with``. ``recovered`` tells what was undone or finished at start.

    ``needs_home``: what will be run must be recorded, so a home that cannot be written is refused; else the engine does
    without it, and leaves alone what dead processes left. ``last``: the process ends right after the engine, so DBOS's
    threads need not be stopped. They look for flows of other processes, and their end is waited for 0.07 s, which a
    short command would feel.
    """

    def __init__(
        self,
        premises: Premises,
        host: Host,
        *,
        needs_home: bool = True,
        last: bool = False,
        watch: Watch | None = None,
    ) -> None:
        """``host`` is where the VMs are; who gives it closes it. ``watch`` is told of what the engine waits for while
        no operation runs: at its start.
        """
        self._premises = premises
        self._host = host
        self._needs_home = needs_home
        self._last = last
        self._cancelled: VmkeepError | None = None
        self._unwatched = watch or _unwatched
        self._watch: Watch = self._unwatched
        self._executor = uuid.uuid4().hex
        self._runs: dict[str, Run] = {}
        self._alive: FileLock | None = None
        self.recovered: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        require_descriptors(_DESCRIPTORS, "vmkeep")
        away = self._leave_broken_home()
        settings = self._premises.settings
        self._alive = FileLock.try_acquire(settings.owners_dir / f"{self._executor}.lock")
        try:
            self._launch(settings.flows_path)
            self.recovered = away or (
                *self._host.ask(RescueGuests()),
                *self._recover(),
                *self._settle_restores(),
                *self._settle_snapshots(),
            )
        except BaseException as error:
            with suppress(Exception):  # what failed to start may fail to end
                DBOS.destroy(destroy_registry=True)
            self._let_go()
            if (signalled := raised_within(error)) is not None:
                raise signalled from None
            if isinstance(error, Exception) and not isinstance(error, VmkeepError):
                raise self._fault(error) from error
            raise
        return self

    def _leave_broken_home(self) -> tuple[str, ...]:
        """Return what is to be told of a home that is done without; nothing for one that can be written."""
        try:
            self._premises.require_home()
        except OF_STORAGE as error:
            if self._needs_home:
                raise
            self._premises.leave_home(error)
            told = "this operation is recorded nowhere, and what was interrupted before stays as it is"
            return (f"{error.message}; {told}",)
        return ()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._last:
            DBOS.destroy(destroy_registry=True)
        self._let_go()

    def _let_go(self) -> None:
        if self._alive is not None:
            self._alive.release()

    # -- what can be asked -------------------------------------------------------------------------------------

    def take_point(self, request: TakePoint, watch: Watch) -> PointTaken:
        """Take a point; raises the error that ended it, after everything was undone.

        A VM that is started while its point is copied from the images is kept as it runs then.
        """
        for sentence in self._premises.prepare_to_sign():
            watch(Progress("planning", note=f"warning: {sentence}"))
        try:
            return self._run(take_point, request, request.vm, watch)
        except VmStarted as error:
            _log.info("started meanwhile", vm=request.vm, error=error.message)
            taken = self._run(take_point, request, request.vm, watch)
            told = f"{taken.point['vm']} was started while its point was copied, so this point is of the running VM."
            return dataclasses.replace(taken, warnings=(told, *taken.warnings))

    def take_snapshot(self, request: TakeSnapshot, watch: Watch) -> SnapshotTaken:
        """Make a snapshot; raises the error that ended it. One that was made stays, and the error says so."""
        return self._run(take_snapshot, request, request.vm, watch)

    def restore_files(self, request: RestoreFiles, watch: Watch) -> FilesRestored:
        """Restore to files."""
        return self._run(restore_files, request, None, watch)

    def restore_vm(self, request: RestoreVm, watch: Watch) -> VmRestored:
        """Restore as a VM."""
        refuse_distrusted(self._premises.catalog, request.point)
        return self._run(restore_vm, request, request.name, watch)

    def take_safety_point(self, request: RestoreInPlace, watch: Watch) -> tuple[RestoreInPlace, PointTaken]:
        """Refuse a restore in place that cannot be done, then take the point of the VM as it is now.

        Disks whose image is gone are left out of it. Nothing of the VM was changed when this raises. Returns the
        request made complete as well.
        """
        checked = self.check_in_place(request, watch)
        _refuse_other_name(request, checked)
        labels = {SAFETY_LABEL: request.point}
        without = "Or restore to files or as a VM of its own (`vmkeep restore --help`): neither needs a safety point."
        taken = self._take_safety_point(_safety_point(checked, labels), without, watch)
        return dataclasses.replace(request, safety=str(taken.point["id"]), images=checked.images), taken

    def check_in_place(self, request: RestoreInPlace, watch: Watch) -> InPlaceChecked:
        """Raise what refuses a restore in place; nothing is changed."""
        refuse_distrusted(self._premises.catalog, request.point)
        task = CheckInPlace(request.point, request.only, str(request.tpm), request.vm_uuid)
        return self._ask(task, watch)

    def _ask(self, task: Task[R], watch: Watch) -> R:
        """Carry out a task of the host that belongs to no flow."""
        self._stop()
        self._watch = watch
        try:
            return self._services().on_host(uuid.uuid4().hex, task)
        finally:
            self._watch = self._unwatched

    def restore_in_place(self, request: RestoreInPlace, watch: Watch) -> InPlaceRestored:
        """Write a point over its VM, whose safety point was just taken; on failure the VM is as before.

        The request is one that ``take_safety_point`` returned.

        Raises RestorePending when it is not: it is kept from starting then.
        """
        return self._run(restore_in_place, request, request.vm, watch)

    def check_revert(self, request: RevertSnapshot, watch: Watch) -> tuple[RevertSnapshot, RevertChecked]:
        """Raise what refuses a revert, and change nothing; return the request made complete, and what it would do."""
        vm_uuid = self._host.ask(FindVm(request.vm))
        known = known_snapshot(self._premises.catalog, vm_uuid, request.snapshot)
        checked = self._ask(CheckRevert(vm_uuid, choice_of(request), known, request.stop), watch)
        complete = dataclasses.replace(
            request, vm=checked.vm_name, vm_uuid=vm_uuid, creation_time=checked.creation_time
        )
        return complete, checked

    def stop_for_revert(self, request: RevertSnapshot, watch: Watch) -> None:
        """Pull the plug of a VM that will be reverted."""
        self._ask(StopForRevert(request.vm_uuid), watch)

    def take_point_before_revert(self, request: RevertSnapshot, checked: RevertChecked, watch: Watch) -> PointTaken:
        """Take the point of the VM as it is now. Disks whose image is gone are left out of it."""
        labels = {SAFETY_LABEL: f"snapshot {request.snapshot}"}
        command = command_line("vmkeep snapshot revert", request.vm, request.snapshot, options="--no-safety")
        without = f"Or go without a safety point, and what the VM is now is lost: `{command}`."
        return self._take_safety_point(_safety_point(checked, labels), without, watch)

    def _take_safety_point(self, request: TakePoint, without: str, watch: Watch) -> PointTaken:
        """Take a point that goes first. ``without``: how to do without it, told when the VM's state forbids it."""
        try:
            return self.take_point(request, watch)
        except (DiskUnsupported, NoSpace, SecretMissing, SecretPrivate, StateUnsupported) as error:
            raise type(error)(
                f"The safety point that goes first cannot be taken: {error.message}",
                vm=error.vm,
                disk=error.disk,
                path=error.path,
                hint=" ".join(filter(None, (error.hint, without))),
            ) from error

    def revert_snapshot(self, request: RevertSnapshot, watch: Watch) -> SnapshotReverted:
        """Take a VM back to a snapshot; on failure it is as before. The request is one that ``check_revert`` returned.

        Raises RestorePending when it is not: it is kept from starting then.
        """
        return self._run(revert_snapshot, request, request.vm, watch)

    def delete_point(self, point_id: str) -> None:
        """Delete a point from the repository and the catalogue; after a crash in between the next start goes on."""
        self._host.ask(RequireUnneeded(point_id))
        catalog = self._premises.catalog
        operation = uuid.uuid4().hex
        vm = None
        with suppress(PointNotFound):
            vm = catalog.find_point(point_id).vm_name
        catalog.begin_operation(operation, _DELETE_POINT, vm, self._executor, {"point": point_id})
        try:
            self._remove_deleted(point_id)
        except VmkeepError as error:
            self._end(operation, OperationState.FAILED, error)
            raise
        self._end(operation, OperationState.DONE, None)

    def _remove_deleted(self, point_id: str) -> None:
        # The object first: a point that is only in the catalogue is told by verify, one that is only in the
        # repository would come back at the next adoption.
        with suppress(PointNotFound):  # deleted by an attempt that did not live to tell the catalogue
            self._services().with_repository(lambda repository: repository.delete_point(point_id))
        self._premises.catalog.forget_point(point_id)

    def cancel(self, reason: Interrupted) -> None:
        """End the running operation with ``reason``, cleaned up as after any failure. For signal handlers."""
        self._cancelled = reason

    # -- DBOS --------------------------------------------------------------------------------------------------

    def _launch(self, path: Path) -> None:
        try:
            make_private_file(path)
        except OSError as error:
            raise file_error(error, path) from error
        # DBOS logs to the console, and every failed step with a traceback; errors reach the user another way.
        logging.getLogger("dbos").setLevel(logging.CRITICAL + 1)
        _use_write_ahead_log(path)
        refuse_pickle()
        refuse_foreign_rows(path)
        config: DBOSConfig = {
            "name": "vmkeep",
            "system_database_url": f"sqlite:///{path}",
            "executor_id": self._executor,
            "application_version": _APPLICATION_VERSION,
            "serializer": FlowSerializer(),
            "log_level": "CRITICAL",
            # Each poll takes the write lock for a moment (BEGIN IMMEDIATE); the end waits for one interval.
            "notification_listener_polling_interval_sec": 0.1,
        }
        DBOS(config=config)
        self._workflows = {
            declared.name: DBOS.workflow(name=declared.name)(workflow_of(declared, self._services, self._runs))
            for declared in _FLOWS
        }
        DBOS.launch()

    def _services(self) -> Services:
        return Services(
            host=self._host,
            catalog=self._premises.catalog,
            repository=lambda: self._premises.repository,
            stop=self._stop,
            watch=self._tell,
            stalled_after_seconds=self._premises.settings.stalled_after_seconds,
        )

    def _stop(self) -> None:
        if self._cancelled is not None:
            raise self._cancelled

    def _tell(self, progress: Progress) -> None:
        self._watch(progress)

    def _run(self, declared: Flow[Any, R], request: Any, vm: str | None, watch: Watch) -> R:
        self._stop()
        operation = uuid.uuid4().hex
        catalog = self._premises.catalog
        self._watch = watch
        catalog.begin_operation(operation, declared.name, vm, self._executor, dataclasses.asdict(request))
        try:
            with SetWorkflowID(operation):
                result: R = self._workflows[declared.name](request)
        except VmkeepError as error:
            self._end(operation, OperationState.FAILED, error)
            raise
        except GivenUp as given:
            given.error.vm = given.error.vm or vm
            if declared is take_point and operation in catalog.point_ids():
                given.error.add_note(f"point {operation} is stored and whole; only the end of its job is missing")
            self._end(operation, OperationState.FAILED, given.error)
            raise
        except Exception as error:
            fault = self._fault(error)
            _log.exception("fault", operation=operation, flow=declared.name)
            self._end(operation, OperationState.FAILED, fault)
            raise fault from error
        finally:
            self._watch = self._unwatched
        self._end(operation, OperationState.DONE, None)
        return result

    def _fault(self, error: Exception) -> VmkeepError:
        """Return the error of our tree for one that DBOS or a fault of ours raised."""
        if isinstance(error, DatabaseError):
            return sqlite_error(error.orig or error, self._premises.settings.flows_path, "the flow database")
        return fault_error(error)

    def _end(self, operation: str, state: OperationState, error: VmkeepError | None) -> None:
        """Note how the operation ended; a catalogue that fails here must not hide what happened."""
        with suppress(VmkeepError):
            self._premises.catalog.move_operation(
                operation, self._executor, state, error.as_dict() if error is not None else None
            )

    # -- flows of dead processes -------------------------------------------------------------------------------

    def _recover(self) -> tuple[str, ...]:
        """Settle the flows and operations of every dead owner; return a sentence for each flow."""
        told: list[str] = []
        flows: dict[str, list[WorkflowStatus]] = {}
        for status in DBOS.list_workflows(status=["PENDING", "ENQUEUED"]):
            flows.setdefault(status.executor_id or "", []).append(status)
        # A flow that a recovery resumed before it died itself may be taken up by this process's DBOS at launch.
        told.extend(self._finish(mine, resume=False) for mine in flows.pop(self._executor, ()))
        owners_dir = self._premises.settings.owners_dir
        owners = {path.stem for path in owners_dir.glob("*.lock")} | flows.keys()
        owners |= {operation.owner for operation in self._premises.catalog.unfinished_operations()}
        for owner in sorted(owners - {self._executor}):
            # Holding the dead owner's lock keeps two commands from recovering the same flow.
            lock = FileLock.try_acquire(owners_dir / f"{owner}.lock")
            if lock is None:
                continue
            with lock:
                told.extend(self._recover_one(status) for status in flows.get(owner, ()))
                told.extend(self._settle_operations(owner))
        return tuple(told)

    def _recover_one(self, status: WorkflowStatus) -> str:
        rule = next((declared.after_crash for declared in _FLOWS if declared.name == status.name), AfterCrash.UNDO)
        operation = status.workflow_id
        try:
            return self._undo(status) if rule is AfterCrash.UNDO else self._finish(status, resume=True)
        except Interrupted:
            raise
        except VmkeepError as error:
            return f"an interrupted operation ({status.name} {operation}) could not be put right: {error}"

    def _take_over(self, operation: str) -> None:
        """Make the record ours; it may be a dead recovery's by now, which is not the owner of the flow."""
        with suppress(VmkeepError):
            owner = self._premises.catalog.operation(operation).owner
            self._premises.catalog.take_over_operation(operation, owner, self._executor)

    def _undo(self, status: WorkflowStatus) -> str:
        """Remove what a point left in repository and catalogue; the guest was made safe by its guardian."""
        operation = status.workflow_id
        self._take_over(operation)
        if status.name == TAKE_SNAPSHOT:
            # Whatever came of it is finished, never made anew: the instant that was asked for has passed.
            settled = settle_snapshot(self._services(), operation)
            ended = OperationState.DONE if settled.whole else OperationState.FAILED
            self._end(operation, ended, None if settled.whole else Interrupted("the process was killed"))
            told = settled.told
        elif status.name == TAKE_POINT and operation in self._premises.catalog.point_ids():
            # Everything was recorded; only the end of the job was missing, and the guardian saw to that.
            self._end(operation, OperationState.DONE, None)
            told = f"point {operation} was complete when its process was killed"
        elif status.name == TAKE_POINT and record_committed_point(self._services(), operation):
            self._end(operation, OperationState.DONE, None)
            told = f"point {operation} was complete when its process was killed, and is recorded now"
        else:
            remove_point(self._services(), operation)
            self._end(operation, OperationState.FAILED, Interrupted("the process was killed"))
            told = f"an interrupted point ({operation}) was removed from the repository"
        # Last: when this process is killed before, the next one finds the flow and does it again.
        DBOS.cancel_workflow(operation)
        return told

    def _finish(self, status: WorkflowStatus, *, resume: bool) -> str:
        operation, name = status.workflow_id, status.name
        self._take_over(operation)
        handle: Any = DBOS.resume_workflow(operation) if resume else DBOS.retrieve_workflow(operation)
        try:
            # The flow goes on in a thread of DBOS's. One that gives up there stays pending, and is not waited for.
            result = patiently(
                lambda: self._result(operation, handle),
                self._premises.settings.stalled_after_seconds,
                watch=self._tell,
                stop=self._stop,
            )
        except Interrupted:
            raise
        except RestorePending as error:
            self._end(operation, OperationState.FAILED, error)
            return f"an interrupted operation ({name} {operation}) could neither be finished nor undone: {error}"
        except VmkeepError as error:
            self._end(operation, OperationState.FAILED, error)
            return f"an interrupted operation ({name} {operation}) could not be finished and was undone: {error}"
        self._end(operation, OperationState.DONE, None)
        told = " ".join(getattr(result, "warnings", ()))
        return f"an interrupted operation ({name} {operation}) was finished{f': {told}' if told else ''}"

    def _result(self, operation: str, handle: Any) -> Any:
        """Wait for the end of a resumed flow, and return or raise what came of it.

        Not with DBOS's own wait: when the flow database fails at the end of the flow, or as it is taken up, the flow
        stays pending although nobody runs it, and that wait has no end. The next command takes it up again.
        """
        since: float | None = None
        while (state := handle.get_status().status) in ("PENDING", "ENQUEUED"):
            run = self._runs.get(operation)
            over = state == "PENDING" if run is None else run.ended
            since = (since or time.monotonic()) if over else None
            waited = 0.0 if since is None else time.monotonic() - since
            if run is None and waited > _TAKING_UP_SECONDS:
                path = str(self._premises.settings.flows_path)
                raise GivenUp(StoreError(f"the flow database {path} failed as an operation was taken up", path=path))
            if run is not None and waited > _RECORDING_SECONDS:
                if run.error is not None:
                    raise run.error
                return run.result
            time.sleep(_RESULT_SECONDS)
        return handle.get_result()

    def _settle_restores(self) -> tuple[str, ...]:
        """End restores in place whose flow is over or lost, and that nobody carries on."""
        told: list[str] = []
        for operation in self._host.ask(ListUnfinished()).restores:
            status = DBOS.get_workflow_status(operation)
            if status is not None and status.status in ("PENDING", "ENQUEUED"):
                continue  # its process lives
            try:
                settled = self._services().on_host(operation, SettleRestore(operation))
            except Interrupted:
                raise
            except VmkeepError as error:
                told.append(f"an interrupted restore ({operation}) could not be put right: {error}")
                continue
            if settled is not None:
                if settled.known:
                    self._premises.catalog.return_to(settled.vm_uuid, settled.point)
                else:
                    self._premises.catalog.lose_track(settled.vm_uuid)
                told.append(settled.told)
        return tuple(told)

    def _settle_snapshots(self) -> tuple[str, ...]:
        """End snapshots whose flow failed after they were made, and that nobody carries on."""
        told: list[str] = []
        for operation in self._host.ask(ListUnfinished()).snapshots:
            status = DBOS.get_workflow_status(operation)
            if status is not None and status.status in ("PENDING", "ENQUEUED"):
                continue  # its process lives
            try:
                told.append(settle_snapshot(self._services(), operation).told)
            except Interrupted:
                raise
            except VmkeepError as error:
                told.append(f"an interrupted snapshot ({operation}) could not be put right: {error}")
        return tuple(told)

    def _settle_operations(self, owner: str) -> Iterator[str]:
        """End the records of a dead owner whose flow ended, or never began, while the record could not be written.

        A point that was being deleted is deleted: what is left of it may be in the catalogue only.
        """
        catalog = self._premises.catalog
        for operation in catalog.unfinished_operations():
            status = DBOS.get_workflow_status(operation.id)
            if operation.owner != owner or (status is not None and status.status in ("PENDING", "ENQUEUED")):
                continue
            if not catalog.take_over_operation(operation.id, owner, self._executor):
                continue
            if operation.kind == _DELETE_POINT:
                yield self._finish_deletion(operation)
            elif operation.kind == SNAPSHOT_CHANGE:
                yield from self._finish_change(operation)
            elif status is not None and status.status == "SUCCESS":
                self._end(operation.id, OperationState.DONE, None)
            else:
                self._end(operation.id, OperationState.FAILED, Interrupted("the process was killed"))

    def _finish_change(self, operation: Operation) -> tuple[str, ...]:
        """Let the catalogue agree with what libvirt made of a change of snapshots."""
        from vmkeep.flows.change_moments import agree  # with all that is known of moments, for a rare case

        try:
            told = agree(self._host, self._premises.catalog, operation.request)
        except VmNotFound:
            told = ()  # and with the VM went what libvirt listed
        self._end(operation.id, OperationState.DONE, None)
        return told

    def _finish_deletion(self, operation: Operation) -> str:
        point_id = str(operation.request.get("point"))
        try:
            self._host.ask(RequireUnneeded(point_id))
            self._remove_deleted(point_id)
        except VmkeepError as error:
            self._end(operation.id, OperationState.FAILED, error)
            return f"the interrupted deletion of point {point_id} could not be finished: {error}"
        self._end(operation.id, OperationState.DONE, None)
        return f"the interrupted deletion of point {point_id} was finished"


def _refuse_other_name(request: RestoreInPlace, checked: InPlaceChecked) -> None:
    """Raise ChoiceRequired when the point's VM has another name on this host, and nobody is asked about it.

    Of a point that another host made, both the name that a person saw and the VM that it is of are what that host says.
    """
    if request.vm_called in ("", checked.vm_name):
        return
    by_uuid = command_line("vmkeep restore", f"{checked.vm_uuid}@latest", options="--in-place --yes")
    raise ChoiceRequired(
        f"point {request.point} is of a VM that it calls {request.vm_called!r}, and on this host that VM "
        f"({checked.vm_uuid}) is {checked.vm_name!r}",
        vm=checked.vm_name,
        hint=f"Nothing was changed. Without --yes you are asked; or name the VM by its UUID, as in `{by_uuid}`.",
    )


def _safety_point(checked: InPlaceChecked | RevertChecked, labels: Mapping[str, str]) -> TakePoint:
    """Return the request for the point of a VM as it is before it is written over: it holds whatever will be."""
    demanded = tuple(target for target in checked.disks if target not in checked.missing)
    return TakePoint(checked.vm_name, exclude=checked.missing, labels=labels, demanded=demanded)


def _use_write_ahead_log(path: Path) -> None:
    """Let SQLite write each step once and sync once; DBOS leaves the file with a rollback journal: three syncs a step.

    The mode is kept in the file. While another process has it open in the old mode it stays, until the next start. A
    file that has it is not opened for this: the last to close it writes the whole log back, which syncs three times.
    """
    if _has_write_ahead_log(path):
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0)) as database:
        database.execute("PRAGMA journal_mode = WAL")


def _has_write_ahead_log(path: Path) -> bool:
    """Tell by the two version numbers in the file's header (https://www.sqlite.org/fileformat2.html, 1.3.3)."""
    try:
        with path.open("rb") as file:
            return file.read(20)[18:] == b"\x02\x02"
    except OSError:
        return False  # whoever uses the file says so


def _unwatched(_progress: Progress) -> None:
    return
