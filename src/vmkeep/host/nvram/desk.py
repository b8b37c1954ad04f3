"""What is asked of the UEFI variables of VMs, answered."""

from __future__ import annotations

from typing import Any

from vmkeep.host.nvram import contents, place, told
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.nvram import (
    CheckNvram,
    EnrolNvram,
    HoldForNvram,
    InstallNvram,
    LetNvramGo,
    LookAtNvram,
    ResetNvram,
    WithdrawNvram,
)
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    match task:
        case LookAtNvram():
            return told.look_at_nvram(operation, task)
        case HoldForNvram():
            return place.hold_for_nvram(operation, task)
        case ResetNvram():
            return contents.reset_nvram(operation, task)
        case EnrolNvram():
            return contents.enrol_nvram(operation, task)
        case CheckNvram():
            return contents.check_nvram(operation, task)
        case InstallNvram():
            return place.install_nvram(operation, task)
        case WithdrawNvram():
            return place.withdraw_nvram(operation, task)
        case LetNvramGo():
            return place.let_nvram_go(operation, task)
    raise AssertionError(f"not a task of UEFI variables: {task}")
