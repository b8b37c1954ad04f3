"""What a host is asked of the TPMs of its VMs: taken out of a definition, put in, and their state with them."""

from __future__ import annotations

from vmkeep.custody.orphans import Orphan
from vmkeep.custody.states import ChosenVersion, NewVersion, SealedSecret, SecretSource
from vmkeep.host.tasks.task import Task
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class TpmFound:
    """A VM's TPM, by its definition for the next start. ``element`` is empty for a VM that has none.

    ``place`` is its number among the devices, ``version`` "2.0" or "1.2", ``secret`` the UUID of the secret that
    encrypts its state, empty for a plain one, and ``secret_held`` whether libvirt has that one. ``directory`` is where
    its state lies, or would lie, ``file`` the path of the permanent state below that, ``state`` whether that is there.
    """

    vm_uuid: str
    vm_name: str
    element: str = ""
    place: int = 0
    model: str = ""
    version: str = ""
    backend: str = ""
    secret: str = ""
    secret_held: bool = False
    directory: str = ""
    file: str = ""
    state: bool = False

    @property
    def model_name(self) -> str:
        """What the model is called in short: crb, tis, spapr."""
        return self.model.removeprefix("tpm-")


@dataclass(frozen=True, slots=True)
class LookAtTpm(Task[TpmFound]):
    """Tell of a VM's TPM; nothing is changed. Raises VmNotFound, InvalidRequest for a definition that is unreadable."""

    vm_uuid: str


@dataclass(frozen=True, slots=True)
class HoldForTpm(Task[TpmFound]):
    """Take the VM's lock for the operation, and tell of its TPM.

    Raises VmBusy, VmRunning for a VM that is not off, RestorePending, and StateUnsupported for a TPM that libvirt does
    not emulate or whose state is one file.
    """

    operation: str
    vm_uuid: str


@dataclass(frozen=True, slots=True)
class LetTpmGo(Task[None]):
    """End what was begun: what was kept for an undo beside ``directory`` goes, and the VM's lock."""

    operation: str
    directory: str = ""


@dataclass(frozen=True, slots=True)
class TakeTpmOut(Task[None]):
    """Define the VM without its TPM, which is ``element``; one that has none is done already.

    Raises VmRunning when the VM is not off before and after, and InvalidRequest when it has another TPM by now.
    """

    operation: str
    vm_uuid: str
    element: str


@dataclass(frozen=True, slots=True)
class PutTpmIn(Task[None]):
    """Define the VM with this TPM; one that has it is done already. Raises as TakeTpmOut. ``place`` -1 means last."""

    operation: str
    vm_uuid: str
    element: str
    place: int = -1


@dataclass(frozen=True, slots=True)
class TpmRemainsFound:
    """``found`` is None where there is nothing."""

    found: Orphan | None


@dataclass(frozen=True, slots=True)
class TpmRemains(Task[TpmRemainsFound]):
    """Tell what lies in a directory of swtpm's, with hashes of the contents."""

    operation: str
    vm_uuid: str
    directory: str


@dataclass(frozen=True, slots=True)
class NotDeleted:
    """A file that may be deleted and could not be, or swtpm's directory; ``why`` is a sentence.

    ``sha256`` is empty for what has no content; ``encrypted`` is None for that, and where it could not be read.
    """

    path: str
    sha256: str = ""
    size_bytes: int = 0
    why: str = ""
    encrypted: bool | None = None


@dataclass(frozen=True, slots=True)
class TpmStateDeleted:
    """``removed`` are the paths that are gone, ``left`` sentences about those that are not.

    ``failed`` are those of the latter that may be deleted. ``at`` is when that was known (ISO 8601 in UTC).
    """

    removed: tuple[str, ...]
    left: tuple[str, ...]
    failed: tuple[NotDeleted, ...] = ()
    at: str = ""


@dataclass(frozen=True, slots=True)
class DeleteTpmState(Task[TpmStateDeleted]):
    """Delete what was seen of a TPM's state, of a VM that has no TPM: only what is a version of ``kept``.

    Each version is read before. What changed, came since or is no version stays and is told, and so is what the system
    refuses to delete. Raises InvalidRequest
    when the VM has a TPM, as it runs or will start, or another definition names the directory; VmBusy when a swtpm has
    it, and what reading a version raises.
    """

    operation: str
    vm_uuid: str
    seen: Orphan
    kept: tuple[ChosenVersion, ...]


@dataclass(frozen=True, slots=True)
class LeftTpmFile:
    """A file that may still be deleted as long as it has this content; empty for one without content."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class LeftTpmStateDeleted:
    """What became of state that was left. ``superseded``: the VM has a TPM there again, and nothing was done.

    ``removed`` are paths that are gone by this, ``replaced`` sentences about what lies there and is something else, and
    ``failed`` what still could not be deleted. Without the last two nothing is left to be done.
    """

    superseded: bool = False
    removed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    failed: tuple[NotDeleted, ...] = ()
    at: str = ""


@dataclass(frozen=True, slots=True)
class DeleteLeftTpmState(Task[LeftTpmStateDeleted]):
    """Delete what an earlier deletion left in ``directory``, of a VM that may be gone: ``files``, and the directory.

    The VM is held by whoever asks. Each version of ``kept`` is read before. Raises InvalidRequest when a definition
    names the place, VmBusy when a swtpm has it, and what reading a version raises.
    """

    vm_uuid: str
    directory: str
    files: tuple[LeftTpmFile, ...]
    kept: tuple[ChosenVersion, ...]


@dataclass(frozen=True, slots=True)
class InstallTpmState(Task[None]):
    """Put a version in place as a TPM's state. One that lies there already is done; anything else is never replaced.

    ``of_vm`` is the UUID of the VM that it is a version of, empty for this one. Raises TargetExists when something else
    lies there, IntegrityError for an object that is not that version.
    """

    operation: str
    vm_uuid: str
    directory: str
    file: str
    version: ChosenVersion
    of_vm: str = ""


@dataclass(frozen=True, slots=True)
class WithdrawTpmState(Task[None]):
    """Remove what the operation's InstallTpmState put in place, and nothing else."""

    operation: str
    directory: str


