"""What a host is asked for a snapshot of a VM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmkeep.custody.states import KeptSecret, KnownState, SealedSecret
from vmkeep.host.tasks.task import Task
from vmkeep.planning.snapshot_health import SnapshotHealth
from vmkeep.values import dataclass


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
class MakeSnapshot(Task[SnapshotMade]):
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
class SnapshotStored:
    """``states`` are the versions that the snapshot holds, with the fields of the catalogue's rows.

    ``sealed`` is what was sealed for those that are encrypted.
    """

    states: tuple[Mapping[str, Any], ...]
    sealed: tuple[SealedSecret, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreSnapshot(Task[SnapshotStored]):
    """Put the state files of a snapshot that was made into the repository. Answers SnapshotStored.

    ``known`` are versions of the VM's state files, the newest of each kind first: what equals one is not stored again.
    ``secrets`` are those that envelopes hold for versions: others are sealed, as by CaptureStates.
    """

    operation: str
    known: tuple[KnownState, ...]
    secrets: tuple[KeptSecret, ...] = ()


@dataclass(frozen=True, slots=True)
class CloseSnapshot(Task[None]):
    """The catalogue has the snapshot: remove what was kept of it on the host, and let go of the VM."""

    operation: str


@dataclass(frozen=True, slots=True)
class LeaveSnapshot(Task[None]):
    """Let go of the VM; what is kept of the snapshot on the host stays for SettleSnapshot."""

    operation: str


@dataclass(frozen=True, slots=True)
class SnapshotSettled:
    """``made`` is the snapshot if it is whole and only the records are missing. ``told`` says what is the case else."""

    told: str
    made: SnapshotMade | None = None


@dataclass(frozen=True, slots=True)
class SettleSnapshot(Task[SnapshotSettled]):
    """Look what became of a snapshot whose flow is over. Answers SnapshotSettled; then StoreSnapshot may follow."""

    operation: str


@dataclass(frozen=True, slots=True)
class FormatSnapshot(Task[str]):
    """Tell what libvirt would be asked for; raises what refuses the snapshot. Nothing is changed."""

    request: MakeSnapshot


@dataclass(frozen=True, slots=True)
class LookAtSnapshots(Task[tuple[SnapshotHealth, ...]]):
    """Tell the health of a VM's snapshots, and change nothing; raises VmNotFound."""

    vm: str
