"""A parked definition differs in one source, and unparking gives back what was there, whatever else was changed."""

from __future__ import annotations

import pytest
from lxml import etree

from tests.unit.definition.cases import GOLDEN
from vmkeep.definition import DefinitionError
from vmkeep.definition.parking import is_parked, park, unpark

_PATH = "/var/lib/vmkeep/restores/restore-of-win11-not-finished--run-vmkeep-doctor"


def _source(case: str) -> str:
    return (GOLDEN / f"{case}.in.xml").read_text(encoding="utf-8")


def _same(one: str, other: str) -> bool:
    texts = [etree.tostring(etree.fromstring(xml.encode()), method="c14n2") for xml in (one, other)]
    return texts[0] == texts[1]


def _domain(disk: str, more: str = "") -> str:
    return f"<domain type='kvm'>\n  <name>vm</name>\n  <devices>\n    {disk}\n{more}  </devices>\n</domain>\n"


_DISKS = {
    "file": (
        "<disk type='file' device='disk'><source file='/a.qcow2' startupPolicy='optional'/><target dev='vda'/></disk>"
    ),
    "block": "<disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/a'/><target dev='vda'/></disk>",
    "lun": (
        "<disk type='block' device='lun' rawio='yes' sgio='unfiltered'><driver type='raw'/>"
        "<source dev='/dev/sdx'><reservations managed='yes'/></source><target dev='sda' bus='scsi'/></disk>"
    ),
    "network": (
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/><auth username='u'><secret type='ceph' "
        "uuid='11111111-2222-3333-4444-555555555555'/></auth><source protocol='rbd' name='p/i'><host name='h'/>"
        "</source><target dev='vda'/></disk>"
    ),
    "volume": "<disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vda'/></disk>",
    "encrypted": (
        "<disk type='file' device='disk' snapshot='internal'><driver type='qcow2'/><source file='/a'><encryption "
        "format='luks'><secret type='passphrase' uuid='11111111-2222-3333-4444-555555555555'/></encryption></source>"
        "<backingStore/><target dev='vda'/></disk>"
    ),
}


@pytest.mark.parametrize("kind", sorted(_DISKS))
def test_disk_of_any_kind_is_parked_as_a_missing_file_and_comes_back(kind: str) -> None:
    xml = _domain(_DISKS[kind])
    parked = park(xml, _PATH)
    disk = etree.fromstring(parked.definition.encode()).find("devices/disk")
    assert disk is not None
    assert (disk.get("type"), disk.get("device")) == ("file", "disk")
    assert [dict(source.attrib) for source in disk.findall("source")] == [{"file": _PATH}]
    assert {child.tag for child in disk} <= {"driver", "source", "target"}
    assert "secret" not in parked.definition
    assert is_parked(parked.definition, _PATH)
    assert not is_parked(xml, _PATH)
    assert unpark(parked.definition, _PATH, parked.target, parked.element) == xml.replace("'", '"')


@pytest.mark.parametrize("case", ["windows", "live"])
def test_only_the_first_disk_changes_and_all_comes_back(case: str) -> None:
    xml = _source(case)
    parked = park(xml, _PATH)
    assert parked.target == "vda"
    before, after = (etree.fromstring(text.encode()) for text in (xml, parked.definition))
    for root in (before, after):
        first = root.find("devices/disk")
        assert first is not None
        first.getparent().remove(first)  # type: ignore[union-attr] # it has a parent: it was found below one
    assert etree.tostring(before, method="c14n2") == etree.tostring(after, method="c14n2")
    back = unpark(parked.definition, _PATH, parked.target, parked.element)
    assert back is not None
    assert _same(back, xml)


def test_drives_are_passed_over() -> None:
    drive = "<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sda'/></disk>"
    empty = "<disk type='file' device='disk'><target dev='sdb'/></disk>"
    parked = park(_domain(drive + empty + _DISKS["file"]), _PATH)
    assert parked.target == "vda"
    with pytest.raises(DefinitionError, match="no disk"):
        park(_domain(drive + empty), _PATH)


def test_what_was_changed_meanwhile_stays() -> None:
    parked = park(_domain(_DISKS["file"]), _PATH)
    edited = parked.definition.replace("<name>vm</name>", "<name>vm</name><title>mine</title>")
    edited = edited.replace("</devices>", "<memballoon model='none'/></devices>")
    back = unpark(edited, _PATH, parked.target, parked.element)
    assert back is not None
    assert "/a.qcow2" in back
    assert "<title>mine</title>" in back
    assert "memballoon" in back


def test_definition_that_is_not_parked_any_more_is_left_alone() -> None:
    xml = _domain(_DISKS["file"])
    parked = park(xml, _PATH)
    assert unpark(xml, _PATH, parked.target, parked.element) is None
    assert unpark(parked.definition, _PATH + "-other", parked.target, parked.element) is None


def test_what_cannot_be_parked_or_put_back_is_refused() -> None:
    parked = park(_domain(_DISKS["file"]), _PATH)
    with pytest.raises(DefinitionError, match="already"):
        park(parked.definition, _PATH)
    with pytest.raises(DefinitionError, match="absolute"):
        park(_domain(_DISKS["file"]), "relative")
    for element in ("<disk", "<interface/>", "<disk><target dev='vdb'/></disk>"):
        with pytest.raises(DefinitionError):
            unpark(parked.definition, _PATH, parked.target, element)


def test_name_of_the_file_may_hold_what_names_of_vms_hold() -> None:
    path = '/r/restore-of-Büro & "win" <11>\'s-not-finished'
    parked = park(_domain(_DISKS["file"]), path)
    assert is_parked(parked.definition, path)
    assert unpark(parked.definition, path, parked.target, parked.element) is not None
