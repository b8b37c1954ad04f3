"""The tasks of clones and of names, carried out."""

from __future__ import annotations

from typing import Any

from vmkeep.host.clones import clone, copying, renaming
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.clones import (
    CloseClone,
    CopyForClone,
    DefineClone,
    GiveVmName,
    LetRenamedGo,
    LookForRename,
    PrepareClone,
    WithdrawClone,
)
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    match task:
        case PrepareClone():
            return clone.prepare_clone(operation, task)
        case CopyForClone():
            return copying.copy_for_clone(operation, task.prepared)
        case DefineClone():
            return clone.define_clone(operation, task.prepared, task.key_pin)
        case WithdrawClone():
            return clone.withdraw_clone(operation, task.prepared)
        case CloseClone():
            return clone.close_clone(operation, task.prepared)
        case LookForRename():
            return renaming.look_for_rename(operation, task)
        case GiveVmName():
            return renaming.rename_vm(operation, task)
        case LetRenamedGo():
            return renaming.let_go(operation)
    raise AssertionError(f"not a task of clones: {task}")
