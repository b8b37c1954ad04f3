"""What is asked of state that belongs to no VM, answered."""

from __future__ import annotations

from typing import Any

from vmkeep.host.operation import Operation
from vmkeep.host.tasks.orphans import DeleteOrphan, KeepOrphan, LookForOrphans
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    match task:
        case LookForOrphans():
            from vmkeep.host.vm.orphans import look_for_orphans

            return look_for_orphans(operation.connected(), operation.settings)
        case KeepOrphan():
            from vmkeep.host.orphans.adoption import keep_orphan

            return keep_orphan(operation, task)
        case DeleteOrphan():
            from vmkeep.host.orphans.deletion import delete_orphan

            return delete_orphan(operation, task)
    raise AssertionError(f"not a task of orphans: {task}")
