"""What a host is asked to do, and what it answers: plain values, stored with flows and sent to agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class KnownDisk:
    """A disk as an earlier point recorded it."""

    target: str
    source: str
    size_bytes: int
    format: str


@dataclass(frozen=True, slots=True)
class KnownPoint:
    """An earlier point that may serve as base: its checkpoint and its disks."""

    point_id: str
    checkpoint: str
    disks: tuple[KnownDisk, ...]


@dataclass(frozen=True, slots=True)
class KnownState:
    """The newest accepted version of a state file; the same content again needs no new version."""

    kind: str
    version_id: str
    generation: int
    sha256: str
    size_bytes: int
    file: str


# -- a point ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenPoint:
    """Plan the point and fix its instant: job, checkpoint, NVRAM and TPM. Answers PointOpened.

    ``bases`` are newest first. The copy that follows reads from the job that this leaves running.
    """

    point_id: str
    vm_uuid: str
    full: bool
    exclude: tuple[str, ...]
    bases: tuple[KnownPoint, ...]
    states: tuple[KnownState, ...]


@dataclass(frozen=True, slots=True)
class PointOpened:
    """``created`` is the instant, ISO 8601 in UTC; ``base`` the point that incremental disks build on."""

    point_id: str
    vm_uuid: str
    vm_name: str
    created: str
    checkpoint: str
    base: str | None
    pause_ms: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CopyPoint:
    """Copy the disks of an opened point and commit the point to the repository. Answers PointCopied."""

    point_id: str
    parent: str | None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PointCopied:
    """``record`` is the point's record as JSON without the definition; ``states`` those that are new versions."""

    record: Mapping[str, Any]
    states: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class KeepCheckpoint:
    """From here on the new checkpoint is the base, whatever happens to vmkeep."""

    point_id: str


@dataclass(frozen=True, slots=True)
class ClosePoint:
    """End the job and delete the older checkpoints of ours. Answers PointClosed."""

    point_id: str


@dataclass(frozen=True, slots=True)
class PointClosed:
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AbandonPoint:
    """Undo an opened point: job, checkpoint and writer; the VM is as it was before."""

    point_id: str


# -- a restore -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeliveredItem:
    """One thing that a restore puts somewhere: written at ``staged``, in the same directory as ``final``.

    ``name`` is the disk's target, or the kind of the state file; ``format`` is that of a disk's image.
    """

    role: Literal["disk", "nvram", "tpm", "definition"]
    name: str
    staged: str
    final: str
    format: str = ""


@dataclass(frozen=True, slots=True)
class PrepareFiles:
    """Choose the paths of a restore to files and check that nothing is in the way. Answers FilesPrepared.

    ``operation`` makes the staged names unique, so that two restores at once keep out of each other's way.
    """

    operation: str
    point_id: str
    output: str
    image_format: str
    force: bool


@dataclass(frozen=True, slots=True)
class FilesPrepared:
    items: tuple[DeliveredItem, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PrepareVm:
    """Choose identity and paths of a VM to be made, and check that nothing is in the way. Answers VmPrepared.

    ``elsewhere`` says that the catalogue knows the original to live on another host.
    """

    operation: str
    point_id: str
    name: str
    tpm: str | None
    disks_dir: str | None
    force: bool
    elsewhere: bool


@dataclass(frozen=True, slots=True)
class VmPrepared:
    """``tpm`` says whose TPM the VM gets: "same", "new" or "none".

    The definition is not here, as flows are stored and it may hold passwords: DefineVm makes it again.
    """

    name: str
    uuid: str
    identity: Literal["same", "new"]
    tpm: str
    items: tuple[DeliveredItem, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeliverItems:
    """Write the items beside their places. Answers ItemsDelivered.

    ``for_hypervisor`` gives state files the owner that the hypervisor expects instead of ours.
    """

    point_id: str
    items: tuple[DeliveredItem, ...]
    for_hypervisor: bool


@dataclass(frozen=True, slots=True)
class ItemsDelivered:
    bytes_written: int


@dataclass(frozen=True, slots=True)
class PublishItems:
    """Rename the items into place; what is replaced with ``force`` is kept aside until DiscardReplaced."""

    items: tuple[DeliveredItem, ...]
    force: bool


@dataclass(frozen=True, slots=True)
class WithdrawItems:
    """Undo DeliverItems and PublishItems: what was replaced comes back."""

    items: tuple[DeliveredItem, ...]


@dataclass(frozen=True, slots=True)
class DiscardReplaced:
    """Remove what PublishItems kept aside."""

    items: tuple[DeliveredItem, ...]


@dataclass(frozen=True, slots=True)
class DefineVm:
    """Define the VM with the identity and the paths that PrepareVm chose. Nothing is started."""

    point_id: str
    name: str
    uuid: str
    identity: str
    items: tuple[DeliveredItem, ...]


@dataclass(frozen=True, slots=True)
class UndefineVm:
    """Undo DefineVm; disks, NVRAM and TPM are left to WithdrawItems."""

    uuid: str


Task = (
    OpenPoint
    | CopyPoint
    | KeepCheckpoint
    | ClosePoint
    | AbandonPoint
    | PrepareFiles
    | PrepareVm
    | DeliverItems
    | PublishItems
    | WithdrawItems
    | DiscardReplaced
    | DefineVm
    | UndefineVm
)
