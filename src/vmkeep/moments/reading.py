"""The checks every document of libvirt's moments goes through, as its schemas make them."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from lxml import etree

from vmkeep.moments.errors import LibvirtError, MomentError, schema_error, xml_error
from vmkeep.moments.model import SnapshotLocation
from vmkeep.moments.writing import attributes, escape
from vmkeep.xmltext import XmlRefused, element_children, element_text, parse_xml, tag_name

DISK_TARGET: Final = re.compile(r"(ioemu:)?(fd|hd|sd|vd|xvd|ubd)[a-zA-Z0-9_]+", re.ASCII)
# XSD's "." matches no line break.
ABSOLUTE_PATH: Final = re.compile(r"(/|[a-zA-Z]:\\)[^\r\n]+")
MOMENT_NAME: Final = re.compile(r"[a-zA-Z0-9_\-][a-zA-Z0-9_\-.]*", re.ASCII)
_SIGNED: Final = re.compile(r"[ \t\r\n]*([+-]?)([0-9]+)", re.ASCII)
IMAGE_FORMATS: Final = (
    *("raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop"),
    *("cow", "qcow", "qcow2", "qed", "vmdk"),
)
"""The formats of images that libvirt 9.0's schemas know, luks aside (storagecommon.rng)."""
_DECIMAL: Final = re.compile(r"[0-9]+", re.ASCII)

MAX_DISKS: Final = 1024
"""More than any domain can have; a limit against hostile documents."""

MAX_KEPT_DEPTH: Final = 20
"""What libvirt puts into a source nests 4 deep. Written again, each level indents all that is inside it."""


def read_root(xml: str, tag: str) -> etree._Element:
    """Return the root of a document, which must be ``tag``. Raises MomentError 35 or 27, as libvirt does."""
    try:
        root = parse_xml(xml)
    except XmlRefused as error:
        raise MomentError(LibvirtError.VIR_ERR_XML_DETAIL, "", str(error)) from error
    if root.tag != tag:
        raise MomentError(
            LibvirtError.VIR_ERR_XML_ERROR, tag_name(root), f"expecting root element of '{tag}', not '{tag_name(root)}'"
        )
    return root


def read_children(
    element: etree._Element, allowed: Collection[str], *, repeated: Collection[str] = ()
) -> dict[str, etree._Element]:
    """Refuse unknown or repeated children, and text beside them; return them by tag, of repeated ones the last."""
    children = list(element)
    if any(text and not text.isspace() for text in (element.text, *[child.tail for child in children])):
        raise schema_error(tag_name(element), f"text is not allowed beside the children of <{tag_name(element)}>")
    found: dict[str, etree._Element] = {}
    for child in children:
        tag = child.tag
        if not isinstance(tag, str):
            continue  # a comment
        if tag not in allowed:
            raise schema_error(tag, f"<{tag_name(element)}> cannot hold <{tag}>")
        if tag in found and tag not in repeated:
            raise schema_error(tag, f"<{tag}> stands twice in <{tag_name(element)}>")
        found[tag] = child
    return found


def read_attributes(element: etree._Element, allowed: Collection[str] = ()) -> None:
    """Refuse unknown attributes."""
    for name in element.attrib:
        if str(name) not in allowed:
            raise schema_error(tag_name(element), f"<{tag_name(element)}> has no attribute {name!r}")


def read_leaf(element: etree._Element) -> str:
    """Return the text of an element that may hold nothing else."""
    if element.attrib or len(element):
        read_attributes(element)
        read_children_none(element)
    return element_text(element)


def read_children_none(element: etree._Element) -> None:
    """Refuse any child element."""
    for child in element_children(element):
        raise schema_error(tag_name(child), f"<{tag_name(element)}> cannot hold <{tag_name(child)}>")


def read_moment_name(element: etree._Element) -> str:
    """Return the text of a ``<name>``, in the pattern of checkpoint names."""
    name = read_leaf(element)
    if MOMENT_NAME.fullmatch(name) is None:
        raise schema_error(
            "name", f"{name!r} cannot be a name: letters, digits, '_', '-' and, but not first, '.' are allowed"
        )
    return name


def first_text(element: etree._Element, path: str) -> str | None:
    """Return the text of the first element or attribute at an XPath, None when there is none or it is empty."""
    return str(element.xpath(f"string({path})")) or None


def read_location(element: etree._Element) -> SnapshotLocation:
    """Return the ``snapshot`` of an element of a snapshot; an absent one is the default. Raises MomentError 27."""
    value = element.get("snapshot")
    choices = [location for location in SnapshotLocation if location is not SnapshotLocation.DEFAULT]
    if value is not None and value not in choices:
        raise xml_error(tag_name(element), f"snapshot={value[:40]!r}; it can be {', '.join(choices)}")
    return SnapshotLocation.DEFAULT if value is None else SnapshotLocation(value)


def read_unsigned(element: str, text: str, *, bits: int = 64) -> int:
    """Return a number written in decimal digits alone."""
    if _DECIMAL.fullmatch(text) is None or len(text) > 40 or int(text) >= 1 << bits:
        raise schema_error(element, f"{text[:40]!r} is not a whole number of {bits} bits")
    return int(text)


def signed_number(text: str, *, bits: int) -> int | None:
    """Return a number as C's strtol reads it, blanks and sign before it and nothing behind; None for no number."""
    found = _SIGNED.fullmatch(text)
    if found is None or len(digits := found[2].lstrip("0")) > 20:
        return None
    value = int(f"{found[1]}{digits or 0}")
    return value if -(1 << bits - 1) <= value < 1 << bits - 1 else None


def read_choice(element: etree._Element, attribute: str, choices: Collection[str]) -> str | None:
    """Return an attribute that must be one of ``choices`` when it is there."""
    value = element.get(attribute)
    if value is not None and value not in choices:
        raise schema_error(tag_name(element), f"{attribute}={value!r}; it can be {' or '.join(choices)}")
    return value


def written_again(element: etree._Element, *, depth: int = MAX_KEPT_DEPTH) -> list[str]:
    """Return the lines of an element that is kept and not understood, as libvirt would write them.

    Such elements hold attributes, and either text or children; what has a namespace, or is nested deeper than
    ``depth``, is refused.
    """
    tag = tag_name(element)
    if depth == 0:
        raise schema_error(tag, f"<{tag}> is nested deeper than {MAX_KEPT_DEPTH} in an element that is kept as it is")
    if "{" in tag or any("{" in str(name) for name in element.attrib):
        raise schema_error(tag, f"<{tag}> has a namespace, which is not allowed here")
    opening = tag + attributes({str(name): str(value) for name, value in element.attrib.items()})
    children = element_children(element)
    if children:
        read_children(element, {str(child.tag) for child in children}, repeated={str(child.tag) for child in children})
        return [
            f"<{opening}>",
            *(f"  {line}" for child in children for line in written_again(child, depth=depth - 1)),
            f"</{tag}>",
        ]
    text = element_text(element)
    return [f"<{opening}>{escape(text)}</{tag}>" if text.strip() else f"<{opening}/>"]


def read_disks(parent: etree._Element) -> list[etree._Element]:
    """Return the ``<disk>`` elements of a ``<disks>``, of which there must be one at least."""
    read_attributes(parent)
    read_children(parent, ("disk",), repeated=("disk",))
    disks = element_children(parent)
    if not disks:
        raise schema_error("disks", "<disks> must hold at least one <disk>; leave it out to mean the default")
    if len(disks) > MAX_DISKS:
        raise schema_error("disks", f"{len(disks)} disks; no domain has more than {MAX_DISKS}")
    return disks
