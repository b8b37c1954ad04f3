"""The tasks of a check-up, carried out."""

from __future__ import annotations

from typing import Any

from vmkeep.host.checkup.host import check_host, mend
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.checkup import CheckupRequest, Mend
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    if isinstance(task, CheckupRequest):
        return check_host(operation.settings, operation.connected, task)
    assert isinstance(task, Mend), f"not a task of a check-up: {task}"
    return mend(operation.connected, operation.repository, task)
