"""A definition whose disks are made to stand on other images; all else of it stays as it is."""

from __future__ import annotations

from collections.abc import Mapping

from lxml import etree

from vmkeep.definition.model import DefinitionError
from vmkeep.definition.reading import disk_elements, disk_target, read_domain
from vmkeep.definition.tree import child_or_new, remove_children
from vmkeep.xmltext import serialise_xml

# What says of the former image what is below it, or what libvirt did with it in one run.
_RUN_PARTS = ("backingStore", "mirror")


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
        _stand_on(disk, path)
    return serialise_xml(root)


def sliced_disks(xml: str) -> frozenset[str]:
    """Return the disks that are a part of their image only (``<slices>``). Raises DefinitionError."""
    disks = disk_elements(read_domain(xml))
    return frozenset(disk_target(disk) for disk in disks if disk.find("source/slices") is not None)


def _stand_on(disk: etree._Element, path: str) -> None:
    remove_children(disk, _RUN_PARTS)
    child_or_new(disk, "driver", first=True).set("type", "qcow2")
    source = child_or_new(disk, "source")
    labels = [child for child in source if child.tag == "seclabel"]
    for attribute in list(source.attrib):
        del source.attrib[attribute]
    for child in list(source):
        if child not in labels:
            source.remove(child)
    if not labels:
        source.text = None
    source.set("file", path)
    disk.set("type", "file")
