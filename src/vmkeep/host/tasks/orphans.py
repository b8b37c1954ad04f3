"""What a host is asked of state that belongs to no VM."""

from __future__ import annotations

from vmkeep.custody.orphans import Orphan, OrphanSecret
from vmkeep.custody.states import ChosenVersion, NewVersion
from vmkeep.host.tasks.task import Task
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class OrphansFound:
    """What belongs to no VM. ``problems`` are sentences about what could not be looked at."""

    orphans: tuple[Orphan, ...]
    secrets: tuple[OrphanSecret, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LookForOrphans(Task[OrphansFound]):
    """Tell of TPM states, UEFI variables and secrets of TPMs that belong to no VM that libvirt knows.

    Raises InvalidRequest for a libvirt whose directories of state are not those of this machine.
    """


@dataclass(frozen=True, slots=True)
class KeepOrphan(Task[NewVersion]):
    """Put the content of a file of an orphan into the repository as a version of a VM's state.

    ``file`` is the name of that file in the orphan. The operation holds the VM. Raises InvalidRequest for an orphan
    that is none any more or has changed, VmBusy for one that a swtpm has, and what a capture raises of a file that is
    no state.
    """

    orphan: Orphan
    file: str
    vm_uuid: str
    generation: int


@dataclass(frozen=True, slots=True)
class OrphanDeleted:
    """``removed`` are the paths that are gone, ``left`` sentences about those that are not."""

    removed: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteOrphan(Task[OrphanDeleted]):
    """Delete an orphan, which must be what it was when it was found. The operation holds its VM, if that is known.

    ``kept`` are the versions that hold its content: each is read before. Raises InvalidRequest for one that is no
    orphan any more or has changed, VmBusy for one that a swtpm has, and what reading a version raises.
    """

    orphan: Orphan
    kept: tuple[ChosenVersion, ...]
