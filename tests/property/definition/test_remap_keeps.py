"""Remapping changes what was asked, and nothing else, of any domain."""

from __future__ import annotations

from copy import deepcopy

from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from vmkeep.definition import Definition, DefinitionError, DiskPlacement, Remap, parse_definition, remap

TARGETS = ("vda", "vdb", "sda", "sdb")
xml_text = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), max_size=12)
names = xml_text.filter(lambda text: text.strip() and "/" not in text)
paths = xml_text.map(lambda text: "/" + text)
tags = st.sampled_from(["acme", "x-y", "memoryBacking", "qos", "{urn:acme}tool"])
spaces = st.sampled_from(["", "\n  ", " "])


@st.composite
def unknown_elements(draw: st.DrawFn) -> etree._Element:
    element = etree.Element(draw(tags), {"k": draw(xml_text)})
    element.text = draw(xml_text)
    for _ in range(draw(st.integers(0, 2))):
        child = etree.SubElement(element, draw(tags))
        child.tail = draw(xml_text)
    return element


@st.composite
def domains(draw: st.DrawFn) -> str:
    """Return a domain with disks, interfaces, and elements of nobody's schema between everything."""
    root = etree.Element("domain", {"type": "kvm"})
    etree.SubElement(root, "name").text = draw(names)
    etree.SubElement(root, "uuid").text = str(draw(st.uuids()))
    etree.SubElement(etree.SubElement(root, "os"), "nvram").text = draw(paths)
    devices = etree.SubElement(root, "devices")
    for target in draw(st.lists(st.sampled_from(TARGETS), unique=True)):
        disk = etree.SubElement(devices, "disk", {"type": "file", "device": draw(st.sampled_from(["disk", "cdrom"]))})
        etree.SubElement(disk, "driver", {"name": "qemu", "type": "raw", "cache": "none"})
        etree.SubElement(disk, "source", {"file": draw(paths)})
        etree.SubElement(disk, "target", {"dev": target})
        disk.insert(draw(st.integers(0, 3)), draw(unknown_elements()))
    for number in range(draw(st.integers(0, 2))):
        interface = etree.SubElement(devices, "interface", {"type": "network"})
        etree.SubElement(interface, "mac", {"address": f"52:54:00:aa:00:0{number}"})
    for parent in (root, devices):
        parent.insert(draw(st.integers(0, len(parent))), draw(unknown_elements()))
        parent.insert(draw(st.integers(0, len(parent))), etree.Comment("kept"))
    for element in list(root.iter("disk", "interface", "os", "devices")):
        element.tail = draw(spaces)
    return etree.tostring(root, encoding="unicode")


def canonical(xml: str) -> bytes:
    return etree.tostring(etree.fromstring(xml), method="c14n", with_comments=True)


def without_tail(element: etree._Element) -> etree._Element:
    alone = deepcopy(element)
    alone.tail = None
    return alone


def unknown(xml: str) -> list[bytes]:
    """Return all elements that no part of vmkeep knows, outside removed disks, as they stand."""
    root = etree.fromstring(xml)
    return [
        etree.tostring(without_tail(element), method="c14n")
        for element in root.iter("acme", "x-y", "memoryBacking", "qos", "{urn:acme}tool")
    ]


@given(domains())
def test_remap_with_nothing_to_change_changes_nothing(xml: str) -> None:
    assert canonical(remap(xml, Remap())) == canonical(xml)
    before = parse_definition(xml)
    same = Remap(
        name=before.name,
        uuid=before.uuid,
        nvram=before.firmware.nvram,
        disks={disk.target: DiskPlacement(disk.source or "/", disk.format) for disk in before.disks},
    )
    assert parse_definition(remap(xml, same)) == before


@given(domains(), st.data())
def test_remapped_domain_has_what_was_asked_and_keeps_the_unknown(xml: str, data: st.DataObject) -> None:
    before = parse_definition(xml)
    targets = [disk.target for disk in before.disks]
    removed = frozenset(data.draw(st.sets(st.sampled_from(targets)))) if targets else frozenset()
    placed = {
        t: DiskPlacement(data.draw(paths), data.draw(st.sampled_from(["qcow2", None])))
        for t in targets
        if t not in removed
    }
    macs = iter([f"52:54:00:00:00:{number:02x}" for number in range(9)])
    changes = Remap(
        name=data.draw(names),
        uuid=str(data.draw(st.uuids())),
        new_mac=lambda: next(macs),
        disks=placed,
        removed=removed,
        nvram=data.draw(paths.filter(lambda path: path == path.strip())),
    )
    result = remap(xml, changes)
    after = parse_definition(result)
    assert (after.name, after.uuid, after.firmware.nvram) == (changes.name, changes.uuid, changes.nvram)
    assert [i.mac for i in after.interfaces] == [f"52:54:00:00:00:{n:02x}" for n in range(len(before.interfaces))]
    check_disks(before, after, changes)
    if not removed:
        assert unknown(result) == unknown(xml)


def check_disks(before: Definition, after: Definition, changes: Remap) -> None:
    for disk in before.disks:
        now = after.disk(disk.target)
        if disk.target in changes.removed:
            assert now is None if not disk.removable else now is not None and now.source is None
        else:
            placement = changes.disks[disk.target]
            assert now is not None
            assert (now.source, now.format) == (placement.path, placement.format or disk.format)


@given(st.text(max_size=60))
@settings(max_examples=60)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_definition(text)
    except DefinitionError:
        return


@given(domains(), st.integers(0, 400), st.text(max_size=3))
def test_damaged_domain_is_read_or_refused(xml: str, at: int, put: str) -> None:
    damaged = xml[: at % len(xml)] + put + xml[at % len(xml) + 1 :]
    try:
        definition = parse_definition(damaged)
    except DefinitionError:
        return
    assert parse_definition(remap(damaged, Remap())).name == definition.name
