"""``<domainsnapshot>`` read and written.

libvirt reads snapshots without its schema unless it is told to validate: unknown elements are ignored, the
first of several counts, and the order of the checks below decides which error is reported. Source of the rules:
libvirt 9.0's documentation (formatsnapshot) and the answers of its test driver, which tests/contract/moments
asks again; ``<revertDisks>`` is that of libvirt 9.9.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from lxml import etree

from vmkeep.moments.errors import LibvirtError, MomentError, unsupported, xml_error
from vmkeep.moments.model import Snapshot, SnapshotLocation, SnapshotMemory, SnapshotState
from vmkeep.moments.nesting import read_nested, read_nested_domain, read_unknown, write_nested, write_nested_domain
from vmkeep.moments.reading import first_text, read_location, read_root, signed_number
from vmkeep.moments.snapshotdisks import format_snapshot_disks, read_snapshot_disks
from vmkeep.moments.snapshotschema import validate_snapshot
from vmkeep.moments.writing import attributes, escape, indented
from vmkeep.xmltext import element_children

_KNOWN: Final = (
    *("name", "description", "state", "parent", "creationTime", "memory", "disks", "revertDisks"),
    *("domain", "inactiveDomain", "cookie", "active"),
)


def parse_snapshot(
    xml: str, *, redefine: bool = False, internal: bool = False, now: int | None = None, validate: bool = False
) -> Snapshot:
    """Return a snapshot read from XML.

    For a new snapshot (``redefine`` false) libvirt ignores state, creation time, parent and domains; time, and
    the name where none is given, come from ``now`` in seconds since 1970, and stay empty when it is None. For
    one that is redefined all is read, and name, creation time and state are demanded. ``internal`` reads and
    demands ``<active>``, as in the files libvirt keeps. ``validate`` applies the rules of libvirt's schema
    first. A ``<domain>`` without a type, which old snapshots have, gives none. Raises MomentError.
    """
    root = read_root(xml, "domainsnapshot")
    if validate:
        validate_snapshot(root)
    name = first_text(root, "./name")
    if redefine and name is None:
        raise xml_error("name", "a redefined snapshot must have a name")
    snapshot = Snapshot(name=name, description=first_text(root, "./description"))
    if redefine:
        snapshot = _read_existing(xml, root, snapshot)
    elif now is not None:
        snapshot = replace(snapshot, name=name or str(now), creation_time=now)
    offline = snapshot.state.offline
    snapshot = replace(
        snapshot,
        memory=_read_memory(root, redefine=redefine, offline=offline),
        disks=read_snapshot_disks(root, "disks"),
        revert_disks=read_snapshot_disks(root, "revertDisks") if redefine else (),
        active=_read_active(root) if internal else False,
    )
    cookie = root.find("cookie")
    return snapshot if offline or cookie is None else replace(snapshot, cookie=read_nested(xml, cookie))


def format_snapshot(
    snapshot: Snapshot, *, internal: bool = False, domain_uuid: str | None = None, secure: bool = False
) -> str:
    """Return the snapshot as libvirt 9.0 writes it, byte for byte.

    ``internal`` adds ``<active>``; ``domain_uuid`` stands for the domain when the snapshot has none; ``secure``
    keeps the passwords of the domains' displays. Raises MomentError when a nested document is not well-formed.
    """
    lines = ["<domainsnapshot>"]
    for tag, value in (("name", snapshot.name), ("description", snapshot.description)):
        if value:
            lines.append(f"  <{tag}>{escape(value)}</{tag}>")
    if snapshot.state is not SnapshotState.NOSTATE:
        lines.append(f"  <state>{snapshot.state}</state>")
    if snapshot.parent_name:
        lines += ["  <parent>", f"    <name>{escape(snapshot.parent_name)}</name>", "  </parent>"]
    if snapshot.creation_time:
        lines.append(f"  <creationTime>{snapshot.creation_time}</creationTime>")
    if snapshot.memory.location is not SnapshotLocation.DEFAULT:
        values = {"snapshot": snapshot.memory.location.value, "file": snapshot.memory.file}
        lines.append(f"  <memory{attributes(values)}/>")
    lines += format_snapshot_disks("disks", snapshot.disks)
    lines += format_snapshot_disks("revertDisks", snapshot.revert_disks)
    lines += _format_domains(snapshot, domain_uuid, secure)
    if snapshot.cookie is not None:
        lines.append(write_nested(snapshot.cookie, "cookie"))
    lines += [indented(element, 2) for element in snapshot.other_elements]
    if internal:
        lines.append(f"  <active>{int(snapshot.active)}</active>")
    return "\n".join([*lines, "</domainsnapshot>", ""])


def _format_domains(snapshot: Snapshot, domain_uuid: str | None, secure: bool) -> list[str]:
    lines: list[str] = []
    if snapshot.domain is not None:
        lines.append(write_nested_domain(snapshot.domain, secure=secure))
    elif domain_uuid is not None:
        lines += ["  <domain>", f"    <uuid>{escape(domain_uuid)}</uuid>", "  </domain>"]
    if snapshot.inactive_domain is not None:
        lines.append(write_nested_domain(snapshot.inactive_domain, "inactiveDomain", secure=secure))
    return lines


def _read_existing(xml: str, root: etree._Element, snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with what only a redefined one has, in the order of libvirt's checks."""
    time = signed_number(first_text(root, "./creationTime") or "", bits=64)
    if time is None:
        raise MomentError(
            LibvirtError.VIR_ERR_INTERNAL_ERROR, "creationTime", "missing creationTime from existing snapshot"
        )
    state = _read_state(root)
    # Older snapshots hold no more of the domain than its UUID.
    domain = _read_domain(xml, root, "domain") if first_text(root, "./domain/@type") else None
    inactive_domain = _read_domain(xml, root, "inactiveDomain")
    unknown = (child for child in element_children(root) if child.tag not in _KNOWN)
    return replace(
        snapshot,
        creation_time=time,
        parent_name=first_text(root, "./parent/name"),
        state=state,
        domain=domain,
        inactive_domain=inactive_domain,
        other_elements=tuple(read_unknown(element) for element in unknown),
    )


