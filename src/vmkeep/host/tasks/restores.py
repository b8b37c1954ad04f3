"""What a host is asked for a restore: to files, as a VM, or over the VM itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Literal

from vmkeep.custody.states import ChosenVersion, SecretSource
from vmkeep.host.tasks.task import Task
from vmkeep.values import dataclass


class HostParts(StrEnum):
    """What becomes of parts of a definition that reach into the host.

    ``TRUSTED``: who made the point may define what he likes here. The others are of a point that somebody else made:
    ``REFUSED`` until a person decides, ``DEFINED`` as they are, or ``STRIPPED``.
    """

    TRUSTED = "trusted"
    REFUSED = "refused"
    DEFINED = "defined"
    STRIPPED = "stripped"


@dataclass(frozen=True, slots=True)
class DeliveredItem:
    """One thing that a restore puts somewhere: written at ``staged``, in the same directory as ``final``.

    ``name`` is the disk's target, the kind of the state file, or the UUID of a secret; ``format`` is that of a disk's
    image, or of a secret's file ("xml", "base64"). ``file`` is the path of a TPM's state below its directory, where it
    is not the one that the point recorded. ``secret`` names the libvirt secret that a disk's image is encrypted with;
    empty for a plain one. ``version`` is the state version that is delivered in place of the point's, and ``sha256``
    what the catalogue knows of it.
    """

    role: Literal["disk", "nvram", "tpm", "definition", "secret"]
    name: str
    staged: str
    final: str
    format: str = ""
    file: str = ""
    secret: str = ""
    version: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class FilesPrepared:
    """``directory`` is the output directory where it was made now, to be removed again when nothing comes into it."""

    items: tuple[DeliveredItem, ...]
    warnings: tuple[str, ...]
    directory: str = ""


@dataclass(frozen=True, slots=True)
class PrepareFiles(Task[FilesPrepared]):
    """Choose the paths of a restore to files and check that nothing is in the way. Answers FilesPrepared.

    ``operation`` makes the staged names unique, so that two restores at once keep out of each other's way. ``decrypt``
    writes plain images of disks that were encrypted. With ``secrets`` those of the point are among the files. ``only``
    holds "disks", "state" and targets; empty means all, and the definition.
    """

    operation: str
    point_id: str
    output: str
    image_format: str
    force: bool
    decrypt: bool = False
    secrets: bool = False
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VmPrepared:
    """``tpm`` says whose TPM the VM gets: "same", "new" or "none".

    The definition is not here, as flows are stored and it may hold passwords: DefineVm makes it again. ``secrets`` are
    the UUIDs of those that libvirt lacks and gets with the VM; their values are never here either. ``changes`` are
    those that make the definition fit this host: each what was changed, and what the guest notices of it, or "".
    """

    name: str
    uuid: str
    identity: Literal["same", "new"]
    tpm: str
    items: tuple[DeliveredItem, ...]
    warnings: tuple[str, ...]
    secrets: tuple[str, ...] = ()
    changes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PrepareVm(Task[VmPrepared]):
    """Choose identity and paths of a VM to be made, and check that nothing is in the way. Answers VmPrepared.

    ``elsewhere`` says that the catalogue knows the original to live on another host. ``adapt`` changes the definition
    where it does not fit this host and nobody must choose; ``machine``, ``cpu`` and ``firmware`` are a person's choice.
    ``host_parts`` is a HostParts, by its value.
    """

    operation: str
    point_id: str
    name: str
    tpm: str | None
    disks_dir: str | None
    force: bool
    elsewhere: bool
    adapt: bool = False
    machine: str | None = None
    cpu: str | None = None
    firmware: str | None = None
    host_parts: str = HostParts.REFUSED.value


@dataclass(frozen=True, slots=True)
class ItemsDelivered:
    bytes_written: int


@dataclass(frozen=True, slots=True)
class DeliverItems(Task[ItemsDelivered]):
    """Write the items beside their places. Answers ItemsDelivered.

    ``for_hypervisor`` gives state files the owner that the hypervisor expects instead of ours.
    """

    point_id: str
    items: tuple[DeliveredItem, ...]
    for_hypervisor: bool


@dataclass(frozen=True, slots=True)
class PublishItems(Task[tuple[str, ...]]):
    """Rename the items into place; what is replaced with ``force`` is kept aside until DiscardReplaced."""

    items: tuple[DeliveredItem, ...]
    force: bool


@dataclass(frozen=True, slots=True)
class WithdrawItems(Task[None]):
    """Undo DeliverItems and PublishItems: what was replaced comes back. ``directory`` goes when it is empty then."""

    items: tuple[DeliveredItem, ...]
    directory: str = ""


@dataclass(frozen=True, slots=True)
class DiscardReplaced(Task[tuple[str, ...]]):
    """Remove what PublishItems kept aside."""

    items: tuple[DeliveredItem, ...]


@dataclass(frozen=True, slots=True)
class DefineVm(Task[None]):
    """Define the VM with the identity and the paths that PrepareVm chose, after its secrets. Nothing is started.

    ``adapt`` and what follows are those of PrepareVm.
    """

    point_id: str
    name: str
    uuid: str
    identity: str
    items: tuple[DeliveredItem, ...]
    secrets: tuple[str, ...] = ()
    adapt: bool = False
    machine: str | None = None
    cpu: str | None = None
    firmware: str | None = None
    host_parts: str = HostParts.REFUSED.value


@dataclass(frozen=True, slots=True)
class UndefineVm(Task[None]):
    """Undo DefineVm; disks, NVRAM and TPM are left to WithdrawItems."""

    uuid: str
    point_id: str = ""
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InPlaceChecked:
    """``missing`` are the targets of the VM's disks that have no image any more; no safety point can hold them.

    ``disks`` are the targets of those that would be written over; a safety point must hold them. ``images`` says by
    target what those without bitmaps tell of themselves: one that tells something else later was written to.
    """

    vm_uuid: str
    vm_name: str
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    disks: tuple[str, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckInPlace(Task[InPlaceChecked]):
    """Look whether the point can be restored over its VM, and change nothing. Answers InPlaceChecked.

    ``only`` holds "disks", "state" and targets; empty means all. ``tpm`` is "same" (the point's) or "keep". ``vm_uuid``
    is the VM that was named; empty from a flow that an older release began.
    """

    point_id: str
    only: tuple[str, ...]
    tpm: str
    vm_uuid: str = ""


@dataclass(frozen=True, slots=True)
class VmParked:
    """``disks`` (targets) and ``states`` (kinds) will be the point's; ``whole``: all disks of the point are there."""

    vm_uuid: str
    vm_name: str
    disks: tuple[str, ...]
    states: tuple[str, ...]
    whole: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParkVm(Task[VmParked]):
    """Keep the VM from starting and write the journal of its restore. Answers VmParked.

    ``safety_id`` is the point that holds the VM as it is now, and ``images`` what InPlaceChecked said before it was
    taken; ``vm_uuid`` is as in CheckInPlace. From here to ReleaseVm or PutBack the operation has the VM's lock.
    """

    operation: str
    point_id: str
    safety_id: str
    only: tuple[str, ...]
    tpm: str
    images: Mapping[str, str]
    vm_uuid: str = ""


@dataclass(frozen=True, slots=True)
class StatesParked:
    """A VM whose state files are replaced. ``warnings`` say what that risks."""

    vm_uuid: str
    vm_name: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParkForStates(Task[StatesParked]):
    """Keep the VM from starting, and write the journal of versions that go back. Answers StatesParked.

    ``found`` is what lay there when it was kept, as (kind, SHA-256, empty for no file): VmBusy is raised when it is
    something else by now. ``secret`` opens the TPM's among them. Raises InvalidRequest for a kind of state that the VM
    does not have, StateUnsupported for one that its definition does not open. From here to ReleaseVm or PutBack the
    operation has the VM's lock.
    """

    operation: str
    vm_uuid: str
    versions: tuple[ChosenVersion, ...]
    found: tuple[tuple[str, str], ...]
    secret: SecretSource | None = None


@dataclass(frozen=True, slots=True)
class StageRestore(Task[tuple[str, ...]]):
    """Plan what of the disks is written; write state files and new images beside their places. Answers warnings."""

    operation: str


@dataclass(frozen=True, slots=True)
class DisksWritten:
    """``bytes_written`` is data, ``bytes_zeroed`` what became zero; ``bytes_planned`` what might have been either."""

    bytes_written: int
    bytes_planned: int
    bytes_zeroed: int = 0


@dataclass(frozen=True, slots=True)
class WriteRestore(Task[DisksWritten]):
    """Write the planned ranges over the disks. Answers DisksWritten."""

    operation: str


@dataclass(frozen=True, slots=True)
class PublishRestore(Task[None]):
    """Give libvirt the secrets that it lacks, then rename state files and new images into place.

    What they replace is kept until ReleaseVm.
    """

    operation: str


@dataclass(frozen=True, slots=True)
class BindRestore(Task[tuple[str, ...]]):
    """Give the disks fresh bitmaps and libvirt the checkpoint of the point returned to. Answers warnings."""

    operation: str


@dataclass(frozen=True, slots=True)
class ReleaseVm(Task[tuple[str, ...]]):
    """Let the VM start again, remove what was kept aside, then the journal. Answers warnings."""

    operation: str
    vm_uuid: str


@dataclass(frozen=True, slots=True)
class MayTakeBack(Task[bool]):
    """Tell whether what the operation did to its VM can be taken back: not once the VM may start with it.

    Of a restore in place, a return of state files, and a revert to a snapshot.
    """

    operation: str


@dataclass(frozen=True, slots=True)
class PutBack(Task[None]):
    """Undo everything since ParkVm: the VM is what it was at its safety point. Raises RestorePending if it cannot."""

    operation: str
    vm_uuid: str
