"""What runs, what was interrupted, what waits for a person: operations as `vmkeep ops` and `vmkeep log` tell them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from vmkeep.catalog import Catalog, Operation, OperationState
from vmkeep.config import Settings
from vmkeep.errors import OperationNotFound, VmNotFound
from vmkeep.flows.check_up import owner_lives
from vmkeep.flows.step_records import StepRecord, read_steps
from vmkeep.flows.unsettled import names_of_vm
from vmkeep.host.tasks.unfinished import Unfinished
from vmkeep.locks import FileLock
from vmkeep.values import dataclass

INTERRUPTED: Final = "interrupted"
PENDING: Final = "restore-pending"
NEEDS_OPERATOR: Final = str(OperationState.NEEDS_OPERATOR)
SHORTEST_PREFIX: Final = 4


@dataclass(frozen=True, slots=True)
class ShownOperation:
    """An operation, and how it stands: its state, or ``interrupted``, or ``restore-pending``.

    ``process`` carries it out. ``afterwards`` is what the next command does with one that was interrupted: "finish" or
    "undo". ``steps`` are None where nobody knows them.
    """

    operation: Operation
    state: str
    process: int | None = None
    afterwards: str | None = None
    steps: tuple[StepRecord, ...] | None = None


def standing_of(settings: Settings, operation: Operation, pending: Iterable[str] = ()) -> str:
    """Return how an operation stands. ``pending`` are those whose journal lies on a host still."""
    if operation.finished is not None:
        return PENDING if operation.id in pending else str(operation.state)
    if operation.state is OperationState.NEEDS_OPERATOR or owner_lives(settings, operation.owner):
        return str(operation.state)
    return INTERRUPTED


def seconds_of(operation: Operation) -> float | None:
    """Return how long an operation took, None for one that has not ended."""
    if operation.finished is None:
        return None
    ended, began = (datetime.fromisoformat(text).timestamp() for text in (operation.finished, operation.started))
    return round(ended - began, 3)


def operations_of(catalog: Catalog, vm: str | None) -> tuple[Operation, ...]:
    """Return the operations of a VM, or all, newest first: also those that name only a point of the VM.

    Raises VmNotFound when nothing was ever done with a VM of that name or UUID.
    """
    operations = catalog.operations()
    if vm is None:
        return operations
    named = names_of_vm(catalog, vm)
    points = {summary["id"] for summary in catalog.summaries(vm)} if catalog.vms_named(vm) else set()
    theirs = tuple(each for each in operations if each.vm in named or each.request.get("point") in points)
    if not theirs and len(named) == 1:
        raise VmNotFound(f"Nothing was ever done with a VM {vm!r}", vm=vm, hint="`vmkeep log` shows everything.")
    return theirs


def list_operations(
    settings: Settings, catalog: Catalog, unfinished: Unfinished, vm: str | None, *, ended: int
) -> tuple[ShownOperation, ...]:
    """Return what has not come to its end, newest first, and after it the last ``ended`` that have."""
    shown = [shown_operation(settings, each, unfinished.restores) for each in operations_of(catalog, vm)]
    open_ones = [each for each in shown if each.operation.finished is None or each.state == PENDING]
    closed = [each for each in shown if each.operation.finished is not None and each.state != PENDING]
    return (*open_ones, *closed[:ended])


def shown_operation(settings: Settings, operation: Operation, pending: Iterable[str] = ()) -> ShownOperation:
    """Return an operation as it stands, without its steps."""
    state = standing_of(settings, operation, pending)
    alive = operation.finished is None and state not in (INTERRUPTED, NEEDS_OPERATOR)
    lock = settings.owners_dir / f"{operation.owner}.lock"
    process = FileLock.holding_process(lock) if alive else None
    return ShownOperation(operation, state, process, _afterwards(operation) if state == INTERRUPTED else None)


def with_steps(settings: Settings, shown: ShownOperation) -> ShownOperation:
    """Return the same with its steps. Raises what a flow database that cannot be read raises."""
    steps = read_steps(settings.flows_path, shown.operation.id)
    return ShownOperation(shown.operation, shown.state, shown.process, shown.afterwards, steps)


def find_operation(catalog: Catalog, text: str) -> Operation:
    """Return the operation of an id, or of the beginning of one. Raises OperationNotFound, also for one of several."""
    wanted = text.strip().lower()
    long_enough = len(wanted) >= SHORTEST_PREFIX
    known = [each for each in catalog.operations() if each.id.startswith(wanted)] if long_enough else []
    exact = [each for each in known if each.id == wanted]
    if len(exact or known) == 1:
        return (exact or known)[0]
    if known:
        raise OperationNotFound(f"{len(known)} operations begin with {text!r}", hint="Give more of its id.")
    raise OperationNotFound(
        f"there is no operation {text!r}",
        hint=f"`vmkeep ops list --all` shows them; an id, or its first {SHORTEST_PREFIX} characters or more.",
    )


def _afterwards(operation: Operation) -> str | None:
    from vmkeep.flows.declared import DECLARED, declared_flow  # with DBOS, for the rare operation that was killed
    from vmkeep.flows.forget_snapshot import SNAPSHOT_CHANGE
    from vmkeep.flows.plan import AfterCrash

    if operation.kind in DECLARED:
        return "finish" if declared_flow(operation.kind).after_crash is AfterCrash.FINISH else "undo"
    return "finish" if operation.kind == SNAPSHOT_CHANGE else None
