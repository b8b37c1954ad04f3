"""The rules of libvirt's schema for snapshots, which libvirt applies only when it is told to validate.

Rules: domainsnapshot.rng of libvirt 9.0, with what later ones add (``<revertDisks>``,
``<snapshotDeleteInProgress>``). Not looked into are the definitions of domains, and what stands inside the
children of a ``<source>``; libvirt's schema does that where it is installed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from lxml import etree

from vmkeep.moments.errors import schema_error
from vmkeep.moments.model import SnapshotState
from vmkeep.moments.reading import (
    ABSOLUTE_PATH,
    DISK_TARGET,
    read_attributes,
    read_children,
    read_children_none,
    read_leaf,
    read_unsigned,
)
from vmkeep.xmltext import element_children, element_text, tag_name

_CHILDREN: Final = (
    *("name", "description", "state", "creationTime", "memory", "disks", "revertDisks", "active"),
    *("domain", "inactiveDomain", "parent", "cookie"),
)
_STATES: Final = [state for state in SnapshotState if state not in (SnapshotState.NOSTATE, SnapshotState.PMSUSPENDED)]
_FORMATS: Final = ("cow", "qcow", "qcow2", "qed", "vmdk")
_UNIT: Final = re.compile(r"[bB]([yY][tT][eE][sS]?)?|[kKmMgGtTpPeE]([iI]?[bB])?", re.ASCII)
_UUID: Final = re.compile(r"[a-fA-F0-9]{32}|[a-fA-F0-9]{8}-([a-fA-F0-9]{4}-){3}[a-fA-F0-9]{12}", re.ASCII)
_BLANK: Final = re.compile(r"[ \t\r\n]+")

_ANY_SOURCE: Final = ("slices", "encryption")
_COMMON_NETWORK: Final = ("host", *_ANY_SOURCE)
_PROPERTIES: Final = ("readahead", "timeout")
_NETWORK_CHILDREN: Final = {
    "nbd": _COMMON_NETWORK,
    "gluster": _COMMON_NETWORK,
    "rbd": (*_COMMON_NETWORK, "snapshot", "config", "auth"),
    "iscsi": (*_COMMON_NETWORK, "auth", "initiator"),
    "http": (*_COMMON_NETWORK, "cookies", "auth", *_PROPERTIES),
    "https": (*_COMMON_NETWORK, "ssl", "cookies", "auth", *_PROPERTIES),
    "ftp": (*_COMMON_NETWORK, "auth", *_PROPERTIES),
    "ftps": (*_COMMON_NETWORK, "ssl", "auth", *_PROPERTIES),
    "sheepdog": (*_COMMON_NETWORK, *_PROPERTIES),
    "tftp": (*_COMMON_NETWORK, *_PROPERTIES),
    "vxhs": ("host", "slices"),
    "nfs": ("host", "slices", "identity"),
}
_NETWORK_ATTRIBUTES: Final = {"nbd": ("tls", "tlsHostname"), "vxhs": ("tls",), "http": ("query",), "https": ("query",)}


def validate_snapshot(root: etree._Element) -> None:
    """Refuse what libvirt's schema refuses of a ``<domainsnapshot>``. Raises MomentError 92."""
    read_attributes(root)
    read_children(root, _CHILDREN)
    for child in element_children(root):
        tag = tag_name(child)
        if tag in ("name", "description", "creationTime"):
            read_leaf(child)
        elif tag == "state":
            _validate_value(tag, read_leaf(child), _STATES)
        elif tag == "active":
            _validate_value(tag, read_leaf(child), ("0", "1"))
        elif tag == "memory":
            _validate_memory(child)
        elif tag in ("disks", "revertDisks"):
            _validate_disks(child)
        elif tag == "parent":
            _validate_parent(child)
        elif tag == "cookie":
            read_attributes(child)
            read_children(child, children := {tag_name(part) for part in element_children(child)}, repeated=children)
        else:
            _validate_domain(child)


def _token(text: str) -> str:
    """Return a value as the schema compares it."""
    return _BLANK.sub(" ", text).strip(" ")


def _validate_value(element: str, text: str, choices: Collection[str]) -> None:
    if _token(text) not in choices:
        raise schema_error(element, f"{text[:40]!r}; it can be {', '.join(choices)}")


def _validate_memory(element: etree._Element) -> None:
    read_attributes(element, ("snapshot", "file"))
    read_children(element, ())
    location, file = element.get("snapshot"), element.get("file")
    if file is None:
        _validate_value("memory", location or "", ("no", "internal"))
        return
    if location is not None:
        _validate_value("memory", location, ("external",))
    _validate_path("memory", file)


def _validate_path(element: str, path: str | None) -> None:
    if path is None or ABSOLUTE_PATH.fullmatch(path) is None:
        raise schema_error(element, f"{path!r} is not an absolute path")