def _read_state(root: etree._Element) -> SnapshotState:
    text = first_text(root, "./state")
    if text is None:
        raise xml_error("state", "missing state from existing snapshot")
    states = [state for state in SnapshotState if state is not SnapshotState.NOSTATE]
    if text not in states:
        raise unsupported("state", f"invalid state {text[:40]!r} of a snapshot; it can be {', '.join(states)}")
    return SnapshotState(text)


def _read_domain(xml: str, root: etree._Element, tag: str) -> str | None:
    """Return a domain's definition; beyond name and type it is for libvirt to judge."""
    element = root.find(tag)
    if element is None:
        return None
    if first_text(element, "./name") is None:
        raise MomentError(LibvirtError.VIR_ERR_NO_NAME, tag, f"<{tag}> must hold the domain's <name>")
    if not element.get("type"):
        raise MomentError(LibvirtError.VIR_ERR_INTERNAL_ERROR, tag, f"<{tag}> has no attribute 'type', such as 'kvm'")
    return read_nested_domain(xml, element)


def _read_memory(root: etree._Element, *, redefine: bool, offline: bool) -> SnapshotMemory:
    element = root.find("memory")
    file = None if element is None else element.get("file")
    location = SnapshotLocation.DEFAULT if element is None else read_location(element)
    if location is SnapshotLocation.MANUAL:
        raise xml_error("memory", "memory cannot have snapshot='manual'; it can be no, internal or external")
    if location is SnapshotLocation.DEFAULT:
        if file is not None:
            location = SnapshotLocation.EXTERNAL
        elif redefine:
            location = SnapshotLocation.NO if offline else SnapshotLocation.INTERNAL
    if (file is not None) and location is not SnapshotLocation.EXTERNAL:
        raise xml_error("memory", f"memory file {file!r} requires snapshot='external'")
    if file is None and location is SnapshotLocation.EXTERNAL:
        raise xml_error("memory", "memory with snapshot='external' requires a file")
    if offline and location not in (SnapshotLocation.DEFAULT, SnapshotLocation.NO):
        raise xml_error("memory", "an offline or disk-only snapshot has no memory; use snapshot='no'")
    if file is not None and not file.startswith("/"):
        raise xml_error("memory", f"the path of the memory file, {file!r}, must be absolute")
    return SnapshotMemory(location, file)


def _read_active(root: etree._Element) -> bool:
    active = signed_number(first_text(root, "./active") or "", bits=32)
    if active is None:
        raise MomentError(
            LibvirtError.VIR_ERR_INTERNAL_ERROR, "active", "could not find the element 'active', which is 0 or 1"
        )
    return active != 0
