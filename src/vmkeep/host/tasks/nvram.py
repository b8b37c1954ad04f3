"""What a host is asked of the UEFI variables of its VMs: told in words, made anew, changed, and put in place."""

from __future__ import annotations

from vmkeep.custody.nvram import NvramTold
from vmkeep.custody.states import ChosenVersion, KnownState, NewVersion
from vmkeep.custody.wanted import WantedCertificate
from vmkeep.host.tasks.task import Task
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class NvramFound:
    """The UEFI variables of a VM as they lie on the host. ``told`` is None where there is no file, or ``problem``.

    ``running``: the VM is not off, so they are those of the moment. ``path`` is empty where there is no such file.
    """

    vm_uuid: str
    vm_name: str
    running: bool
    path: str = ""
    sha256: str = ""
    size_bytes: int = 0
    told: NvramTold | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LookAtNvram(Task[tuple[NvramFound, ...]]):
    """Tell of the UEFI variables of a VM, or of all VMs of the host that have any, by name; nothing is changed.

    Raises VmNotFound for one that is named and gone.
    """

    vm_uuid: str = ""


@dataclass(frozen=True, slots=True)
class NvramHeld:
    """The UEFI variables of a VM that is off and held. ``sha256`` is empty where no file is there yet.

    ``whole``: they can be kept as a version; a file that is blank or cut off cannot. ``template`` is the file that
    libvirt makes them of, empty where that is not known.
    """

    vm_uuid: str
    vm_name: str
    path: str
    sha256: str = ""
    size_bytes: int = 0
    whole: bool = False
    template: str = ""


@dataclass(frozen=True, slots=True)
class HoldForNvram(Task[NvramHeld]):
    """Take the VM's lock for the operation, and tell of its UEFI variables.

    Raises VmBusy, VmRunning for a VM that is not off, RestorePending, and StateUnsupported for a VM without UEFI
    variables and for those that are no raw file of this host.
    """

    operation: str
    vm_uuid: str


@dataclass(frozen=True, slots=True)
class LetNvramGo(Task[str]):
    """End what was begun: what was kept for an undo goes, and the VM's lock.

    With ``keep`` what was replaced stays, under another name; answers its path, empty where there is none.
    """

    operation: str
    path: str
    keep: bool = False


@dataclass(frozen=True, slots=True)
class NvramMade:
    """Contents that were put into the repository. ``version`` is what is to be put in place.

    ``new`` is that version where nothing knew it before. ``added`` and ``present`` are certificates, ``left`` sentences
    about those that were left out.
    """

    version: ChosenVersion
    new: NewVersion | None
    added: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResetNvram(Task[NvramMade]):
    """Put the variables that libvirt would make for the VM into the repository; nothing of the VM is changed.

    Raises StateUnsupported where it is not known of which template, or that is none for this VM; HostFileMissing.
    """

    operation: str
    held: NvramHeld
    known: tuple[KnownState, ...]


@dataclass(frozen=True, slots=True)
class EnrolNvram(Task[NvramMade]):
    """Put the VM's variables with more certificates into the repository; nothing of the VM is changed.

    ``certificates`` are those that a person named; with ``of_2023`` Microsoft's of 2023 too, as far as what they follow
    is trusted. Raises StateUnsupported for variables that cannot be read, have no platform key, or no room left.
    """

    operation: str
    held: NvramHeld
    known: tuple[KnownState, ...]
    of_2023: bool
    certificates: tuple[WantedCertificate, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckNvram(Task[None]):
    """Raise StateUnsupported unless a version is a store of variables such as the VM's firmware takes."""

    operation: str
    held: NvramHeld
    version: ChosenVersion


@dataclass(frozen=True, slots=True)
class InstallNvram(Task[None]):
    """Put a version in place of what lies there, which is kept beside until LetNvramGo; the VM is off before and after.

    Can be repeated. Raises VmRunning when the VM was started meanwhile, with the file that it had; and InvalidRequest
    when something else lies there by now than what ``held`` tells.
    """

    operation: str
    held: NvramHeld
    version: ChosenVersion


@dataclass(frozen=True, slots=True)
class WithdrawNvram(Task[None]):
    """Undo InstallNvram: what it replaced comes back. Raises VmRunning for a VM that was started since."""

    operation: str
    held: NvramHeld
