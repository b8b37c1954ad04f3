"""Checkpoint definitions; tests/contract/moments compares them with libvirt itself."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from vmkeep.moments import (
    Checkpoint,
    CheckpointDisk,
    CheckpointType,
    Moment,
    MomentError,
    align_checkpoint,
    domain_disks,
    format_checkpoint,
    parse_checkpoint,
)

GOLDEN = (Path(__file__).parent / "golden" / "redefined.xml").read_text(encoding="utf-8")
DISKS = domain_disks(
    """<domain><name>a</name><devices>
    <disk type='file'><driver type='qcow2'/><source file='/a'/><target dev='vda'/></disk>
    <disk type='block'><source dev='/dev/b'/><target dev='vdb'/></disk>
    <disk type='file'><source file='/ro'/><target dev='vdc'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
    <disk type='nvme'><source namespace='1'/><target dev='vdd'/></disk>
    <disk type='file'><source file='/same'/><target dev='vde'/></disk>
    <disk type='file' snapshot='no'><source file='/same'/><target dev='vdf'/></disk>
    </devices></domain>"""
)


def test_redefined_checkpoint_is_read_whole_and_written_the_same() -> None:
    checkpoint = parse_checkpoint(GOLDEN, redefine=True)
    assert isinstance(checkpoint, Moment)
    assert checkpoint.name == "vmkeep-2"
    assert checkpoint.description == 'it\'s "two" <&>\n  second line'
    assert (checkpoint.parent_name, checkpoint.creation_time) == ("vmkeep-1", 1525889631)
    assert checkpoint.disks == (
        CheckpointDisk("vda", CheckpointType.BITMAP, "vmkeep-2"),
        CheckpointDisk("vdb", CheckpointType.NO),
    )
    assert checkpoint.domain is not None
    assert checkpoint.domain.startswith("<domain type='kvm'>\n  <name>a</name>\n")
    assert checkpoint.domain.endswith("\n</domain>\n")
    assert format_checkpoint(checkpoint, secure=True) == GOLDEN


def test_passwords_and_domain_and_sizes_are_written_only_when_asked() -> None:
    checkpoint = parse_checkpoint(GOLDEN, redefine=True)
    assert format_checkpoint(checkpoint) == GOLDEN.replace(" passwd='geheim'", "")
    without = format_checkpoint(checkpoint, domain=False, secure=True)
    assert without == GOLDEN.partition("  <domain ")[0] + "</domaincheckpoint>\n"
    disks = (
        CheckpointDisk("vda", CheckpointType.BITMAP, "b", 65536),
        CheckpointDisk("vdb", CheckpointType.NO, None, 5),
    )
    sized = replace(checkpoint, disks=disks)
    assert "size" not in format_checkpoint(sized, domain=False)
    assert "bitmap='b' size='65536'/>" in format_checkpoint(sized, sizes=True)
    assert "<disk name='vdb' checkpoint='no'/>" in format_checkpoint(sized, sizes=True)


def test_new_checkpoint_takes_name_and_time_from_the_clock_and_ignores_what_libvirt_ignores() -> None:
    assert parse_checkpoint("<domaincheckpoint/>", now=7) == Checkpoint(name="7", creation_time=7)
    assert parse_checkpoint("<domaincheckpoint/>") == Checkpoint()
    new = parse_checkpoint(GOLDEN, now=7)
    assert (new.name, new.creation_time, new.parent_name, new.domain) == ("vmkeep-2", 7, None, None)


def test_size_of_a_disk_is_not_read() -> None:
    xml = "<domaincheckpoint><disks><disk name='vda' size='9'/></disks></domaincheckpoint>"
    assert parse_checkpoint(xml).disks == (CheckpointDisk("vda", CheckpointType.BITMAP),)


def test_plain_strings_are_taken_for_types_and_wrong_ones_are_not() -> None:
    assert CheckpointDisk("vda", "bitmap").type is CheckpointType.BITMAP  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="maybe"):
        CheckpointDisk("vda", "maybe")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(FrozenInstanceError):
        Checkpoint().name = "x"  # type: ignore[misc]  # what is tested


def test_document_of_default_type_omits_it_and_nameless_disks() -> None:
    text = format_checkpoint(Checkpoint(name="a", disks=(CheckpointDisk("vda"), CheckpointDisk(""))))
    assert (
        text
        == "<domaincheckpoint>\n  <name>a</name>\n  <disks>\n    <disk name='vda'/>\n  </disks>\n</domaincheckpoint>\n"
    )


def test_control_characters_are_left_out_as_libvirt_does() -> None:
    assert "<description>ab</description>" in format_checkpoint(Checkpoint(name="n", description="a\x01\x1fb"))


def test_domain_with_a_prefix_from_outside_is_still_a_document() -> None:
    xml = (
        "<domaincheckpoint xmlns:q='urn:q'><name>a</name><creationTime>1</creationTime>"
        "<domain type='kvm'><q:x/></domain></domaincheckpoint>"
    )
    domain = parse_checkpoint(xml, redefine=True).domain
    assert domain is not None
    assert "xmlns:q" in domain


def test_domain_that_is_not_well_formed_is_not_written() -> None:
    for domain in ("<domain>", "<network/>", "<!DOCTYPE domain><domain/>"):
        with pytest.raises(MomentError):
            format_checkpoint(Checkpoint(name="a", domain=domain))


def test_error_says_number_name_element_and_remedy() -> None:
    with pytest.raises(MomentError) as caught:
        parse_checkpoint("<domaincheckpoint><name>a/b</name></domaincheckpoint>")
    error = caught.value
    assert (error.code, error.libvirt_name, error.element) == (92, "VIR_ERR_XML_INVALID_SCHEMA", "name")
    assert "are allowed" in error.message


def test_hostile_documents_are_refused_as_malformed() -> None:
    for xml in (
        "<!DOCTYPE domaincheckpoint [<!ENTITY a 'b'>]><domaincheckpoint><name>&a;</name></domaincheckpoint>",
        "<domaincheckpoint>" * 300 + "</domaincheckpoint>" * 300,
        "<domaincheckpoint>" + " " * (5 << 20) + "</domaincheckpoint>",
    ):
        with pytest.raises(MomentError) as caught:
            parse_checkpoint(xml)
        assert caught.value.code == 35
    many = "<domaincheckpoint><disks>" + "<disk name='vda'/>" * 1025 + "</disks></domaincheckpoint>"
    with pytest.raises(MomentError, match="1025 disks"):
        parse_checkpoint(many)


def test_disks_of_a_domain_are_read() -> None:
    assert [(d.target, d.source, d.source_type, d.readonly, d.empty) for d in DISKS[:5]] == [
        ("vda", "/a", "file", False, False),
        ("vdb", "/dev/b", "block", False, False),
        ("vdc", "/ro", "file", True, False),
        ("sda", None, "file", True, True),
        ("vdd", "nvme", "nvme", False, False),
    ]
    assert (DISKS[0].format, DISKS[6].snapshot) == ("qcow2", "no")


def aligned(*disks: CheckpointDisk) -> list[tuple[str, str, str | None]]:
    checkpoint = align_checkpoint(Checkpoint(name="c", disks=disks), DISKS)
    return [(disk.name, disk.type, disk.bitmap) for disk in checkpoint.disks]


def test_without_a_list_all_disks_take_part_that_can() -> None:
    assert aligned() == [
        ("vda", "bitmap", "c"),
        ("vdb", "bitmap", "c"),
        ("vdc", "no", None),
        ("sda", "no", None),
        ("vdd", "bitmap", "c"),
        ("vde", "bitmap", "c"),
        ("vdf", "bitmap", "c"),
    ]


def test_with_a_list_the_others_do_not_and_order_and_names_are_the_domains() -> None:
    listed = aligned(CheckpointDisk("/dev/b"), CheckpointDisk("vda", CheckpointType.BITMAP, "own"))
    assert listed[:3] == [("vda", "bitmap", "own"), ("vdb", "bitmap", "c"), ("vdc", "no", None)]
    assert {kind for _, kind, _ in listed[2:]} == {"no"}


@pytest.mark.parametrize(
    ("disks", "message"),
    [
        ([CheckpointDisk("vdz")] * 8, "too many"),
        ([CheckpointDisk("vdz")], "no disk named"),
        ([CheckpointDisk("/nope")], "no disk named"),
        ([CheckpointDisk("/same")], "no disk named"),
        ([CheckpointDisk("vda"), CheckpointDisk("/a")], "twice"),
        ([CheckpointDisk("vdc")], "read-only"),
        ([CheckpointDisk("sda")], "empty"),
    ],
)
def test_disks_that_cannot_take_part_are_refused(disks: list[CheckpointDisk], message: str) -> None:
    with pytest.raises(MomentError, match=message) as caught:
        aligned(*disks)
    assert (caught.value.code, caught.value.libvirt_name) == (67, "VIR_ERR_CONFIG_UNSUPPORTED")


def test_domain_without_disks_cannot_have_a_checkpoint() -> None:
    with pytest.raises(MomentError, match="at least one disk"):
        align_checkpoint(Checkpoint(name="c"), ())
