"""A definition made unfit to start, and fit again: how a VM is kept still while its only copy is written over.

The source of its first disk becomes a file that does not exist and whose name says why. libvirt refuses to start such
a VM and names the file. What is put back is the element that was taken out, into the definition as it is by then, so
that whatever else was changed meanwhile stays.
"""

from __future__ import annotations

import copy
from typing import Final

from lxml import etree

from vmkeep.definition.model import DefinitionError
from vmkeep.definition.reading import disk_elements, disk_target, read_domain
from vmkeep.definition.tree import remove_children
from vmkeep.values import dataclass
from vmkeep.xmltext import XmlRefused, is_xml_text, parse_xml, serialise_xml

# What belongs to the source that is taken out, and what libvirt allows for other kinds of source only.
_SOURCE_PARTS: Final = ("source", "backingStore", "mirror", "auth", "encryption", "reservations")
_LUN_ATTRIBUTES: Final = ("rawio", "sgio")


@dataclass(frozen=True, slots=True)
class Parked:
    """``definition`` cannot start; ``element`` is the ``<disk>`` of ``target`` that puts it right again."""

    definition: str
    target: str
    element: str


def park(xml: str, path: str) -> Parked:
    """Return the definition with the file ``path``, which must not exist, as the source of its first disk.

    ``xml`` is the inactive definition with its secrets. Raises DefinitionError when the domain has no disk with a
    medium, and when it is parked at ``path`` already.
    """
    if not path.startswith("/") or not is_xml_text(path):
        raise DefinitionError(f"{path!r} is not an absolute path that XML can hold")
    root = read_domain(xml)
    disk = next((disk for disk in disk_elements(root) if _has_fixed_medium(disk)), None)
    if disk is None:
        raise DefinitionError("the domain has no disk")
    if _source_file(disk) == path:
        raise DefinitionError(f"the domain is parked at {path} already")
    original = etree.tostring(disk, encoding="unicode", with_tail=False)
    driver = disk.find("driver")
    place = 0 if driver is None else list(disk).index(driver) + 1
    remove_children(disk, _SOURCE_PARTS)
    source = etree.Element("source", file=path)
    source.tail = disk.text
    disk.insert(min(place, len(disk)), source)
    disk.set("type", "file")
    disk.attrib.pop("snapshot", None)
    if disk.get("device") == "lun":
        # A LUN must be a block device or on the network.
        disk.set("device", "disk")
        for attribute in _LUN_ATTRIBUTES:
            disk.attrib.pop(attribute, None)
    return Parked(serialise_xml(root), disk_target(disk), original)


def unpark(xml: str, path: str, target: str, element: str) -> str | None:
    """Return the definition with the disk that ``park`` took out; None when no disk of it is parked at ``path``.

    ``xml`` is the definition as it is now. Raises DefinitionError when ``element`` is no disk of that target.
    """
    root = read_domain(xml)
    parked = next((disk for disk in disk_elements(root) if _source_file(disk) == path), None)
    if parked is None:
        return None
    try:
        original = parse_xml(element)
    except XmlRefused as error:
        raise DefinitionError(f"what was kept of disk {target} cannot be read: {error}") from error
    if original.tag != "disk" or disk_target(original) != target:
        raise DefinitionError(f"what was kept is not disk {target}")
    original = copy.deepcopy(original)
    original.tail = parked.tail
    parent = parked.getparent()
    assert parent is not None, "a disk is below <devices>"
    parent.replace(parked, original)
    return serialise_xml(root)


def is_parked(xml: str, path: str) -> bool:
    """Return whether a disk of the definition is parked at ``path``."""
    return any(_source_file(disk) == path for disk in disk_elements(read_domain(xml)))


def _has_fixed_medium(disk: etree._Element) -> bool:
    return disk.get("device", "disk") in ("disk", "lun") and disk.find("source") is not None


def _source_file(disk: etree._Element) -> str | None:
    source = disk.find("source")
    return None if source is None or disk.get("type", "file") != "file" else source.get("file")
