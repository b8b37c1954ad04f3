"""The machine at hand, in process. Which room carries out a task is decided here, and each is entered when needed.

A point is mostly its start, and most commands need one room only: so none is imported before it has something to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vmkeep.errors import GivenUp, VmkeepError
from vmkeep.filesystem import fault_error
from vmkeep.host.connection import LazyConnection
from vmkeep.host.guard.standby import dismiss
from vmkeep.host.operation import Operation
from vmkeep.host.protocol import TaskState, silence
from vmkeep.host.tasks.task import Task
from vmkeep.logs import get_logger
from vmkeep.rates import stop_waiting
from vmkeep.threads import working_for

if TYPE_CHECKING:
    from vmkeep.config import Settings
    from vmkeep.hypervisor import Hypervisor
    from vmkeep.repository import Repository, Unanswered

_log = get_logger(__name__)
R = TypeVar("R")


@dataclass(slots=True)
class _Run:
    """A task of an operation that runs, or ran last."""

    task: Task[Any]
    operation: Operation
    result: Any = None
    error: VmkeepError | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class LocalHost:
    """The Host protocol on this machine. Each task runs in a thread of its own."""

    def __init__(self, settings: Settings, repository: Callable[[], Repository] | None = None) -> None:
        """``repository`` opens it; a host that is only surveyed needs none."""
        self._settings = settings
        self._open_repository = repository
        self._connection = LazyConnection(settings.uri)
        self._runs: dict[str, _Run] = {}
        # Operations that hold a VM and run nothing.
        self._holding: dict[str, Operation] = {}
        self._unanswered: Callable[[str | None], Unanswered | None] = lambda _operation: None

    def close(self) -> None:
        """Close the connection to libvirt; what was begun on the host is not ended by this.

        Locks are let go of, because a thread that hangs keeps this process, and what it has open, until it comes back.
        Not so while libvirt is waited for: the guardian has not undone anything then, and holds the lock as well; a
        thread that waits for a socket ends with its process.
        """
        if silence() is not None and not all(run.ended.is_set() for run in self._runs.values()):
            return
        for operation in (*self._holding.values(), *(run.operation for run in self._runs.values())):
            if operation.holder is not None:
                operation.holder.release()
        dismiss()
        self._connection.close()

    def ask(self, task: Task[R]) -> R:
        """Carry out a short task in the caller's time, and return the answer or raise the error."""
        operation = self._operation(getattr(task, "operation", ""))
        try:
            return cast("R", _carry_out(task, operation))
        finally:
            if operation.holder is not None:
                self._holding[operation.id] = operation
            else:
                self._holding.pop(operation.id, None)

    def start(self, operation: str, task: Task[Any]) -> None:
        before = self._runs.get(operation)
        if before is not None and before.task == task and not before.ended.is_set():
            return
        run = _Run(task, self._operation(operation))
        run.operation.cancelled = run.operation.progress = None
        self._runs[operation] = run
        thread = threading.Thread(target=self._run, args=(run,), name=f"vmkeep-{type(task).__name__}", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:  # no further thread is to be had
            run.error = fault_error(error)
            run.ended.set()

    def poll(self, operation: str, wait_seconds: float = 0.0) -> TaskState:
        run = self._runs[operation]
        ended, progress = run.ended.wait(wait_seconds), run.operation.progress
        if ended:
            return TaskState(ended, run.result, run.error, progress)
        return TaskState(ended, progress=progress, unanswered=self._unanswered(operation), silence=silence(operation))

    def cancel(self, operation: str, reason: VmkeepError) -> None:
        self._runs[operation].operation.cancelled = reason
        stop_waiting(operation)

    def release_guest(self, operation: str) -> None:
        holder = self._runs[operation].operation.holder
        if holder is not None:
            holder.release_guest()

    def _operation(self, operation: str) -> Operation:
        before = self._runs.get(operation)
        if before is not None:
            return before.operation
        return self._holding.get(operation) or Operation(operation, self._settings, self._connected, self._repository)

    def _run(self, run: _Run) -> None:
        try:
            with working_for(run.operation.id):
                run.result = _carry_out(run.task, run.operation)
        except VmkeepError as error:
            run.error = error
        except GivenUp as given:
            run.error = given.error
        # Whatever it is must end the flow as a failure does, with its undos. A task without an error counts as done.
        except BaseException as error:
            _log.exception("fault", task=type(run.task).__name__)
            run.error = fault_error(error)
        finally:
            run.ended.set()

    def _connected(self) -> Hypervisor:
        return self._connection.opened()

    def _repository(self) -> Repository:
        assert self._open_repository is not None, "this host was made for surveys only"
        from vmkeep.repository import unanswered

        self._unanswered = unanswered
        return self._open_repository()


def _carry_out(task: Task[Any], operation: Operation) -> Any:
    """Let the room carry a task out that its noun belongs to: the module of ``vmkeep.host.tasks`` that declares it."""
    return _desk(type(task).__module__.rpartition(".")[2])(task, operation)


def _desk(noun: str) -> Callable[[Task[Any], Operation], Any]:  # noqa: C901  one arm a noun, and nothing else
    match noun:
        case "points":
            from vmkeep.host.points.desk import carry_out
        case "restores":
            from vmkeep.host.restores.desk import carry_out
        case "reverts":
            from vmkeep.host.reverts.desk import carry_out
        case "snapshots":
            from vmkeep.host.snapshots.desk import carry_out
        case "moments":
            from vmkeep.host.moments.desk import carry_out
        case "checkpoints":
            from vmkeep.host.checkpoints.desk import carry_out
        case "checkup":
            from vmkeep.host.checkup.desk import carry_out
        case "survey":
            from vmkeep.host.vm.desk import carry_out
        case "states":
            from vmkeep.host.states.desk import carry_out
        case "orphans":
            from vmkeep.host.orphans.desk import carry_out
        case "clones":
            from vmkeep.host.clones.desk import carry_out
        case "tpms":
            from vmkeep.host.tpms.desk import carry_out
        case "nvram":
            from vmkeep.host.nvram.desk import carry_out
        case "gate":
            from vmkeep.host.gate.desk import carry_out
        case "locks":
            from vmkeep.host.records.desk import carry_out
        case "unfinished":
            from vmkeep.host.recovery import carry_out
        case _:
            raise AssertionError(f"no room carries out tasks of {noun}")
    return carry_out
