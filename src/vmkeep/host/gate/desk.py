"""What is asked of the gate, answered. libvirt is not asked."""

from __future__ import annotations

from typing import Any

from vmkeep.host.gate.installation import GatePlace
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.gate import HasGate, InstallHook, LetStart, LookAtGate, RemoveHook, RenewGate, SetGatePolicy
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    place = GatePlace(operation.settings)
    match task:
        case HasGate():
            return place.is_there()
        case RenewGate():
            return place.renew(task.vm)
        case InstallHook():
            return place.install(task.vms, refuse_unsure=task.refuse_unsure)
        case RemoveHook():
            return place.remove()
        case LookAtGate():
            return place.status()
        case SetGatePolicy():
            return place.set_policy(task.vm_uuid, task.policy)
        case LetStart():
            return place.let_start(task.vm_uuid, task.seconds)
    raise AssertionError(f"not a task of the gate: {task}")
