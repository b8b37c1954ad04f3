"""What a host is asked to make a second VM of one that is off, and to give a VM another name."""

from __future__ import annotations

from vmkeep.host.tasks.restores import DeliveredItem
from vmkeep.host.tasks.task import Task
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class ClonedState:
    """A state file of the original that the clone gets: its kind, and the SHA-256 of what was read."""

    kind: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ClonePrepared:
    """What a clone is made of. ``tpm`` and ``nvram`` are "copy", "new" or "none".

    The definition is not here, as flows are stored and it may hold passwords: DefineClone makes it again, and
    ``read`` is the SHA-256 of the original's that all of this is of. ``secret`` is the UUID of the secret of libvirt's
    that the clone's TPM gets for itself, empty for none. ``removed`` are targets of drives and disks that stay behind.
    """

    source: str
    source_uuid: str
    name: str
    uuid: str
    tpm: str
    nvram: str
    items: tuple[DeliveredItem, ...]
    read: str
    secret: str = ""
    removed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PrepareClone(Task[ClonePrepared]):
    """Hold a VM that is off, and decide what a clone of it called ``name`` will be; nothing is made.

    ``source`` is a name or UUID. ``tpm`` None: nobody chose; ``nvram`` is "copy" or "new". Raises VmRunning,
    TargetExists for a name or file that is there, ChoiceRequired where the original has a TPM and nobody chose, and
    what a point of it would raise. When it raises, nothing is held.
    """

    operation: str
    source: str
    name: str
    tpm: str | None
    nvram: str
    disks_dir: str | None = None


@dataclass(frozen=True, slots=True)
class ClonedDisk:
    """How a disk of the clone came to be: ``shared`` blocks with the original's image, or ``bytes_written``."""

    target: str
    path: str
    shared: bool
    bytes_written: int


@dataclass(frozen=True, slots=True)
class CloneCopied:
    """What was written beside its places."""

    disks: tuple[ClonedDisk, ...]
    states: tuple[ClonedState, ...]


@dataclass(frozen=True, slots=True)
class CopyForClone(Task[CloneCopied]):
    """Write disks and state files of the clone beside their places; on failure none of them stays.

    Raises VmStarted when the original was started, or its files changed, meanwhile; NoSpace before anything is copied
    where there is no room for it.
    """

    operation: str
    prepared: ClonePrepared


@dataclass(frozen=True, slots=True)
class DefineClone(Task[None]):
    """Define the clone, after the secret of its TPM. Raises VmStarted when the original's definition changed.

    ``key_pin`` is the pin whose envelope has the value for that; empty for a copy, which gets the original's.
    """

    operation: str
    prepared: ClonePrepared
    key_pin: str = ""


@dataclass(frozen=True, slots=True)
class WithdrawClone(Task[None]):
    """Remove all that was made for a clone, and let the original go. A clone that runs is left whole: VmRunning."""

    operation: str
    prepared: ClonePrepared


@dataclass(frozen=True, slots=True)
class CloseClone(Task[tuple[str, ...]]):
    """Let the original go, and remove what an undo would have needed; answers a sentence for each file that stays."""

    operation: str
    prepared: ClonePrepared


@dataclass(frozen=True, slots=True)
class RenameLooked:
    """A VM that gets another name. ``nvram`` is the file that libvirt finds by the VM's name, empty where it does not;
    ``nvram_after`` is that file for the other name. ``checkpoints`` are their names with libvirt's records, parents
    first, without passwords.
    """

    uuid: str
    before: str
    after: str
    nvram: str = ""
    nvram_after: str = ""
    checkpoints: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LookForRename(Task[RenameLooked]):
    """Hold a VM that is off, and tell what depends on its name; nothing is changed.

    Raises VmRunning, TargetExists for a name, or a file of UEFI variables, that is there. When it raises, nothing is
    held.
    """

    operation: str
    vm: str
    name: str


@dataclass(frozen=True, slots=True)
class GiveVmName(Task[None]):
    """Give the VM the name ``after``; done already is done. With ``back`` it gets the name ``before`` again.

    The file of UEFI variables that libvirt finds by the name has both names meanwhile, and checkpoints are listed
    again: libvirt 9.0 would lose both.
    """

    operation: str
    looked: RenameLooked
    back: bool = False


@dataclass(frozen=True, slots=True)
class LetRenamedGo(Task[None]):
    """Let the VM go."""

    operation: str
