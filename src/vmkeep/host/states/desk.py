"""What is asked of the state files of VMs, answered."""

from __future__ import annotations

from typing import Any

from vmkeep.host.operation import Operation
from vmkeep.host.tasks.states import AwaitStates, CaptureStates, CompareState, TryState
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    match task:
        case CaptureStates():
            from vmkeep.host.states.captured import capture_states

            return capture_states(operation.connected(), operation.repository(), operation.settings, task)
        case TryState():
            from vmkeep.host.states.tried import try_version

            return try_version(operation.connected(), operation.repository(), task)
        case AwaitStates():
            from vmkeep.host.states.watched import await_states

            return await_states(operation.connected(), task.seen, task.seconds)
        case CompareState():
            from vmkeep.host.states.compared import compare_state

            return compare_state(operation.connected(), operation.repository(), task)
    raise AssertionError(f"not a task of state files: {task}")
