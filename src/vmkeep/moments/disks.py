"""The disks of a domain, as the alignment of moments sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lxml import etree

from vmkeep.moments.errors import LibvirtError, MomentError, unsupported
from vmkeep.moments.model import SnapshotLocation
from vmkeep.moments.reading import MAX_DISKS, read_location, read_root
from vmkeep.values import dataclass

_SOURCE_ATTRIBUTE: Final = {"file": "file", "block": "dev", "dir": "dir", "network": "name", "volume": "volume"}


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """A disk of a domain: its target and what moments ask of it.

    ``source`` is the path of a file or device, the name of a network image, or None for an empty drive.
    ``snapshot`` is the disk's own wish for snapshots (no, internal, external, manual), or None.
    """

    target: str
    source: str | None = None
    source_type: str = "file"
    format: str | None = None
    readonly: bool = False
    snapshot: str | None = None

    @property
    def empty(self) -> bool:
        """Whether no medium is in the drive."""
        return self.source is None

    @property
    def snapshot_location(self) -> SnapshotLocation:
        """What the domain wants of snapshots of this disk; one that is read-only takes no part unless it says so."""
        if self.snapshot is None:
            return SnapshotLocation.NO if self.readonly else SnapshotLocation.DEFAULT
        return SnapshotLocation(self.snapshot)


def domain_disks(domain_xml: str) -> tuple[DomainDisk, ...]:
    """Return the disks of a domain in the order of its XML. Raises MomentError."""
    root = read_root(domain_xml, "domain")
    disks = root.findall("devices/disk")
    if len(disks) > MAX_DISKS:
        raise MomentError(LibvirtError.VIR_ERR_XML_ERROR, "devices", f"{len(disks)} disks; the limit is {MAX_DISKS}")
    return tuple(_read_disk(disk) for disk in disks)


def find_disk(name: str, disks: Sequence[DomainDisk]) -> DomainDisk:
    """Return the disk of that target or, for a name that begins with '/', of that source.

    Raises MomentError 67 when there is none, and when several disks have that source.
    """
    if name.startswith("/"):
        found = [disk for disk in disks if disk.source == name]
    else:
        found = [disk for disk in disks if disk.target == name][:1]
    if len(found) != 1:
        raise unsupported(name, f"no disk named '{name}'")
    return found[0]


def _read_disk(element: etree._Element) -> DomainDisk:
    target, source, driver = element.find("target"), element.find("source"), element.find("driver")
    device = element.get("device", "disk")
    name = None if target is None else target.get("dev")
    if not name:
        raise MomentError(LibvirtError.VIR_ERR_XML_ERROR, "disk", "a disk of the domain has no target")
    source_type = element.get("type", "file")
    attribute = _SOURCE_ATTRIBUTE.get(source_type)
    path = None
    if source is not None:
        # nvme, vhostuser and vhostvdpa disks have a source that is no path, and are not empty.
        path = source.get(attribute) if attribute is not None else source_type
    location = read_location(element)
    return DomainDisk(
        target=name,
        source=path or None,
        source_type=source_type,
        format=None if driver is None else driver.get("type"),
        readonly=element.find("readonly") is not None or device == "cdrom",
        snapshot=None if location is SnapshotLocation.DEFAULT else location.value,
    )
