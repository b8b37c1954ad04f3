"""The lock of a VM that an operation holds from one task to the next."""

from __future__ import annotations

from typing import Any

from vmkeep.host.operation import Operation
from vmkeep.host.records.lock import lock_vm
from vmkeep.host.tasks.locks import HoldVm, LetVmGo, WhoHoldsVm
from vmkeep.host.tasks.task import Task
from vmkeep.locks import FileLock


class HeldVm:
    """A VM that an operation holds, and nothing else."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    def release(self) -> None:
        """Let go of the lock."""
        self._lock.release()

    def release_guest(self) -> None:
        """Nothing is done to the guest."""


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    match task:
        case HoldVm():
            directory = operation.settings.locks_dir
            lock = lock_vm(directory, task.vm_uuid, task.vm, task.doing, operation.stop, wait=task.wait)
            operation.holder = HeldVm(lock)
            return None
        case LetVmGo():
            if operation.holder is not None:
                operation.holder.release()
                operation.holder = None
            return None
        case WhoHoldsVm():
            path = operation.settings.locks_dir / f"{task.vm_uuid}.lock"
            return (FileLock.holder(path) or "an operation") if FileLock.is_held(path) else None
    raise AssertionError(f"not a task of a lock: {task}")
