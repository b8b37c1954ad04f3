"""What vmkeep must know of a domain. Attributes that libvirt leaves out are None, not guessed."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from vmkeep.values import dataclass
from vmkeep.xmltext import bounded


class DefinitionError(ValueError):
    """XML that is no domain, or a change that cannot be made to it; the message names the part."""

    def __init__(self, message: str) -> None:
        super().__init__(bounded(message))


class SourceKind(StrEnum):
    """What holds a disk's content."""

    FILE = "file"
    BLOCK = "block"
    NETWORK = "network"
    VOLUME = "volume"
    NONE = "none"
    """No medium in the drive."""
    OTHER = "other"
    """dir, nvme, vhostuser, vhostvdpa, and what libvirt may invent; never to be taken for a file."""


class FirmwareKind(StrEnum):
    """How the guest boots."""

    BIOS = "bios"
    UEFI = "uefi"


class TpmBackend(StrEnum):
    """Where a vTPM's state is: with swtpm on the host, in a real TPM, or with a process libvirt does not start."""

    EMULATOR = "emulator"
    PASSTHROUGH = "passthrough"
    EXTERNAL = "external"


USAGE: Final = "usage:"
"""What the name of a secret begins with that is known by its use; without it, the name is a UUID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskEncryption:
    """How QEMU encrypts an image for its guest. ``format`` is libvirt's word: luks, luks2, qcow, default.

    ``engine`` is who does it: qemu, librbd, or None for libvirt's choice. ``secrets`` are the names of the libvirt
    secrets that open it, each a UUID, or ``usage:`` and the name of its use.
    """

    format: str
    engine: str | None = None
    secrets: tuple[str, ...] = ()

    @property
    def secret(self) -> str | None:
        """The secret of an image that QEMU itself encrypts with LUKS; None for every other kind."""
        if self.format != "luks" or self.engine not in (None, "qemu") or len(self.secrets) != 1:
            return None
        return self.secrets[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackingLayer:
    """An image below another as a definition names it; ``path`` None: it is no file or device."""

    path: str | None
    format: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DefinedBacking:
    """What a definition says to stand below a disk's image, the nearest first.

    ``ends``: nothing stands below the last one, whatever that image says; else that image says what does.
    """

    layers: tuple[BackingLayer, ...] = ()
    ends: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DefinedDisk:
    """A disk or drive of a domain.

    ``source`` is the path of a file or device, ``PROTOCOL:NAME`` of a network image, ``POOL/VOLUME`` of a
    volume, or None. ``source_type`` is libvirt's own word for the kind. ``format`` is the image format of the
    driver. ``source_index`` is the number in the node names of a running QEMU (``libvirt-N-format``). ``backing`` is
    what the definition itself says to stand below the image; None: it leaves that to the image. ``in_io_thread``: QEMU
    serves it outside of its main thread, by the disk's own driver or its controller's. ``throttled``: it has limits of
    its input and output (``<iotune>``). ``optional``: a start without its source drops the disk
    (startupPolicy).
    """

    target: str
    bus: str | None = None
    device: str = "disk"
    source_kind: SourceKind = SourceKind.NONE
    source_type: str = "file"
    source: str | None = None
    format: str | None = None
    readonly: bool = False
    shareable: bool = False
    transient: bool = False
    encryption: DiskEncryption | None = None
    error_policy: str | None = None
    rerror_policy: str | None = None
    alias: str | None = None
    source_index: int | None = None
    serial: str | None = None
    boot_order: int | None = None
    optional: bool = False
    in_io_thread: bool = False
    throttled: bool = False
    backing: DefinedBacking | None = None

    @property
    def removable(self) -> bool:
        """Whether this is a drive for media, which are no part of a VM's state."""
        return self.device in {"cdrom", "floppy"}

    @property
    def image_format(self) -> str:
        """What QEMU's own tools call the image: a raw one that is encrypted is of the format luks."""
        image_format = self.format or "raw"
        return "luks" if self.encryption is not None and image_format == "raw" else image_format


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """The firmware; ``nvram`` is the path of the UEFI variables, ``nvram_format`` raw unless said otherwise."""

    kind: FirmwareKind = FirmwareKind.BIOS
    loader: str | None = None
    nvram: str | None = None
    nvram_type: str = "file"
    nvram_format: str = "raw"
    template: str | None = None
    secure_boot: bool = False
    stateless: bool = False

    @property
    def has_variables(self) -> bool:
        """Whether UEFI variables belong to the VM: not with BIOS, and not with firmware that forgets them."""
        return self.kind is FirmwareKind.UEFI and not self.stateless


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmDevice:
    """The TPM. ``secret_uuid`` names the libvirt secret that encrypts its state; None when it is plain.

    ``source`` is the directory or file of an emulator's state where the definition gives it, the device of a
    passthrough, or the socket of an external TPM.
    """

    model: str | None
    backend: TpmBackend
    version: str | None = None
    secret_uuid: str | None = None
    persistent_state: bool = False
    source_type: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface: its MAC address, its type, and the network, bridge or device it is in."""

    mac: str | None
    type: str
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityLabel:
    """A security label of the domain; ``label`` is what QEMU runs under, where libvirt says it."""

    model: str | None
    type: str | None
    relabel: bool
    label: str | None = None
    image_label: str | None = None


_NUMERIC_OWNER = re.compile(r"\+?([0-9]{1,10}):\+?([0-9]{1,10})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A domain as its XML says it. ``live`` is true for the XML of a running domain."""

    name: str
    uuid: str | None
    domain_type: str
    arch: str | None
    machine: str | None
    live: bool
    disks: tuple[DefinedDisk, ...]
    firmware: Firmware
    tpm: TpmDevice | None
    interfaces: tuple[Interface, ...]
    security_labels: tuple[SecurityLabel, ...]
    genid: str | None = None

    def disk(self, target: str) -> DefinedDisk | None:
        """Return the disk of that target."""
        return next((disk for disk in self.disks if disk.target == target), None)

    @property
    def dac_owner(self) -> tuple[int, int] | None:
        """User and group id that QEMU runs under, where the XML says them as numbers (a live one does)."""
        for label in self.security_labels:
            if label.model == "dac" and label.label is not None:
                match = _NUMERIC_OWNER.fullmatch(label.label)
                if match is not None:
                    return int(match[1]), int(match[2])
        return None
