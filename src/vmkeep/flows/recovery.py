"""What dead processes left behind, settled by the next one: their flows, by the rule of each, and their operations.

Two commands cannot settle the same flow: who does holds the dead owner's lock. What a host has left over of restores
and snapshots whose flow is gone is asked of it, and ended by a task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from vmkeep.catalog import Catalog, Operation, OperationState
from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.errors import (
    CatalogError,
    GivenUp,
    Interrupted,
    NeedsOperator,
    OperationRuns,
    RestorePending,
    StoreError,
    UndoStopped,
    VmkeepError,
    VmNotFound,
)
from vmkeep.flows.declared import DECLARED, PRUNE, REPAIR, declared_flow
from vmkeep.flows.durable import DBOS, WorkflowStatus, take_up_resumed
from vmkeep.flows.forget_snapshot import SNAPSHOT_CHANGE
from vmkeep.flows.patience import patiently
from vmkeep.flows.plan import Run, Settled
from vmkeep.flows.rows import may_have_flows_under_way
from vmkeep.flows.services import Services, end_operation
from vmkeep.host.tasks.unfinished import ListUnfinished, RescueGuests, SettleRestore, Unfinished
from vmkeep.locks import FileLock
from vmkeep.values import dataclass

_RESULT_SECONDS = 0.05
# So long after a flow ended the flow database has what it will have of it; so long after one was taken up it runs.
_RECORDING_SECONDS = 5.0
_TAKING_UP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """Settles in the name of ``executor``. ``runs`` are the flows of this process."""

    settings: Settings
    executor: str
    runs: Mapping[str, Run]
    services: Callable[[], Services]

    def recover(self) -> tuple[str, ...]:
        """Settle all there is, the guests first; return a sentence for each thing."""
        return (
            *(sentence for services in self.services().on_each() for sentence in services.host.ask(RescueGuests())),
            *self._recover(),
            *self._settle_restores(),
            *self._settle_snapshots(),
        )

    @property
    def _catalog(self) -> Catalog:
        return self.services().catalog

    def _recover(self) -> tuple[str, ...]:
        """Settle the flows and operations of every dead owner; return a sentence for each flow."""
        told: list[str] = []
        flows: dict[str, list[WorkflowStatus]] = {}
        unfinished = self._catalog.unfinished_operations()
        waiting = {each.id for each in unfinished if each.state is OperationState.NEEDS_OPERATOR}
        under_way = may_have_flows_under_way(self.settings.flows_path)
        for status in DBOS.list_workflows(status=["PENDING", "ENQUEUED"]) if under_way else ():
            if status.workflow_id not in waiting:
                flows.setdefault(status.executor_id or "", []).append(status)
        # A flow that a recovery resumed before it died itself may be taken up by this process's DBOS at launch.
        told.extend(self._finish(mine, resume=False) for mine in flows.pop(self.executor, ()))
        owners_dir = self.settings.owners_dir
        owners = {path.stem for path in owners_dir.glob("*.lock")} | flows.keys()
        owners |= {each.owner for each in unfinished if each.id not in waiting}
        for owner in sorted(owners - {self.executor}):
            # Holding the dead owner's lock keeps two commands from recovering the same flow.
            lock = FileLock.try_acquire(owners_dir / f"{owner}.lock")
            if lock is None:
                continue
            with lock:
                told.extend(self._recover_one(status) for status in flows.get(owner, ()))
                told.extend(self._settle_operations(owner))
        return tuple(told)

    def _waiting(self) -> tuple[Operation, ...]:
        """Return the operations that wait for a person."""
        unfinished = self._catalog.unfinished_operations()
        return tuple(each for each in unfinished if each.state is OperationState.NEEDS_OPERATOR)

    def resume_each(self) -> Iterator[str]:
        """Take up what waits for a person, and yield a sentence for each."""
        for operation in self._waiting():
            try:
                yield self.resume(operation)
            except Interrupted:
                raise
            except VmkeepError as error:
                yield f"an operation ({operation.kind} {operation.id}) still needs a person: {error} ({error.hint})"

    def resume(self, operation: Operation) -> str:
        """Go on undoing an operation; see Engine.resume. After a kill in the middle the next command does."""
        with self._of_nobody(operation):
            status = DBOS.get_workflow_status(operation.id)
            if status is None or status.status not in ("PENDING", "ENQUEUED") or status.name not in DECLARED:
                dismissed = command_line("vmkeep ops cancel", operation.id)
                raise NeedsOperator(
                    f"the database of flows knows nothing any more of the operation {operation.id} ({operation.kind})",
                    vm=operation.vm,
                    path=str(self.settings.flows_path),
                    hint=f"Put right by hand what its error names; then `{dismissed}` ends its record.",
                )
            self._catalog.move_operation(operation.id, self.executor, OperationState.RUNNING)
            told = self._finish(status, resume=True)
        ended = self._catalog.operation(operation.id)
        if ended.state is OperationState.NEEDS_OPERATOR:
            raise VmkeepError.from_dict(ended.error or {})
        return told

    def dismiss(self, operation: Operation) -> None:
        """End the record of an operation; see Engine.dismiss."""
        with self._of_nobody(operation):
            DBOS.cancel_workflow(operation.id)
            self._end(operation.id, OperationState.FAILED, None)

    @contextmanager
    def _of_nobody(self, operation: Operation) -> Iterator[None]:
        """Make an operation ours that waits for a person. Raises OperationRuns when another process did so first."""
        lock = FileLock.try_acquire(self.settings.owners_dir / f"{operation.owner}.lock")
        if lock is not None:
            with lock:
                present = self._catalog.operation(operation.id)
                if present.state is OperationState.NEEDS_OPERATOR and self._catalog.take_over_operation(
                    operation.id, operation.owner, self.executor
                ):
                    yield
                    return
        raise OperationRuns(f"another process took the operation {operation.id} up", vm=operation.vm)

    def _recover_one(self, status: WorkflowStatus) -> str:
        operation = status.workflow_id
        try:
            if status.name not in DECLARED:
                return f"an interrupted operation ({status.name} {operation}) is of no flow that this release knows"
            settle = declared_flow(status.name).settle
            if settle is None:
                return self._finish(status, resume=True)
            return self._settle(status, settle)
        except Interrupted:
            raise
        except VmkeepError as error:
            return f"an interrupted operation ({status.name} {operation}) could not be put right: {error}"

    def _take_over(self, operation: str) -> None:
        """Make the record ours; it may be a dead recovery's by now, which is not the owner of the flow."""
        with suppress(VmkeepError):
            owner = self._catalog.operation(operation).owner
            self._catalog.take_over_operation(operation, owner, self.executor)

    def _services_of(self, operation: str) -> Services:
        """Return what works on the host on which an operation was at work; raises InvalidRequest for one that is gone.

        Where the catalogue lacks the operation, because the home was put back as it was, it worked on this host.
        """
        services = self.services()
        with suppress(CatalogError):
            return services.on(str(services.catalog.operation(operation).request.get("host", services.at)))
        return services

    def _settle(self, status: WorkflowStatus, settle: Callable[[Services, str], Settled]) -> str:
        """End a flow whose instant has passed: it is whole, or nothing of it stays."""
        operation = status.workflow_id
        self._take_over(operation)
        settled = settle(self._services_of(operation), operation)
        ended = OperationState.DONE if settled.whole else OperationState.FAILED
        self._end(operation, ended, None if settled.whole else Interrupted("the process was killed"))
        # Last: when this process is killed before, the next one finds the flow and does it again.
        DBOS.cancel_workflow(operation)
        return settled.told

    def _finish(self, status: WorkflowStatus, *, resume: bool) -> str:
        operation, name = status.workflow_id, status.name
        self._take_over(operation)
        handle: Any = DBOS.resume_workflow(operation) if resume else DBOS.retrieve_workflow(operation)
        take_up_resumed()
        try:
            # The flow goes on in a thread of DBOS's. One that gives up there stays pending, and is not waited for.
            result = patiently(
                lambda: self._result(operation, handle),
                self.settings.stalled_after_seconds,
                watch=self.services().watch,
                stop=self.services().stop,
            )
        except Interrupted:
            raise
        except UndoStopped as stopped:
            self._end(operation, OperationState.NEEDS_OPERATOR, stopped.error)
            return (
                f"an interrupted operation ({name} {operation}) needs a person: {stopped.error} ({stopped.error.hint})"
            )
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
            run = self.runs.get(operation)
            if run is not None and isinstance(run.error, UndoStopped):
                raise run.error
            over = state == "PENDING" if run is None else run.ended
            since = (since or time.monotonic()) if over else None
            waited = 0.0 if since is None else time.monotonic() - since
            if run is None and waited > _TAKING_UP_SECONDS:
                path = str(self.settings.flows_path)
                raise GivenUp(StoreError(f"the flow database {path} failed as an operation was taken up", path=path))
            if run is not None and waited > _RECORDING_SECONDS:
                if run.error is not None:
                    raise run.error
                return run.result
            time.sleep(_RESULT_SECONDS)
        return handle.get_result()

    def _unfinished(self, which: Callable[[Unfinished], Iterable[str]]) -> Iterator[tuple[Services, str]]:
        """Yield what each host has left over of operations that nobody carries on, with what works there."""
        for services in self.services().on_each():
            for operation in which(services.host.ask(ListUnfinished())):
                status = DBOS.get_workflow_status(operation)
                if status is None or status.status not in ("PENDING", "ENQUEUED"):  # else its process lives
                    yield services, operation

    def _settle_restores(self) -> tuple[str, ...]:
        """End restores in place whose flow is over or lost, and that nobody carries on."""
        told: list[str] = []
        for services, operation in self._unfinished(lambda unfinished: unfinished.restores):
            try:
                settled = services.on_host(operation, SettleRestore(operation))
            except Interrupted:
                raise
            except VmkeepError as error:
                told.append(f"an interrupted restore ({operation}) could not be put right: {error}")
                continue
            if settled is not None:
                if settled.known and settled.moved:
                    self._catalog.return_to(settled.vm_uuid, settled.point)
                elif settled.moved:
                    self._catalog.lose_track(settled.vm_uuid)
                told.append(settled.told)
        return tuple(told)

    def _settle_snapshots(self) -> tuple[str, ...]:
        """End snapshots whose flow failed after they were made, and that nobody carries on."""
        told: list[str] = []
        for services, operation in self._unfinished(lambda unfinished: unfinished.snapshots):
            from vmkeep.flows.take_snapshot import settle_snapshot  # with all of snapshots, for a rare case

            try:
                told.append(settle_snapshot(services, operation).told)
            except Interrupted:
                raise
            except VmkeepError as error:
                told.append(f"an interrupted snapshot ({operation}) could not be put right: {error}")
        return tuple(told)

    def _settle_operations(self, owner: str) -> Iterator[str]:
        """End the records of a dead owner whose flow ended, or never began, while the record could not be written."""
        catalog = self._catalog
        for operation in catalog.unfinished_operations():
            status = DBOS.get_workflow_status(operation.id)
            if operation.owner != owner or (status is not None and status.status in ("PENDING", "ENQUEUED")):
                continue
            if operation.state is OperationState.NEEDS_OPERATOR:
                continue
            if not catalog.take_over_operation(operation.id, owner, self.executor):
                continue
            if operation.kind == SNAPSHOT_CHANGE:
                yield from self._finish_change(operation)
            elif operation.kind in (PRUNE, REPAIR):
                self._end_prune(operation)
            elif status is not None and status.status == "SUCCESS":
                self._end(operation.id, OperationState.DONE, None)
            else:
                self._end(operation.id, OperationState.FAILED, Interrupted("the process was killed"))

    def _finish_change(self, operation: Operation) -> tuple[str, ...]:
        """Let the catalogue agree with what libvirt made of a change of snapshots."""
        from vmkeep.flows.change_moments import agree  # with all that is known of moments, for a rare case

        try:
            told = agree(self.services().host, self._catalog, operation.request)
        except VmNotFound:
            told = ()  # and with the VM went what libvirt listed
        self._end(operation.id, OperationState.DONE, None)
        return told

    def _end_prune(self, operation: Operation) -> None:
        """Let nobody wait for the writer that a dead prune or repair was; the next one goes on."""
        from vmkeep.flows.prune import forget_dead

        with suppress(VmkeepError):  # it lapses by itself
            self.services().with_repository(lambda repository: forget_dead(repository, operation.id))
        self._end(operation.id, OperationState.FAILED, Interrupted("the process was killed"))

    def _end(self, operation: str, state: OperationState, error: VmkeepError | None) -> None:
        end_operation(self._catalog, self.executor, operation, state, error)
