"""The tasks of checkpoints and snapshots as libvirt has them, carried out."""

from __future__ import annotations

from typing import Any

from vmkeep.host.moments.local import LocalMoments
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.moments import MomentChange, ReadDefinitions, ReadMoments, ReadMomentXml
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    moments = LocalMoments(operation.settings, operation.connected)
    match task:
        case ReadMoments():
            return moments.moments(task.kind, task.vm, secure=task.secure, domain=task.domain)
        case ReadMomentXml():
            return moments.moment_xml(
                task.kind, task.vm, task.name, secure=task.secure, domain=task.domain, sizes=task.sizes
            )
        case ReadDefinitions():
            return moments.moment_definitions(task.kind, task.vm, secure=task.secure)
    assert isinstance(task, MomentChange), f"not a task of moments: {task}"
    return moments.change_moments(task, stop=operation.stop)
