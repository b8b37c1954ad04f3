"""Flows and their steps: durable through DBOS, undone in reverse when one fails.

DBOS records each step's result; what it lacks, and what is here, is compensation: each step may bring an undo,
which gets that step's result. A step cleans up after itself when it fails; the undos are for the steps before
it. Undos build upon each other as steps do, so one that fails ends them, until a person has it tried again
(docs/adr/0042-an-undo-that-fails-waits-for-a-person.md).
What happens to a flow whose process died is the rule that stands at its head: a point is undone, because
nothing can continue an instant that has passed; a restore is finished.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, Generic, TypeVar, TypeVarTuple

from vmkeep.commandline import command_line
from vmkeep.errors import (
    HypervisorHangs,
    HypervisorUnavailable,
    NeedsOperator,
    RestorePending,
    UndoStopped,
    VmkeepError,
)
from vmkeep.flows.durable import DBOS, DatabaseError
from vmkeep.flows.services import Services, stoppable
from vmkeep.logs import get_logger
from vmkeep.values import dataclass

_log = get_logger(__name__)
_RETURN_SECONDS = 20.0
"""How long an undo waits for a libvirtd that is gone: a package's upgrade restarts it, in some seconds."""
_RETURN_POLL_SECONDS = 0.5
Ts = TypeVarTuple("Ts")
R = TypeVar("R")
Q = TypeVar("Q")


