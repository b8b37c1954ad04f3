"""What must be true of the VMs and points of a life, from what was done to them; vmkeep is never asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.rig import VmState
from tests.soak.image import Image


class Violation(AssertionError):
    """Something is not as the model says. The life ends with it."""


@dataclass(frozen=True, slots=True)
class DiskKind:
    """What a disk is: its format, its bus, and what else makes it a case of its own."""

    name: str
    format: str = "qcow2"
    bus: str = "virtio"
    luks: bool = False
    iothread: bool = False
    overlay: bool = False
    version_2: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        DiskKind("qcow2"),
        DiskKind("raw", format="raw"),
        DiskKind("scsi", bus="scsi"),
        DiskKind("scsi-raw", format="raw", bus="scsi"),
        DiskKind("luks", luks=True),
        DiskKind("luks-raw", format="raw", luks=True),
        DiskKind("iothread", iothread=True),
        DiskKind("iothread-scsi", bus="scsi", iothread=True),
        DiskKind("overlay", overlay=True),
        DiskKind("qcow2-v2", version_2=True),
    )
}


@dataclass(slots=True)
class DiskModel:
    """One disk of a VM and its content now."""

    target: str
    kind: DiskKind
    image: Image


@dataclass(frozen=True, slots=True)
class States:
    """The bytes of UEFI variables and TPM state as they lay on the host. None: they were changing, so nobody knows."""

    nvram: bytes | None
    tpm: bytes | None


@dataclass(frozen=True, slots=True)
class Moment:
    """All of a VM at an instant."""

    vm_uuid: str
    images: Mapping[str, Image]
    states: States
    encrypted: frozenset[str] = frozenset()

    def without(self, targets: frozenset[str] | set[str]) -> Moment:
        kept = {target: image for target, image in self.images.items() if target not in targets}
        return Moment(self.vm_uuid, kept, self.states, self.encrypted - targets)


@dataclass(slots=True)
class SnapshotModel:
    """A snapshot that libvirt must list. ``ours``: made by vmkeep, with its state files."""

    name: str
    moment: Moment
    ours: bool
    all_targets: frozenset[str]
    memory: VmState | None = None  # what the VM did, when the memory is in it
    spoilt: bool = False  # something else wrote into its images (blockcommit): libvirt lists it, its content is gone


@dataclass(slots=True)
class Points:
    """The points that must be there, and those that a killed command may have stored or not."""

    known: dict[str, Moment] = field(default_factory=dict)
    pending: list[Moment] = field(default_factory=list)
    deleting: set[str] = field(default_factory=set)
    safety: set[str] = field(default_factory=set)  # those of known that were taken before a VM went back
