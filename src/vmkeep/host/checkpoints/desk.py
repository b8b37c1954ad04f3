"""The tasks of a VM's checkpoints and their repair, carried out."""

from __future__ import annotations

from typing import Any

from vmkeep.host.checkpoints.health import look_at_checkpoints, plan_checkpoint_repair, repair_checkpoint
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.checkpoints import CheckpointRequest, RepairCheckpoint, RepairRequest
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    hypervisor, settings = operation.connected(), operation.settings
    match task:
        case CheckpointRequest():
            return look_at_checkpoints(hypervisor.domain(task.vm), hypervisor, settings, task)
        case RepairRequest():
            return plan_checkpoint_repair(hypervisor.domain(task.checkpoints.vm), hypervisor, settings, task)
        case RepairCheckpoint():
            return repair_checkpoint(hypervisor.domain(task.vm_uuid), hypervisor, task.step)
    raise AssertionError(f"not a task of checkpoints: {task}")