def _validate_parent(element: etree._Element) -> None:
    read_attributes(element)
    read_children(element, ("name",))
    name = element.find("name")
    if name is None:
        raise schema_error("parent", "<parent> must hold a <name>")
    read_leaf(name)


def _validate_domain(element: etree._Element) -> None:
    tag = tag_name(element)
    if element.get("type") is not None:
        if element.find("name") is None:
            raise schema_error(tag, f"<{tag}> must hold a <name>")
        return
    uuid = element.find("uuid")
    if tag != "domain" or uuid is None or element.attrib:
        raise schema_error(tag, f"<{tag}> has no attribute 'type'")
    read_children(element, ("uuid",))
    if _UUID.fullmatch(read_leaf(uuid)) is None:
        raise schema_error("uuid", f"{element_text(uuid)[:40]!r} is not a UUID")


def _validate_disks(element: etree._Element) -> None:
    read_attributes(element)
    read_children(element, ("disk",), repeated=("disk",))
    for disk in element_children(element):
        _validate_disk(disk)


def _validate_disk(disk: etree._Element) -> None:
    read_attributes(disk, ("name", "snapshot", "type"))
    name = disk.get("name")
    if name is None or (DISK_TARGET.fullmatch(name) is None and ABSOLUTE_PATH.fullmatch(name) is None):
        raise schema_error("disk", f"{name!r} is neither a disk's target nor an absolute path")
    location = _token(disk.get("snapshot", "external"))
    if location in ("no", "internal", "manual"):
        if disk.get("type") is not None:
            raise schema_error("disk", f"disk {name!r} has snapshot={location!r} and cannot have a type")
        read_children(disk, ())
        return
    _validate_value("disk", location, ("external", "no", "internal", "manual"))
    source_type = _token(disk.get("type", "file"))
    _validate_value("disk", source_type, ("file", "block", "network"))
    if source_type == "network":
        read_children(disk, ("source",))
        _validate_network_source(disk.find("source"), name)
        return
    read_children(disk, ("driver", "source", "snapshotDeleteInProgress"))
    for child in element_children(disk):
        if child.tag == "driver":
            _validate_driver(child)
        elif child.tag == "source":
            _validate_source(child, source_type)
        else:
            read_attributes(child)
            read_children(child, ())


def _validate_driver(driver: etree._Element) -> None:
    read_attributes(driver, ("type",))
    read_children(driver, ("metadata_cache",))
    if (kind := driver.get("type")) is not None:
        _validate_value("driver", kind, _FORMATS)
    cache = driver.find("metadata_cache")
    if cache is None:
        return
    read_attributes(cache)
    read_children(cache, ("max_size",))
    size = cache.find("max_size")
    if size is not None:
        read_attributes(size, ("unit",))
        read_children_none(size)
        read_unsigned("max_size", element_text(size))
        if _UNIT.fullmatch(size.get("unit", "b")) is None:
            raise schema_error("max_size", f"{size.get('unit', '')[:40]!r} is not a unit such as KiB")


def _validate_source(source: etree._Element, source_type: str) -> None:
    attribute = {"file": "file", "block": "dev"}[source_type]
    read_attributes(source, (attribute, "index"))
    order = ("seclabel", *_ANY_SOURCE)
    read_children(source, order, repeated=("seclabel",))
    found = [order.index(tag_name(child)) for child in element_children(source)]
    if found != sorted(found):
        # libvirt writes slices first, which its own schema refuses.
        raise schema_error("source", f"the children of <source> must stand in the order {', '.join(order)}")
    if source_type == "block" or source.get(attribute) is not None:
        _validate_path("source", source.get(attribute))
    _validate_index(source)


def _validate_index(source: etree._Element) -> None:
    index = source.get("index")
    if index is not None and read_unsigned("source", index) == 0:
        raise schema_error("source", "index must be at least 1")


def _validate_network_source(source: etree._Element | None, name: str) -> None:
    if source is None:
        raise schema_error("disk", f"disk {name!r} of type network must have a <source>")
    protocol = _token(source.get("protocol", ""))
    _validate_value("source", protocol, tuple(_NETWORK_CHILDREN))
    read_attributes(source, ("protocol", "name", "index", *_NETWORK_ATTRIBUTES.get(protocol, ())))
    read_children(source, _NETWORK_CHILDREN[protocol], repeated=("host",))
    if (tls := source.get("tls")) is not None:
        _validate_value("source", tls, ("yes", "no"))
    if protocol == "nfs" and source.find("identity") is None:
        raise schema_error("source", "<source> of protocol nfs must have an <identity>")
    if source.get("name") is None and protocol not in ("nbd", "rbd"):
        raise schema_error("source", f"<source> of protocol {protocol} must have a name")
    hosts = len(source.findall("host"))
    if (hosts != 1 and protocol not in ("rbd", "gluster")) or (hosts == 0 and protocol == "gluster"):
        raise schema_error("source", f"<source> of protocol {protocol} must have a <host>")
    _validate_index(source)