@dataclass(frozen=True, slots=True)
class SecretJudged:
    """``point``, or ``pin``, is one whose envelope holds the value of a secret that can go; else ``why`` it stays.

    ``code`` is a word for that. Of two of them it is not known for good: ``doubt``, of a definition that could not be
    read, and ``failed``, when libvirt did not undefine it. ``at`` is when it was undefined (ISO 8601 in UTC).
    """

    point: str = ""
    why: str = ""
    pin: str = ""
    code: str = ""
    at: str = ""

    @property
    def can_go(self) -> bool:
        """Whether the secret can go."""
        return bool(self.point or self.pin)

    @property
    def may_go_later(self) -> bool:
        """Whether it stays for a reason that passes."""
        return self.code in ("doubt", "failed")


@dataclass(frozen=True, slots=True)
class JudgeTpmSecret(Task[SecretJudged]):
    """Tell whether a TPM's secret can go: no definition names it, and one of ``points`` or ``pins`` holds its value.

    Both are vouched for. What checkpoints of this VM say is not looked at: nothing goes back to that.
    """

    operation: str
    vm_uuid: str
    secret: str
    points: tuple[str, ...]
    pins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DropTpmSecret(Task[SecretJudged]):
    """Undefine a secret that was judged, looked at again right before. One that is gone counts as undefined.

    A libvirt that does not undefine it is told, not raised.
    """

    operation: str
    vm_uuid: str
    secret: str
    point: str
    pin: str = ""


@dataclass(frozen=True, slots=True)
class TpmSecretFound:
    """Whether libvirt has a secret; ``ephemeral``: in its memory only; ``sealed``: it seals those on its disk."""

    held: bool = False
    ephemeral: bool = False
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class LookAtTpmSecret(Task[TpmSecretFound]):
    """Tell how libvirt keeps a secret; its value is not asked for."""

    secret: str


@dataclass(frozen=True, slots=True)
class PlanTpmSecret(Task[bool]):
    """Tell whether libvirt lacks a secret that a point or a pin holds. Raises TargetExists for another value there."""

    operation: str
    point: str
    secret: str
    pin: str = ""


@dataclass(frozen=True, slots=True)
class GiveTpmSecret(Task[None]):
    """Give libvirt the secret of a point or a pin if it lacks it: none is ever replaced. Raises SecretUnfit, and
    TargetExists when it has another value.
    """

    operation: str
    point: str
    secret: str
    pin: str = ""


@dataclass(frozen=True, slots=True)
class TakeTpmSecretBack(Task[None]):
    """Undo GiveTpmSecret, except for a secret that a VM needs by now, or that has another value."""

    operation: str
    point: str
    secret: str
    pin: str = ""


@dataclass(frozen=True, slots=True)
class RequireTpmFits(Task[None]):
    """Raise StateUnsupported for a TPM that libvirt here cannot give the VM: its model, its version, or no swtpm.

    ``secret`` is the UUID of a secret that libvirt must have for it, empty for none. Raises SecretMissing.
    """

    vm_uuid: str
    model: str
    version: str
    secret: str = ""


@dataclass(frozen=True, slots=True)
class GiveOwnTpmSecret(Task[None]):
    """Define a secret of this UUID for the TPM of a VM, with the value of the secret ``value_of``.

    One that has a value is done already. Raises SecretMissing and SecretPrivate for a value that libvirt does not tell.
    """

    secret: str
    vm: str
    value_of: str


@dataclass(frozen=True, slots=True)
class ForgetOwnTpmSecret(Task[None]):
    """Undo GiveOwnTpmSecret, except for a secret that a VM names by now."""

    secret: str


@dataclass(frozen=True, slots=True)
class MakeTpmKey(Task[SealedSecret]):
    """Make a new value for a secret of this UUID, and seal it for a pin that is to be put. libvirt is not told yet.

    ``vm`` is the name of a VM that is to be defined; empty for one that is there.
    """

    operation: str
    vm_uuid: str
    secret: str
    vm: str = ""


@dataclass(frozen=True, slots=True)
class TpmStateRekeyed:
    """The version that was put into the repository, and its secret, sealed for its pin; None for one in plain."""

    version: NewVersion
    sealed: SealedSecret | None = None


@dataclass(frozen=True, slots=True)
class RekeyTpmState(Task[TpmStateRekeyed]):
    """Put a version of a TPM 2.0 state into the repository once more, with another key, as this generation.

    ``old`` is the UUID of the secret of libvirt's that opens it, empty for one in plain; ``new`` is what it gets, None
    for plain. Nothing on the host is changed. Raises SecretMissing and SecretPrivate of the old one, StateUnsupported
    for a TPM 1.2 and without a swtpm, IntegrityError when it does not open, or what came out is not the same TPM.
    """

    operation: str
    vm_uuid: str
    version: ChosenVersion
    generation: int
    old: str = ""
    new: SecretSource | None = None
