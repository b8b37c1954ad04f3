"""The lock of a VM, held on its host for an operation whose tasks belong together."""

from __future__ import annotations

from typing import Final

from vmkeep.host.tasks.task import Task
from vmkeep.values import dataclass

CAPTURE: Final = "capture of its state"
"""What holds a VM for some tenths of a second at any time of the day: everybody else waits for it."""


@dataclass(frozen=True, slots=True)
class HoldVm(Task[None]):
    """Take the VM's lock for the operation; ``doing`` names it for others. Raises VmBusy with what holds the VM.

    A capture, and what a killed process left holding it, are about to be done and are waited for, not without ``wait``.
    The lock ends with LetVmGo, and with the process that has it.
    """

    operation: str
    vm_uuid: str
    vm: str
    doing: str
    wait: bool = True


@dataclass(frozen=True, slots=True)
class LetVmGo(Task[None]):
    """Let the operation's lock go."""

    operation: str


@dataclass(frozen=True, slots=True)
class WhoHoldsVm(Task[str | None]):
    """Tell what works on a VM just now, for people; None when nothing does."""

    vm_uuid: str
