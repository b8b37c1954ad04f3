"""What is left over on this machine of operations that did not come to their end, and what settles it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmkeep.host.operation import Operation
from vmkeep.host.records.unended import journals, keepsakes, refuse_while_needed
from vmkeep.host.tasks.task import Task
from vmkeep.host.tasks.unfinished import ListUnfinished, RequireUnneeded, RescueGuests, SettleRestore, Unfinished

if TYPE_CHECKING:
    from vmkeep.host.records.restore import RestoreJournal


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    settings = operation.settings
    match task:
        case ListUnfinished():
            restores = tuple(path.stem for path in journals(settings))
            return Unfinished(restores, tuple(place.name for place in keepsakes(settings.snapshots_dir)))
        case RescueGuests():
            if not settings.guards_dir.is_dir():
                return ()
            from vmkeep.host.guard.rescue import rescue_abandoned

            return rescue_abandoned(settings.guards_dir)
        case RequireUnneeded():
            return refuse_while_needed(settings, task.point)
        case SettleRestore():
            journal = _journal(operation)
            if journal is not None and journal.revert is not None:
                from vmkeep.host.reverts.revert import Revert

                return Revert.of(operation).settle()
            if journal is not None and journal.states is not None:
                from vmkeep.host.restores.states_back import StatesBack

                return StatesBack.of(operation).settle()
            from vmkeep.host.restores.in_place import InPlace

            return InPlace.of(operation).settle()
    raise AssertionError(f"not a task of recovery: {task}")


def _journal(operation: Operation) -> RestoreJournal | None:
    from vmkeep.host.records.restore import RestoreJournal, journal_path

    try:
        return RestoreJournal.load(journal_path(operation.settings.restores_dir, operation.id))
    except (OSError, ValueError):
        return None  # over just now, or not to be read: the restore says so
