"""``<domaincheckpoint>`` read and written.

Source of the rules: libvirt 9.0's schema domaincheckpoint.rng, its documentation (formatcheckpoint) and its
test driver's answers; tests/contract/moments asks that driver again.
"""

from __future__ import annotations

from typing import Final

from lxml import etree

from vmkeep.moments.errors import LibvirtError, MomentError, schema_error
from vmkeep.moments.model import Checkpoint, CheckpointDisk, CheckpointType
from vmkeep.moments.nesting import read_nested_domain, write_nested_domain
from vmkeep.moments.reading import (
    ABSOLUTE_PATH,
    DISK_TARGET,
    read_attributes,
    read_children,
    read_children_none,
    read_choice,
    read_disks,
    read_leaf,
    read_moment_name,
    read_root,
    read_unsigned,
)
from vmkeep.moments.writing import attributes, escape

_CHILDREN: Final = ("name", "description", "creationTime", "disks", "domain", "parent")


def parse_checkpoint(xml: str, *, redefine: bool = False, now: int | None = None) -> Checkpoint:
    """Return a checkpoint read from XML.

    For a new checkpoint (``redefine`` false) libvirt ignores creation time, parent and domain; time, and the
    name where none is given, come from ``now`` in seconds since 1970, and stay empty when it is None. For one
    that is redefined, all is read, and name and creation time are demanded. The size of a disk is never read.
    Raises MomentError.
    """
    root = read_root(xml, "domaincheckpoint")
    read_attributes(root)
    children = read_children(root, _CHILDREN)
    name_element, description_element = children.get("name"), children.get("description")
    name = None if name_element is None else read_moment_name(name_element)
    description = None if description_element is None else read_leaf(description_element)
    written_time = _read_creation_time(children.get("creationTime"))
    disks = _read_disks(children.get("disks"))
    domain = _read_domain(xml, children.get("domain"))
    parent_name = _read_parent(children.get("parent"))
    if not redefine:
        return Checkpoint(
            name=name if name is not None or now is None else str(now),
            description=description or None,
            creation_time=0 if now is None else now,
            disks=disks,
        )
    if name is None:
        raise MomentError(LibvirtError.VIR_ERR_XML_ERROR, "name", "a redefined checkpoint must have a name")
    if written_time is None:
        raise MomentError(
            LibvirtError.VIR_ERR_INTERNAL_ERROR, "creationTime", "missing creationTime from existing checkpoint"
        )
    return Checkpoint(
        name=name,
        description=description or None,
        parent_name=parent_name,
        creation_time=written_time,
        domain=domain,
        disks=disks,
    )


def format_checkpoint(checkpoint: Checkpoint, *, domain: bool = True, sizes: bool = False, secure: bool = False) -> str:
    """Return the checkpoint as libvirt 9.0 writes it, byte for byte.

    ``domain`` false leaves the domain out, ``sizes`` adds the bytes dirtied where they are known, ``secure``
    keeps the passwords of the domain's displays. Raises MomentError when the domain is not well-formed.
    """
    lines = ["<domaincheckpoint>"]
    for tag, value in (("name", checkpoint.name), ("description", checkpoint.description)):
        if value:
            lines.append(f"  <{tag}>{escape(value)}</{tag}>")
    if checkpoint.parent_name:
        lines += ["  <parent>", f"    <name>{escape(checkpoint.parent_name)}</name>", "  </parent>"]
    if checkpoint.creation_time:
        lines.append(f"  <creationTime>{checkpoint.creation_time}</creationTime>")
    if checkpoint.disks:
        lines += ["  <disks>", *(_format_disk(disk, sizes) for disk in checkpoint.disks if disk.name), "  </disks>"]
    if domain and checkpoint.domain is not None:
        lines.append(write_nested_domain(checkpoint.domain, secure=secure))
    return "\n".join([*lines, "</domaincheckpoint>", ""])


def _format_disk(disk: CheckpointDisk, sizes: bool) -> str:
    values = {
        "name": disk.name,
        "checkpoint": None if disk.type is CheckpointType.DEFAULT else disk.type.value,
        "bitmap": disk.bitmap,
        "size": disk.size if sizes and disk.bitmap is not None else None,
    }
    return f"    <disk{attributes(values)}/>"


def _read_creation_time(element: etree._Element | None) -> int | None:
    if element is None:
        return None
    value = read_unsigned("creationTime", read_leaf(element))
    # The schema allows 64 bits without a sign; libvirt then reads a signed number and finds none.
    return value if value < 1 << 63 else None


def _read_parent(element: etree._Element | None) -> str | None:
    if element is None:
        return None
    read_attributes(element)
    name = read_children(element, ("name",)).get("name")
    if name is None:
        raise schema_error("parent", "<parent> must hold a <name>")
    return read_moment_name(name)


def _read_domain(xml: str, element: etree._Element | None) -> str | None:
    if element is None:
        return None
    if element.get("type") is None:
        raise schema_error("domain", "<domain> has no attribute 'type'")
    return read_nested_domain(xml, element)


def _read_disks(parent: etree._Element | None) -> tuple[CheckpointDisk, ...]:
    return () if parent is None else tuple(_read_disk(disk) for disk in read_disks(parent))


def _read_disk(disk: etree._Element) -> CheckpointDisk:
    read_attributes(disk, ("name", "checkpoint", "bitmap", "size"))
    read_children(disk, ())
    read_children_none(disk)
    name = disk.get("name")
    if name is None:
        raise schema_error("disk", "a <disk> must have a name: its target, or the absolute path of its source")
    if DISK_TARGET.fullmatch(name) is None and ABSOLUTE_PATH.fullmatch(name) is None:
        raise schema_error("disk", f"{name!r} is neither a disk's target nor an absolute path")
    kind = CheckpointType(read_choice(disk, "checkpoint", ("no", "bitmap")) or "bitmap")
    bitmap, size = disk.get("bitmap"), disk.get("size")
    if kind is CheckpointType.NO and (bitmap is not None or size is not None):
        raise schema_error("disk", f"disk {name!r} has checkpoint='no' and cannot have a bitmap or a size")
    if size is not None:
        read_unsigned("disk", size)
    return CheckpointDisk(name=name, type=kind, bitmap=bitmap)
