"""Disks made to stand on other images: their sources change, and nothing else does."""

from __future__ import annotations

import pytest
from lxml import etree

from tests.unit.definition.cases import GOLDEN
from vmkeep.definition import DefinitionError, SourceKind, parse_definition
from vmkeep.definition.repointing import repoint, sliced_disks

_DISK = (
    "<disk type='{kind}' device='disk' snapshot='external'><driver name='qemu' type='raw' discard='unmap'/>"
    "<source {source} index='4'>{inner}</source><backingStore type='file'><format type='raw'/><source file='/b'/>"
    "</backingStore><target dev='vda' bus='virtio'/><serial>abc</serial></disk>"
)


def _domain(disk: str) -> str:
    return f"<domain type='kvm'><name>vm</name><devices>{disk}</devices></domain>"


@pytest.mark.parametrize(
    ("kind", "source"), [("file", "file='/a.raw' startupPolicy='optional'"), ("block", "dev='/dev/vg/a'")]
)
def test_disk_stands_on_the_overlay_and_keeps_what_is_not_its_source(kind: str, source: str) -> None:
    label = "<seclabel model='dac' relabel='no'/>"
    xml = _domain(_DISK.format(kind=kind, source=source, inner=f"{label}<reservations managed='yes'/>"))
    (disk,) = etree.fromstring(repoint(xml, {"vda": "/new.qcow2"})).iterfind("devices/disk")
    assert dict(disk.attrib) == {"type": "file", "device": "disk", "snapshot": "external"}
    assert [child.tag for child in disk] == ["driver", "source", "target", "serial"]
    driver, place = disk.find("driver"), disk.find("source")
    assert driver is not None
    assert place is not None
    assert dict(driver.attrib) == {"name": "qemu", "type": "qcow2", "discard": "unmap"}
    assert dict(place.attrib) == {"file": "/new.qcow2"}
    assert [child.tag for child in place] == ["seclabel"]


@pytest.mark.parametrize("case", sorted(path.name.removesuffix(".in.xml") for path in GOLDEN.glob("*.in.xml")))
def test_other_disks_and_all_else_of_a_definition_stay(case: str) -> None:
    xml = (GOLDEN / f"{case}.in.xml").read_text(encoding="utf-8")
    targets = [disk.target for disk in parse_definition(xml).disks if disk.source_kind is SourceKind.FILE][:1]
    changed = repoint(xml, dict.fromkeys(targets, "/new.qcow2"))
    before, after = etree.fromstring(xml.encode()), etree.fromstring(changed.encode())
    for root in (before, after):
        for disk in root.findall("devices/disk"):
            if disk.xpath("string(target/@dev)") in targets:
                disk.getparent().remove(disk)  # type: ignore[union-attr]  # <devices>
    assert etree.tostring(before, method="c14n2") == etree.tostring(after, method="c14n2")


def test_disk_that_the_domain_lacks_is_refused() -> None:
    with pytest.raises(DefinitionError, match="no disk vdb"):
        repoint(_domain(_DISK.format(kind="file", source="file='/a'", inner="")), {"vdb": "/new.qcow2"})


def test_disk_that_is_a_part_of_its_image_is_told() -> None:
    inner = "<slices><slice type='storage' offset='0' size='512'/></slices>"
    assert sliced_disks(_domain(_DISK.format(kind="file", source="file='/a'", inner=inner))) == {"vda"}
    assert sliced_disks(_domain(_DISK.format(kind="file", source="file='/a'", inner=""))) == set()
