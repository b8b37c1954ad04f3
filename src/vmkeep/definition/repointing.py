"""A definition whose disks are made to stand on other images; all else of it stays as it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lxml import etree

from vmkeep.definition.chains import leave_to_image
from vmkeep.definition.model import DefinitionError
from vmkeep.definition.reading import disk_elements, disk_target, read_domain
from vmkeep.definition.tree import child_or_new
from vmkeep.values import dataclass
from vmkeep.xmltext import serialise_xml


@dataclass(frozen=True, slots=True)
class Placed:
    """An image for a disk; ``block``: it is a device."""

    path: str
    format: str
    block: bool = False


def repoint(xml: str, overlays: Mapping[str, str]) -> str:
    """Return the definition with these qcow2 files, by target, as the images of its disks.

    What stands below them libvirt finds in the files. Raises DefinitionError when the domain lacks one of the disks.
    """
    root = read_domain(xml)
    found = {disk_target(disk): disk for disk in disk_elements(root)}
    for target, path in overlays.items():
        disk = found.get(target)
        if disk is None:
            raise DefinitionError(f"the domain has no disk {target}")
        _stand_on(disk, Placed(path, "qcow2"))
    return serialise_xml(root)


def restand(xml: str, target: str, image: Placed) -> str:
    """Return the definition with this image for a disk; one without the disk stays as it is. Raises DefinitionError."""
    root = read_domain(xml)
    for disk in disk_elements(root):
        if disk_target(disk) == target:
            _stand_on(disk, image)
    return serialise_xml(root)


def leave_chains_to_images(xml: str, targets: Collection[str]) -> str:
    """Return the definition without what it says to stand below the images of these disks; what is not there stays so.

    libvirt then finds it in the images.
    """
    root = read_domain(xml)
    for disk in disk_elements(root):
        if disk_target(disk) in targets:
            leave_to_image(disk)
    return serialise_xml(root)


def sliced_disks(xml: str) -> frozenset[str]:
    """Return the disks that are a part of their image only (``<slices>``). Raises DefinitionError."""
    disks = disk_elements(read_domain(xml))
    return frozenset(disk_target(disk) for disk in disks if disk.find("source/slices") is not None)


def _stand_on(disk: etree._Element, image: Placed) -> None:
    leave_to_image(disk)
    child_or_new(disk, "driver", first=True).set("type", image.format)
    source = child_or_new(disk, "source")
    labels = [child for child in source if child.tag == "seclabel"]
    for attribute in list(source.attrib):
        del source.attrib[attribute]
    for child in list(source):
        if child not in labels:
            source.remove(child)
    if not labels:
        source.text = None
    source.set("dev" if image.block else "file", image.path)
    disk.set("type", "block" if image.block else "file")
