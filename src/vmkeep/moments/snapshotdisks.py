"""The ``<disk>`` elements of a snapshot, read and written as libvirt 9.0 does.

What stands in ``<source>`` is kept and put in libvirt's order. Not kept is what libvirt drops too: index and
startupPolicy, and the content of a source that has neither a path nor a format beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from lxml import etree

from vmkeep.moments.errors import LibvirtError, MomentError, unsupported, xml_error
from vmkeep.moments.model import SnapshotDisk, SnapshotLocation
from vmkeep.moments.reading import IMAGE_FORMATS, MAX_DISKS, first_text, read_location, signed_number, written_again
from vmkeep.moments.writing import attributes, indented
from vmkeep.xmltext import element_children, tag_name

_SOURCE_TYPES: Final = ("file", "block", "network", "nvme", "vhostuser", "vhostvdpa")
_REFUSED_TYPES: Final = ("dir", "volume")
_PATH_ATTRIBUTE: Final = {"file": "file", "block": "dev", "network": "name", "vhostvdpa": "dev"}
_PROTOCOLS: Final = (
    *("nbd", "rbd", "sheepdog", "gluster", "iscsi", "http", "https", "ftp", "ftps", "tftp", "ssh", "vxhs", "nfs"),
)

_DROPPED_ATTRIBUTES: Final = frozenset({"index", "startupPolicy"})
_BEFORE_THE_PATH: Final = ("protocol", "type", "managed", "namespace")
_AFTER_THE_PATH: Final = ("query", "tls", "tlsHostname")
_CHILD_ORDER: Final = (
    *("host", "snapshot", "config", "initiator", "auth", "ssl", "cookies", "readahead", "timeout", "reconnect"),
    *("identity", "address", "slices", "seclabel", "encryption", "reservations", "cookie"),
)

_UNIT: Final = re.compile(r"[ \t\r\n]*([kmgtpe])(ib|b|)", re.ASCII | re.IGNORECASE)
_BYTES: Final = re.compile(r"[ \t\r\n]*(b|bytes?)", re.ASCII | re.IGNORECASE)


def read_snapshot_disks(root: etree._Element, tag: str) -> tuple[SnapshotDisk, ...]:
    """Return the disks in ``<tag>``; as for libvirt, every element in it is one. Raises MomentError."""
    elements = [disk for parent in root.iterfind(tag) for disk in element_children(parent)]
    if len(elements) > MAX_DISKS:
        raise xml_error(tag, f"{len(elements)} disks; no domain has more than {MAX_DISKS}")
    return tuple(_read_disk(element) for element in elements)


def format_snapshot_disks(tag: str, disks: Sequence[SnapshotDisk]) -> list[str]:
    """Return the lines of ``<tag>``, none without disks. A disk without a name is not written."""
    if not disks:
        return []
    return [f"  <{tag}>", *(line for disk in disks if disk.name for line in _format_disk(disk)), f"  </{tag}>"]


def _read_disk(element: etree._Element) -> SnapshotDisk:
    name = element.get("name")
    if name is None:
        raise MomentError(
            LibvirtError.VIR_ERR_INTERNAL_ERROR, "disk", "a <disk> of a snapshot must have a name: its target or path"
        )
    location = read_location(element)
    source_type = element.get("type", "file")
    if source_type in _REFUSED_TYPES:
        raise xml_error(name, f"a snapshot cannot have a disk of type {source_type!r}")
    if source_type not in _SOURCE_TYPES:
        raise xml_error(name, f"type={source_type[:40]!r}; it can be {', '.join(_SOURCE_TYPES)}")
    source = element.find("source")
    path = None if source is None else _read_path(source, name, source_type)
    image_format = first_text(element, "./driver/@type")
    if image_format is not None and image_format not in IMAGE_FORMATS:
        raise unsupported(name, f"unknown image format {image_format[:40]!r} of disk {name!r}")
    cache = _read_cache_size(element, name)
    if path is not None and source_type in ("file", "block") and not path.startswith("/"):
        raise xml_error(name, f"the path of a snapshot's disk, {path!r}, must be absolute")
    if location is SnapshotLocation.DEFAULT and (path or image_format):
        location = SnapshotLocation.EXTERNAL
    return SnapshotDisk(
        name=name,
        location=location,
        source=path,
        source_type=source_type,
        format=image_format,
        source_attributes=() if source is None else _read_source_attributes(source, source_type),
        source_content="" if source is None else _read_source_content(source),
        metadata_cache_bytes=cache,
        delete_in_progress=element.find("snapshotDeleteInProgress") is not None,
    )


def _read_path(source: etree._Element, name: str, source_type: str) -> str | None:
    attribute = _PATH_ATTRIBUTE.get(source_type)
    path = None if attribute is None else source.get(attribute)
    if source_type == "network":
        protocol = source.get("protocol")
        if protocol not in (*_PROTOCOLS, "none"):
            raise xml_error(name, f"<source> must have a protocol: {', '.join(_PROTOCOLS)}")
        if path is None and protocol != "nbd":
            raise xml_error(name, f"<source> of protocol {protocol} must have a name")
        if protocol == "gluster" and path is not None and "/" not in path:
            raise xml_error(name, f"{path!r} is not the name of a gluster image: VOLUME/IMAGE")
    return path or None


def _read_source_attributes(source: etree._Element, source_type: str) -> tuple[tuple[str, str], ...]:
    """Return the attributes that are kept beside the path: not those that name another type's path."""
    paths = () if source_type in ("nvme", "vhostuser") else _PATH_ATTRIBUTE.values()
    values = {str(key): str(value) for key, value in source.attrib.items() if "{" not in str(key)}
    kept = [key for key in values if key not in _DROPPED_ATTRIBUTES and key not in paths]
    rank = {key: place for place, key in enumerate((*_BEFORE_THE_PATH, *_AFTER_THE_PATH))}
    return tuple((key, values[key]) for key in sorted(kept, key=lambda key: rank.get(key, len(rank))))


