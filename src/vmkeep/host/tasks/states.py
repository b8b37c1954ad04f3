"""What a host is asked of the state files of its VMs, outside of points and snapshots."""

from __future__ import annotations

from vmkeep.custody.differences import StateDifference
from vmkeep.custody.states import ChosenVersion, KeptSecret, KnownState, NewVersion, SealedSecret, SecretSource
from vmkeep.host.tasks.task import Task
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class StatesCaptured:
    """``kinds`` are all that were read, ``older`` sentences about those that are a version from before the newest.

    ``sealed`` is what was sealed for versions that are encrypted, ``warnings`` are sentences about what could not be.
    """

    vm_name: str
    kinds: tuple[str, ...]
    new: tuple[NewVersion, ...]
    older: tuple[str, ...]
    sealed: tuple[SealedSecret, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CaptureStates(Task[StatesCaptured]):
    """Read a VM's state files as they lie there, and put what is new into the repository. Answers StatesCaptured.

    The operation holds the VM. UEFI variables of a VM that runs are left out: QEMU writes them in place. ``known`` are
    versions of the VM's state files, the newest of each kind first; ``kinds`` limits what is read. The secret that
    opens an encrypted TPM state is sealed for the version's pin, unless it is among ``secrets`` already.
    ``as_it_is``: also a TPM state that swtpm does not load is kept. Raises StateTorn for such a one, and for a file
    that does not keep still, HostFileMissing for one that is gone although versions of it are known, RestorePending,
    and else as a point does.
    """

    operation: str
    vm_uuid: str
    known: tuple[KnownState, ...]
    kinds: tuple[str, ...] = ("tpm", "nvram")
    as_it_is: bool = False
    secrets: tuple[KeptSecret, ...] = ()


@dataclass(frozen=True, slots=True)
class StateTried:
    """Whether swtpm loads a TPM state. ``loads`` is None where it could not be tried, ``why`` a sentence about that or
    about what is wrong.
    """

    loads: bool | None
    why: str


@dataclass(frozen=True, slots=True)
class TryState(Task[StateTried]):
    """Let swtpm load a copy of a version of a VM's TPM state, with the secret that the VM's definition here names.

    ``secret`` is what is kept with the version: its value is taken in place of libvirt's.
    Raises what reading the version raises, and IntegrityError when it has another content than the catalogue knows.
    """

    vm_uuid: str
    version: ChosenVersion
    secret: SecretSource | None = None


@dataclass(frozen=True, slots=True)
class SeenState:
    """A state file that can be captured as it is now. ``mark`` changes with each write to it; empty for no file."""

    vm_uuid: str
    kind: str
    mark: str


@dataclass(frozen=True, slots=True)
class AwaitStates(Task[tuple[SeenState, ...]]):
    """Tell of all state files of the host that can be captured: when they differ from ``seen`` and keep quiet, or else
    after so many seconds.

    UEFI variables of a VM that runs are none of them.
    """

    seen: tuple[SeenState, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class CompareState(Task[StateDifference]):
    """Tell how a VM's state file differs from a version of it in the repository: no content, and nothing is changed.

    UEFI variables of a VM that runs are those of the moment. Raises VmNotFound, HostFileMissing for a file that is not
    there, StateUnsupported for a VM that has no such file, and what reading either raises.
    """

    vm_uuid: str
    version: ChosenVersion