class AfterCrash(Enum):
    """What the next command does with a flow whose process is dead."""

    UNDO = "undo"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a flow whose process died. ``whole``: what it was to make is there, and recorded."""

    told: str
    whole: bool


@dataclass(frozen=True, slots=True)
class Flow(Generic[Q, R]):
    """A workflow: its stable name, its rule after a crash, its steps, and what settles one that is undone.

    ``undos_stop``: an undo that fails ends the undos, and the flow waits for a person.
    """

    name: str
    after_crash: AfterCrash
    run: Callable[[Plan, Q], R]
    settle: Callable[[Services, str], Settled] | None = None
    undos_stop: bool = False


def flow(
    name: str,
    *,
    after_crash: AfterCrash,
    settle: Callable[[Services, str], Settled] | None = None,
    undos_alone: bool = False,
) -> Callable[[Callable[[Plan, Q], R]], Flow[Q, R]]:
    """Declare a function of a plan and a request as a flow; ``settle`` is for one that is undone after a crash.

    ``undos_alone``: none of its undos needs that another was done, or a journal on the host has what is left to do, so
    all are tried. So it is for each flow that is undone after a crash: its guest must be let go, whatever fails.
    """
    assert (settle is not None) is (after_crash is AfterCrash.UNDO)

    def declare(function: Callable[[Plan, Q], R]) -> Flow[Q, R]:
        return Flow(name, after_crash, function, settle, after_crash is AfterCrash.FINISH and not undos_alone)

    return declare


class Plan:
    """One run of a flow. Steps are numbered by DBOS in the order of the calls, so that order must not vary."""

    def __init__(self, services: Services, operation: str, *, undos_stop: bool = False) -> None:
        self.services = services
        self.operation = operation
        self._undos_stop = undos_stop
        self._undos: list[tuple[str, Callable[[], object]]] = []

    def step(
        self,
        function: Callable[[*Ts], R],
        *args: *Ts,
        undo: Callable[[R], object] | None = None,
        heeds_stop: bool = True,
    ) -> R:
        """Run one durable step and return its result; on a resumed flow a step that ended is not run again.

        A step that does not heed a stop is run although the operation was cancelled: what it ends cannot be undone.
        A stop is the failure of the step that was to come, and recorded as that: else a flow whose process dies while
        it is undone would go on from there, upon what is undone.
        """
        name = getattr(function, "__name__", type(function).__name__)
        _log.debug("step", operation=self.operation, step=name)
        ended: list[R] = []

        def run() -> R:
            if heeds_stop:
                self.services.stop()
            ended.append(function(*args))
            return ended[0]

        try:
            result = DBOS.run_step({"name": name}, run)
        except DatabaseError:
            if ended and undo is not None:  # it was done, and only could not be recorded
                self._undos.append((name, lambda: undo(ended[0])))
            raise
        if undo is not None:
            self._undos.append((name, lambda: undo(result)))
        return result

    def undo_all(self, cause: BaseException) -> RestorePending | None:
        """Undo what was done, last first. Raises UndoStopped where an undo that fails ends the undos; else it is told
        with the cause, and the others are tried.

        A flow database that fails keeps no undo from being done, only from being recorded. Returns the error
        of one that left a VM unfit to start: that is what the user must hear first.
        """
        self.services = dataclasses.replace(self.services, undoing=True)
        pending = None
        while self._undos:
            name, undo = self._undos.pop()
            left = (name, *(each for each, _ in reversed(self._undos)))
            attempt = _Undo(undo, self._stopper(left, cause) if self._undos_stop else None)
            try:
                try:
                    DBOS.run_step({"name": f"undo_{name}"}, attempt)
                except DatabaseError as failed:
                    _log.error("undo not recorded", operation=self.operation, step=name, error=str(failed))
                    attempt.ensure()
            except Exception as error:
                _log.error("undo failed", operation=self.operation, step=name, error=str(error))
                if isinstance(error, RestorePending):
                    pending = error
                else:
                    cause.add_note(f"undoing {name} failed as well: {error}")
        return pending

    def _stopper(self, left: tuple[str, ...], cause: BaseException) -> Callable[[Exception], UndoStopped]:
        def stopped(error: Exception) -> UndoStopped:
            _log.error("undo stopped", operation=self.operation, step=left[0], error=str(error))
            return UndoStopped(_needs_operator(self.operation, left, cause, error))

        return stopped


def _needs_operator(operation: str, left: tuple[str, ...], cause: BaseException, error: Exception) -> NeedsOperator:
    """Return what is told of an undo that failed, with all that the two errors name."""
    errors = [each for each in (error, cause) if isinstance(each, VmkeepError)]
    # What a class of errors says in general is to run the command again, which is not what helps here.
    hints = [error.hint] if isinstance(error, VmkeepError) and error.hint not in ("", error.default_hint) else []
    shown = command_line("vmkeep ops show", operation)
    resumed = command_line("vmkeep ops resume", operation)
    told = NeedsOperator(
        f"{cause}; undoing it stopped at the step {left[0]}: {error}",
        vm=next((each.vm for each in errors if each.vm), None),
        disk=next((each.disk for each in errors if each.disk), None),
        path=next((each.path for each in errors if each.path), None),
        hint=" ".join((*hints, f"When that is put right, `{resumed}` goes on undoing; `{shown}` has each step.")),
        left=left,
    )
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told


class _Undo:
    """One undo, run as a step that returns nothing. ``stopped`` makes what its failure raises of it."""

    def __init__(self, undo: Callable[[], object], stopped: Callable[[Exception], UndoStopped] | None = None) -> None:
        self._undo = undo
        self._stopped = stopped
        # Where the others are tried whatever fails, a guest may be waiting for them.
        self._waits_until = 0.0 if stopped is None else time.monotonic() + _RETURN_SECONDS
        self._begun = False
        self._error: Exception | None = None

    def __call__(self) -> None:
        self._begun = True
        try:
            self._undo_with_libvirt()
        except Exception as error:
            if self._stopped is not None:
                raise self._stopped(error) from error
            self._error = error
            raise

    def _undo_with_libvirt(self) -> None:
        """Undo, again and again while libvirtd is gone: one that is restarted is there within seconds."""
        while True:
            try:
                self._undo()
            except HypervisorHangs:
                raise
            except HypervisorUnavailable:
                if time.monotonic() >= self._waits_until:
                    raise
                time.sleep(_RETURN_POLL_SECONDS)
            else:
                return

    def ensure(self) -> None:
        """Run it unless it was run; raises what it raised."""
        if not self._begun:
            self()
        elif self._error is not None:
            raise self._error


@dataclasses.dataclass(slots=True)
class Run:
    """A flow that runs, or ran, in this process. DBOS may be unable to record how it ended."""

    ended: bool = False
    result: Any = None
    error: BaseException | None = None


def workflow_of(
    name: str,
    declared: Callable[[str], Flow[Any, Any]],
    services: Callable[[], Services],
    runs: dict[str, Run],
    *,
    is_recorded: bool = True,
) -> Callable[[Any], Any]:
    """Return the function that DBOS registers for a flow. Its runs are noted in ``runs``, by operation.

    ``declared`` gives the flow of that name, and is asked when it runs. Of one that is not ``is_recorded`` nobody could
    have an undo tried again, so all are tried.
    """

    def run(request: Any) -> Any:
        operation = DBOS.workflow_id
        assert operation is not None
        here = runs[operation] = Run()
        try:
            found = declared(name)
            working = stoppable(services().on(request.host), operation)
            plan = Plan(working, operation, undos_stop=found.undos_stop and is_recorded)
            here.result = _run_or_undo(found, plan, request)
        except (Exception, UndoStopped) as error:
            here.error, here.ended = error, True
            raise
        here.ended = True
        return here.result

    run.__name__ = run.__qualname__ = name
    return run


def _run_or_undo(declared: Flow[Any, Any], plan: Plan, request: Any) -> Any:
    try:
        return declared.run(plan, request)
    except Exception as error:
        pending = plan.undo_all(error)
        if pending is not None:
            pending.add_note(f"the restore failed first: {error}")
            raise pending from error
        raise
