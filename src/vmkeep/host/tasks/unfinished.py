"""What a host has left over of operations that did not come to their end, and what settles it."""

from __future__ import annotations

from vmkeep.host.tasks.task import Task
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The ids of operations whose records lie on the host: restores in place and reverts, and snapshots."""

    restores: tuple[str, ...]
    snapshots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListUnfinished(Task[Unfinished]):
    """Tell what has not come to its end, whether somebody is at it or not."""


@dataclass(frozen=True, slots=True)
class RescueGuests(Task[tuple[str, ...]]):
    """Make safe what jobs left whose owner and guardian are both dead; answers a sentence for each."""


@dataclass(frozen=True, slots=True)
class RequireUnneeded(Task[None]):
    """Raise VmBusy while a restore in place that is not at its end writes a point, or may have to go back to it."""

    point: str


@dataclass(frozen=True, slots=True)
class RestoreSettled:
    """``told`` says what was done, and ``point`` which point the VM's disks descend from now: None for none at all.

    ``known`` False: nobody knows which. ``moved`` False: its disks are as before, whatever they descend from.
    """

    told: str
    vm_uuid: str
    point: str | None
    known: bool = True
    moved: bool = True


@dataclass(frozen=True, slots=True)
class SettleRestore(Task[RestoreSettled | None]):
    """End a restore whose flow is gone: taken back, or only cleaned up. Answers RestoreSettled, or None."""

    operation: str
