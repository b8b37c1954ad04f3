"""Flows and their steps: durable through DBOS, undone in reverse when one fails.

DBOS records each step's result; what it lacks, and what is here, is compensation: each step may bring an undo,
which gets that step's result. A step cleans up after itself when it fails; the undos are for the steps before
it. What happens to a flow whose process died is the rule that stands at its head: a point is undone, because
nothing can continue an instant that has passed; a restore is finished.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from enum import Enum
from typing import Any, Generic, TypeVar, TypeVarTuple

from vmkeep.errors import RestorePending
from vmkeep.flows.durable import DBOS, DatabaseError
from vmkeep.flows.services import Services
from vmkeep.logs import get_logger
from vmkeep.values import dataclass

_log = get_logger(__name__)
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
    """A workflow: its stable name, its rule after a crash, its steps, and what settles one that is undone."""

    name: str
    after_crash: AfterCrash
    run: Callable[[Plan, Q], R]
    settle: Callable[[Services, str], Settled] | None = None


def flow(
    name: str, *, after_crash: AfterCrash, settle: Callable[[Services, str], Settled] | None = None
) -> Callable[[Callable[[Plan, Q], R]], Flow[Q, R]]:
    """Declare a function of a plan and a request as a flow; ``settle`` is for one that is undone after a crash."""
    assert (settle is not None) is (after_crash is AfterCrash.UNDO)

    def declare(function: Callable[[Plan, Q], R]) -> Flow[Q, R]:
        return Flow(name, after_crash, function, settle)

    return declare


class Plan:
    """One run of a flow. Steps are numbered by DBOS in the order of the calls, so that order must not vary."""

    def __init__(self, services: Services, operation: str) -> None:
        self.services = services
        self.operation = operation
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
        """
        if heeds_stop:
            self.services.stop()
        name = getattr(function, "__name__", type(function).__name__)
        _log.debug("step", operation=self.operation, step=name)
        ended: list[R] = []

        def run() -> R:
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
        """Undo what was done, last first. An undo that fails is told with the cause and does not stop the others.

        A flow database that fails keeps no undo from being done, only from being recorded. Returns the error
        of one that left a VM unfit to start: that is what the user must hear first.
        """
        pending = None
        while self._undos:
            name, undo = self._undos.pop()
            attempt = _Undo(undo)
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


class _Undo:
    """One undo, run as a step that returns nothing."""

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo = undo
        self._begun = False
        self._error: Exception | None = None

    def __call__(self) -> None:
        self._begun = True
        try:
            self._undo()
        except Exception as error:
            self._error = error
            raise

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
    error: Exception | None = None


def workflow_of(
    name: str, declared: Callable[[str], Flow[Any, Any]], services: Callable[[], Services], runs: dict[str, Run]
) -> Callable[[Any], Any]:
    """Return the function that DBOS registers for a flow. Its runs are noted in ``runs``, by operation.

    ``declared`` gives the flow of that name, and is asked when it runs.
    """

    def run(request: Any) -> Any:
        operation = DBOS.workflow_id
        assert operation is not None
        here = runs[operation] = Run()
        try:
            here.result = _run_or_undo(declared(name), Plan(services().on(request.host), operation), request)
        except Exception as error:
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
