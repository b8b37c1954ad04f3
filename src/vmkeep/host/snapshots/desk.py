"""The tasks of snapshots, carried out."""

from __future__ import annotations

from typing import Any

from vmkeep.host.operation import Operation
from vmkeep.host.snapshots.health import look_at_snapshots
from vmkeep.host.snapshots.snapshot import SnapshotTask, snapshot_xml
from vmkeep.host.tasks.snapshots import (
    CloseSnapshot,
    FormatSnapshot,
    LeaveSnapshot,
    LookAtSnapshots,
    MakeSnapshot,
    SettleSnapshot,
    StoreSnapshot,
)
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    match task:
        case FormatSnapshot():
            return snapshot_xml(operation.connected(), task.request)
        case LookAtSnapshots():
            hypervisor = operation.connected()
            return look_at_snapshots(hypervisor.domain(task.vm), hypervisor, operation.settings)
        case MakeSnapshot():
            operation.repository()  # where its states will go
            return _snapshot(operation).make(task)
        case StoreSnapshot():
            return _snapshot(operation).store(task, operation.repository())
        case CloseSnapshot():
            return _snapshot(operation).close()
        case LeaveSnapshot():
            return _snapshot(operation).release()
        case SettleSnapshot():
            return _snapshot(operation).settle()
    raise AssertionError(f"not a task of snapshots: {task}")


def _snapshot(operation: Operation) -> SnapshotTask:
    def make() -> SnapshotTask:
        snapshot = SnapshotTask(
            operation.settings, operation.connected(), operation.id, stop=operation.stop, watch=operation.watch
        )
        operation.holder = snapshot
        return snapshot

    return operation.kept(SnapshotTask, make)
