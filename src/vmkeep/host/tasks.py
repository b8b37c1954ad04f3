"""What a host is asked to do, and what it answers: plain values, stored with flows and sent to agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any, Literal

from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class KnownDisk:
    """A disk as an earlier point recorded it. ``bitmap``: it was given one then."""

    target: str
    source: str
    size_bytes: int
    format: str
    bitmap: bool = True


@dataclass(frozen=True, slots=True)
class KnownPoint:
    """An earlier point of the VM, which may serve as base, and its disks.

    ``created`` (ISO 8601) and ``parent`` are what its checkpoint is defined from again; empty and None: not known.
    ``sequence`` is its order number (``vmkeep.planning.order``), None for one of an older release.
    """

    point_id: str
    disks: tuple[KnownDisk, ...]
    created: str = ""
    parent: str | None = None
    sequence: int | None = None


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

    ``points`` are all of the VM, newest first. The copy that follows reads from the job that this leaves running.
    ``demanded`` are disks that must be in the point, also if the VM's settings leave them out. Nothing is read against
    ``doubtful`` points, whose makers are not proved: the new one would hold, and sign, whatever was put into them.
    """

    point_id: str
    vm_uuid: str
    full: bool
    exclude: tuple[str, ...]
    points: tuple[KnownPoint, ...]
    states: tuple[KnownState, ...]
    quiesce: bool = False
    demanded: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PointOpened:
    """``created`` is the instant, ISO 8601 in UTC; ``base`` the newest point that incremental disks build on."""

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
    """Copy the disks of an opened point and commit the point to the repository. Answers PointCopied.

    ``sequence`` is the point's order number, ``warnings`` what else is to be kept with it.
    """

    point_id: str
    parent: str | None
    labels: Mapping[str, str] = field(default_factory=dict)
    sequence: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PointCopied:
    """``record`` is the point's record as JSON without the definition; ``states`` those that are new versions.

    ``digest`` is that of the whole record; empty from a flow that an older release began.
    """

    record: Mapping[str, Any]
    states: tuple[Mapping[str, Any], ...]
    digest: str = ""


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

    ``name`` is the disk's target, the kind of the state file, or the UUID of a secret; ``format`` is that of a disk's
    image, or of a secret's file ("xml", "base64"). ``file`` is the path of a TPM's state below its directory, where it
    is not the one that the point recorded. ``secret`` names the libvirt secret that a disk's image is encrypted with;
    empty for a plain one.
    """

    role: Literal["disk", "nvram", "tpm", "definition", "secret"]
    name: str
    staged: str
    final: str
    format: str = ""
    file: str = ""
    secret: str = ""


@dataclass(frozen=True, slots=True)
class PrepareFiles:
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
class FilesPrepared:
    """``directory`` is the output directory where it was made now, to be removed again when nothing comes into it."""

    items: tuple[DeliveredItem, ...]
    warnings: tuple[str, ...]
    directory: str = ""


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
class PrepareVm:
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
    """Undo DeliverItems and PublishItems: what was replaced comes back. ``directory`` goes when it is empty then."""

    items: tuple[DeliveredItem, ...]
    directory: str = ""


@dataclass(frozen=True, slots=True)
class DiscardReplaced:
    """Remove what PublishItems kept aside."""

    items: tuple[DeliveredItem, ...]


@dataclass(frozen=True, slots=True)
class DefineVm:
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
class UndefineVm:
    """Undo DefineVm; disks, NVRAM and TPM are left to WithdrawItems."""

    uuid: str
    point_id: str = ""
    secrets: tuple[str, ...] = ()


# -- a restore in place ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckInPlace:
    """Look whether the point can be restored over its VM, and change nothing. Answers InPlaceChecked.

    ``only`` holds "disks", "state" and targets; empty means all. ``tpm`` is "same" (the point's) or "keep". ``vm_uuid``
    is the VM that was named; empty from a flow that an older release began.
    """

    point_id: str
    only: tuple[str, ...]
    tpm: str
    vm_uuid: str = ""


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
class ParkVm:
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
class VmParked:
    """``disks`` (targets) and ``states`` (kinds) will be the point's; ``whole``: all disks of the point are there."""

    vm_uuid: str
    vm_name: str
    disks: tuple[str, ...]
    states: tuple[str, ...]
    whole: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageRestore:
    """Plan what of the disks is written; write state files and new images beside their places. Answers warnings."""

    operation: str


@dataclass(frozen=True, slots=True)
class WriteRestore:
    """Write the planned ranges over the disks. Answers DisksWritten."""

    operation: str


@dataclass(frozen=True, slots=True)
class DisksWritten:
    """``bytes_written`` is data, ``bytes_zeroed`` what became zero; ``bytes_planned`` what might have been either."""

    bytes_written: int
    bytes_planned: int
    bytes_zeroed: int = 0


@dataclass(frozen=True, slots=True)
class PublishRestore:
    """Give libvirt the secrets that it lacks, then rename state files and new images into place.

    What they replace is kept until ReleaseVm.
    """

    operation: str


@dataclass(frozen=True, slots=True)
class BindRestore:
    """Give the disks fresh bitmaps and libvirt the checkpoint of the point returned to. Answers warnings."""

    operation: str


@dataclass(frozen=True, slots=True)
class ReleaseVm:
    """Let the VM start again, remove what was kept aside, then the journal. Answers warnings."""

    operation: str
    vm_uuid: str


@dataclass(frozen=True, slots=True)
class PutBack:
    """Undo everything since ParkVm: the VM is what it was at its safety point. Raises RestorePending if it cannot."""

    operation: str
    vm_uuid: str


@dataclass(frozen=True, slots=True)
class SettleRestore:
    """End a restore whose flow is gone: taken back, or only cleaned up. Answers RestoreSettled, or None."""

    operation: str


@dataclass(frozen=True, slots=True)
class RestoreSettled:
    """``told`` says what was done, and ``point`` which point the VM's disks descend from now: None for none at all.

    ``known`` False: nobody knows which.
    """

    told: str
    vm_uuid: str
    point: str | None
    known: bool = True


# -- a revert to a snapshot of libvirt -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownSnapshot:
    """What was kept with a snapshot that vmkeep made: the state files of its instant."""

    creation_time: int
    states: tuple[KnownState, ...]


@dataclass(frozen=True, slots=True)
class RevertChoice:
    """What of a snapshot goes back. ``only`` and ``tpm`` are as in CheckInPlace.

    ``memory`` False leaves the memory that the snapshot holds, so that the VM boots. ``force`` lets disks stay that the
    VM got since. ``drop_checkpoints`` removes checkpoints and bitmaps of others where nothing goes with them.
    ``reset_nvram`` leaves the UEFI variables, which are made anew at the start.
    """

    snapshot: str
    only: tuple[str, ...] = ()
    tpm: str = "same"
    memory: bool = True
    force: bool = False
    drop_checkpoints: bool = False
    reset_nvram: bool = False


@dataclass(frozen=True, slots=True)
class Descent:
    """Which point the state of a VM descends from: None for none at all; ``known`` False when nobody knows."""

    point: str | None = None
    known: bool = True


@dataclass(frozen=True, slots=True)
class CheckRevert:
    """Look whether the VM can be reverted, and change nothing. Answers RevertChecked. ``stop``: it may run."""

    vm: str
    choice: RevertChoice
    known: KnownSnapshot | None
    stop: bool


@dataclass(frozen=True, slots=True)
class RevertChecked:
    """What a revert would do. ``kept``: state files of the snapshot's instant are known, by ``known`` of the request.

    ``missing`` are disks of the VM that have no image any more. ``left`` are the images that the VM has now.
    """

    vm_uuid: str
    vm_name: str
    running: bool
    creation_time: int
    kept: bool
    disks: tuple[str, ...]
    states: tuple[str, ...]
    memory: bool
    missing: tuple[str, ...]
    left: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StopForRevert:
    """Pull the plug of the VM that will be reverted; one that is off is fine. Refused beside a job."""

    vm_uuid: str


@dataclass(frozen=True, slots=True)
class ParkForRevert:
    """Keep the VM from starting and write the journal of its revert. Answers RevertParked.

    ``run`` says how it is afterwards: "then" (as at the snapshot), "running" or "paused". ``discard`` removes the
    images that it has now and nothing needs. ``aim`` and ``origin`` say which point it descends from afterwards and
    does now. ``safety`` is the point that holds it as it is now; empty when none was taken.
    """

    operation: str
    vm_uuid: str
    choice: RevertChoice
    known: KnownSnapshot | None
    run: str
    discard: bool
    aim: Descent
    origin: Descent
    safety: str = ""


@dataclass(frozen=True, slots=True)
class RevertParked:
    """``images`` are the files that the disks will be on; ``whole``: all disks of the snapshot go back.

    The rest is as in RevertChecked.
    """

    vm_uuid: str
    vm_name: str
    disks: tuple[str, ...]
    states: tuple[str, ...]
    memory: bool
    whole: bool
    images: tuple[str, ...]
    left: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageRevert:
    """Make the overlays and write the state files, all beside their places."""

    operation: str


@dataclass(frozen=True, slots=True)
class ApplyRevert:
    """Rename the state files into place, make the snapshot the current one, and put back its memory, paused."""

    operation: str


@dataclass(frozen=True, slots=True)
class ReleaseReverted:
    """Let the VM start on its new images, and start or resume it where that was asked for. Answers RevertReleased."""

    operation: str
    vm_uuid: str


@dataclass(frozen=True, slots=True)
class RevertReleased:
    """How the VM is now. ``not_started`` says why it does not run, although it should."""

    state: str
    not_started: str
    discarded: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PutBackRevert:
    """Undo everything since ParkForRevert. Raises RestorePending if it cannot."""

    operation: str
    vm_uuid: str


# -- a snapshot ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MakeSnapshot:
    """Make a snapshot of a VM, with its state files of the same instant kept on the host. Answers SnapshotMade.

    ``xml`` is the <domainsnapshot> that was asked for. ``internal``: in the images, where neither the XML nor the VM
    says otherwise; ``with_bitmaps`` lets an internal one be made although images have bitmaps. ``halt``: the VM is off
    afterwards. ``reuse_external``: the overlays are there already. From here to CloseSnapshot or LeaveSnapshot the
    operation has the VM's lock.
    """

    operation: str
    vm_uuid: str
    xml: str
    disk_only: bool = False
    internal: bool = False
    with_bitmaps: bool = False
    quiesce: bool = False
    halt: bool = False
    reuse_external: bool = False
    validate: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotMade:
    """``kind`` is disks, memory or internal; ``was`` is running, paused or off.

    ``creation_time`` is libvirt's, in seconds since 1970, ``created`` the instant, ISO 8601 in UTC. ``disks`` are the
    targets that are in it, with the overlay of each ("" for an internal one); ``left_out`` those that are not.
    """

    operation: str
    vm_uuid: str
    vm_name: str
    name: str
    description: str
    kind: str
    was: str
    creation_time: int
    created: str
    pause_ms: float
    disks: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    memory_file: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreSnapshot:
    """Put the state files of a snapshot that was made into the repository. Answers SnapshotStored.

    ``newest`` are the newest accepted versions of the VM's state files: what equals them is not stored again.
    """

    operation: str
    newest: tuple[KnownState, ...]


@dataclass(frozen=True, slots=True)
class SnapshotStored:
    """``states`` are the versions that the snapshot holds, with the fields of the catalogue's rows."""

    states: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class CloseSnapshot:
    """The catalogue has the snapshot: remove what was kept of it on the host, and let go of the VM."""

    operation: str


@dataclass(frozen=True, slots=True)
class LeaveSnapshot:
    """Let go of the VM; what is kept of the snapshot on the host stays for SettleSnapshot."""

    operation: str


@dataclass(frozen=True, slots=True)
class SettleSnapshot:
    """Look what became of a snapshot whose flow is over. Answers SnapshotSettled; then StoreSnapshot may follow."""

    operation: str


@dataclass(frozen=True, slots=True)
class SnapshotSettled:
    """``made`` is the snapshot if it is whole and only the records are missing. ``told`` says what is the case else."""

    told: str
    made: SnapshotMade | None = None


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
    | CheckInPlace
    | ParkVm
    | StageRestore
    | WriteRestore
    | PublishRestore
    | BindRestore
    | ReleaseVm
    | PutBack
    | SettleRestore
    | CheckRevert
    | StopForRevert
    | ParkForRevert
    | StageRevert
    | ApplyRevert
    | ReleaseReverted
    | PutBackRevert
    | MakeSnapshot
    | StoreSnapshot
    | CloseSnapshot
    | LeaveSnapshot
    | SettleSnapshot
)
