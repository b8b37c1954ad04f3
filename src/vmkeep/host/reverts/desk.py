"""The tasks of reverts, carried out."""

from __future__ import annotations

from typing import Any

from vmkeep.host.operation import Operation
from vmkeep.host.reverts.check import check_revert, stop_for_revert
from vmkeep.host.reverts.revert import Revert
from vmkeep.host.tasks.reverts import (
    ApplyRevert,
    CheckRevert,
    ParkForRevert,
    PutBackRevert,
    ReleaseReverted,
    StageRevert,
    StopForRevert,
)
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    match task:
        case CheckRevert():
            return check_revert(operation.connected(), operation.repository(), operation.settings, task)
        case StopForRevert():
            return stop_for_revert(operation.connected(), operation.settings, task)
        case ParkForRevert():
            return Revert.of(operation).park(task)
        case StageRevert():
            return Revert.of(operation).stage()
        case ApplyRevert():
            return Revert.of(operation).apply()
        case ReleaseReverted():
            return Revert.of(operation).release(task.vm_uuid)
        case PutBackRevert():
            return Revert.of(operation).put_back(task.vm_uuid)
    raise AssertionError(f"not a task of reverts: {task}")