def _read_source_content(source: etree._Element) -> str:
    rank = {tag: place for place, tag in enumerate(_CHILD_ORDER)}
    children = sorted(element_children(source), key=lambda child: rank.get(tag_name(child), len(rank)))
    return "\n".join(line for child in children for line in written_again(child))


def _read_cache_size(element: etree._Element, name: str) -> int:
    path = "./driver/metadata_cache/max_size"
    text = first_text(element, path)
    if text is None:
        return 0
    value = signed_number(text, bits=65)
    if value is None or value < 0 or "-" in text:
        raise xml_error(name, f"max_size {text[:40]!r} is not a whole number of bytes")
    unit = first_text(element, f"{path}/@unit") or ""
    scaled = _UNIT.fullmatch(unit)
    if scaled is None and unit.strip(" \t\r\n") and _BYTES.fullmatch(unit) is None:
        raise MomentError(LibvirtError.VIR_ERR_INVALID_ARG, name, f"unknown unit {unit[:40]!r} of max_size")
    if scaled is not None:
        value *= (1000 if scaled[2].lower() == "b" else 1024) ** ("kmgtpe".index(scaled[1].lower()) + 1)
    if value >= 1 << 64:
        raise MomentError(LibvirtError.VIR_ERR_OVERFLOW, name, f"max_size {text[:40]} {unit[:40]} is too large")
    return value


def _format_disk(disk: SnapshotDisk) -> list[str]:
    with_image = disk.source is not None or disk.format is not None
    values = {
        "name": disk.name,
        "snapshot": None if disk.location is SnapshotLocation.DEFAULT else disk.location.value,
        "type": disk.source_type if with_image else None,
    }
    children = ["      <snapshotDeleteInProgress/>"] if disk.delete_in_progress else []
    if with_image:
        children += _format_driver(disk) + _format_source(disk)
    opening = f"    <disk{attributes(values)}"
    return [f"{opening}>", *children, "    </disk>"] if children else [f"{opening}/>"]


def _format_driver(disk: SnapshotDisk) -> list[str]:
    opening = f"      <driver{attributes({'type': disk.format})}"
    if disk.metadata_cache_bytes:
        size = f"          <max_size unit='bytes'>{disk.metadata_cache_bytes}</max_size>"
        cache = ["        <metadata_cache>", size, "        </metadata_cache>"]
        return [f"{opening}>", *cache, "      </driver>"]
    return [] if disk.format is None else [f"{opening}/>"]


def _format_source(disk: SnapshotDisk) -> list[str]:
    before = {key: value for key, value in disk.source_attributes if key in _BEFORE_THE_PATH}
    after = {key: value for key, value in disk.source_attributes if key not in _BEFORE_THE_PATH}
    attribute = _PATH_ATTRIBUTE.get(disk.source_type)
    path = {} if attribute is None else {attribute: disk.source}
    written = attributes({**before, **path, **after})
    opening = f"      <source{written}"
    if disk.source_content:
        return [f"{opening}>", indented(disk.source_content, 8), "      </source>"]
    return [f"{opening}/>"] if written else []
