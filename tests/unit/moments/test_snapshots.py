"""Snapshot definitions; tests/contract/moments compares them with libvirt itself."""

from __future__ import annotations

import time
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from vmkeep.moments import (
    DomainDisk,
    Moment,
    MomentError,
    Snapshot,
    SnapshotDisk,
    SnapshotLocation,
    SnapshotMemory,
    SnapshotState,
    align_snapshot,
    domain_disks,
    format_snapshot,
    parse_snapshot,
)

GOLDEN = Path(__file__).parent / "golden"
UUID = "f52a81b2-424e-490c-823d-6bd4235bc572"
DISKS = (
    DomainDisk("vda", "/img.d/a.qcow2", format="qcow2"),
    DomainDisk("vdb", "/img.d/b"),
    DomainDisk("vdc", "/img.d/c.raw", readonly=True),
    DomainDisk("vdd", "/img.d/d.raw", snapshot="no"),
    DomainDisk("vde", "/img.d/e.raw", snapshot="external"),
    DomainDisk("vdf", "/dev/f", source_type="block", snapshot="internal"),
    DomainDisk("sda", None, readonly=True),
)


def golden(name: str) -> str:
    return (GOLDEN / f"snapshot-{name}.xml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["running", "memory-file", "disk-only", "reverted"])
def test_redefined_snapshot_is_written_as_it_was_read(name: str) -> None:
    snapshot = parse_snapshot(golden(name), redefine=True)
    assert format_snapshot(snapshot, secure=True) == golden(name)
    assert parse_snapshot(format_snapshot(snapshot, secure=True), redefine=True) == snapshot


def test_snapshot_is_read_whole() -> None:
    snapshot = parse_snapshot(golden("running"), redefine=True, validate=True)
    assert isinstance(snapshot, Moment)
    assert (snapshot.name, snapshot.description) == ('before <update>, it\'s "1"', "two\n  lines")
    assert (snapshot.parent_name, snapshot.creation_time) == ("first / one", 1525889631)
    assert (snapshot.state, snapshot.memory) == (SnapshotState.RUNNING, SnapshotMemory(SnapshotLocation.INTERNAL))
    assert [(disk.name, disk.location) for disk in snapshot.disks] == [
        ("vda", "internal"),
        ("vdb", "no"),
        ("vdc", "manual"),
    ]
    assert snapshot.cookie is not None
    assert snapshot.cookie.startswith("<cookie>\n  <cpu ")
    assert snapshot.domain is not None
    assert [disk.target for disk in domain_disks(snapshot.domain)] == ["vda"]


def test_disks_are_read_whole() -> None:
    vda, vdb, vdc, vdd, vde = parse_snapshot(golden("disk-only"), redefine=True).disks
    assert (vda.source, vda.format, vda.metadata_cache_bytes) == ("/img/a.s3", "qcow2", 1263616)
    assert "<label>system_u:object_r:x</label>" in vda.source_content
    assert (vdb.source_type, vdb.source) == ("block", "/dev/vg/b")
    assert (vdc.source, vdc.source_attributes) == ("c", (("protocol", "nbd"), ("tls", "yes")))
    assert [line for line in vdd.source_content.splitlines() if line.startswith("<host")] == [
        "<host name='h1' port='6789'/>",
        "<host name='h2' port='6789'/>",
    ]
    assert vde.source_attributes == (("protocol", "https"), ("query", "q=1"))


def test_persistent_definition_is_a_domain_document_and_written_under_its_own_name() -> None:
    snapshot = parse_snapshot(golden("memory-file"), redefine=True)
    assert snapshot.inactive_domain is not None
    assert snapshot.inactive_domain == snapshot.domain
    assert snapshot.memory == SnapshotMemory(SnapshotLocation.EXTERNAL, "/img/it's.mem")
    plain = format_snapshot(snapshot)
    assert plain == golden("memory-file").replace(" passwd='geheim'", "")
    with_declaration = f"<?xml version='1.0'?>\n<!-- </domain> -->\n{snapshot.inactive_domain}<!-- end -->\n"
    again = replace(snapshot, domain=with_declaration, inactive_domain=with_declaration)
    assert format_snapshot(again) == plain


def test_overlays_of_a_revert_and_an_interrupted_deletion_are_kept() -> None:
    snapshot = parse_snapshot(golden("reverted"), redefine=True)
    assert snapshot.disks[0].delete_in_progress
    assert [disk.source for disk in snapshot.revert_disks] == ["/img/a.1525889636"]
    assert parse_snapshot(golden("reverted")).revert_disks == ()


def test_uuid_stands_for_a_domain_that_is_not_known() -> None:
    snapshot = parse_snapshot(golden("uuid-only"), redefine=True)
    assert snapshot.domain is None
    assert format_snapshot(snapshot, domain_uuid=UUID) == golden("uuid-only")
    assert "domain>" not in format_snapshot(snapshot)
    running = parse_snapshot(golden("running"), redefine=True)
    assert format_snapshot(running, domain_uuid=UUID, secure=True) == golden("running")


def test_only_libvirts_own_files_say_which_snapshot_is_current() -> None:
    text = golden("libvirts-file")
    snapshot = parse_snapshot(text, redefine=True, internal=True)
    assert snapshot.active
    assert format_snapshot(snapshot, internal=True, secure=True) == text
    assert "<active>0</active>" in format_snapshot(replace(snapshot, active=False), internal=True)
    assert not parse_snapshot(text, redefine=True).active
    assert "active" not in format_snapshot(snapshot)
    for wrong in ("", "<active/>", "<active>x</active>", "<active>4294967296</active>"):
        with pytest.raises(MomentError, match="active") as caught:
            parse_snapshot(text.replace("<active>1</active>", wrong), redefine=True, internal=True)
        assert caught.value.code == 1


def test_new_snapshot_takes_name_and_time_from_the_clock_and_ignores_what_libvirt_ignores() -> None:
    assert parse_snapshot("<domainsnapshot/>", now=7) == Snapshot(name="7", creation_time=7)
    assert parse_snapshot("<domainsnapshot/>") == Snapshot()
    new = parse_snapshot(golden("memory-file"), now=7)
    assert (new.name, new.creation_time, new.parent_name, new.domain, new.inactive_domain) == (
        "s2",
        7,
        None,
        None,
        None,
    )
    assert (new.state, new.memory.location) == (SnapshotState.NOSTATE, SnapshotLocation.EXTERNAL)


def test_memory_of_a_redefined_snapshot_follows_from_its_state() -> None:
    for state in SnapshotState:
        xml = f"<domainsnapshot><name>a</name><creationTime>1</creationTime><state>{state}</state></domainsnapshot>"
        if state is SnapshotState.NOSTATE:
            continue
        expected = "no" if state in ("shutoff", "disk-snapshot") else "internal"
        assert parse_snapshot(xml, redefine=True).memory.location == expected


def test_elements_that_are_not_known_are_kept_when_redefined() -> None:
    extra = '  <future a="1">\n    <x xmlns="urn:x">text <b/> more\nline</x>\n  </future>\n'
    text = golden("uuid-only").replace("  <domain>", f"{extra}  <domain>")
    snapshot = parse_snapshot(text, redefine=True)
    written = format_snapshot(snapshot)
    assert extra in written
    assert parse_snapshot(written, redefine=True) == snapshot
    assert parse_snapshot(text).other_elements == ()


def test_labels_of_several_lines_and_line_separators_stay_as_they_are() -> None:
    disk = "<disk name='vda'><source file='/x'><seclabel><label>a\n b\u2028c</label></seclabel></source></disk>"
    snapshot = parse_snapshot(f"<domainsnapshot><disks>{disk}</disks></domainsnapshot>")
    for _ in range(3):
        assert "<label>a\n b\u2028c</label>" in snapshot.disks[0].source_content
        snapshot = parse_snapshot(format_snapshot(snapshot))


def test_plain_strings_are_taken_and_wrong_ones_are_not() -> None:
    disk = SnapshotDisk("vda", "external")  # type: ignore[arg-type]  # what is tested
    assert disk.location is SnapshotLocation.EXTERNAL
    snapshot = Snapshot(state="running", disks=[disk])  # type: ignore[arg-type]  # what is tested
    assert (snapshot.state, snapshot.disks) == (SnapshotState.RUNNING, (disk,))
    with pytest.raises(ValueError, match="maybe"):
        SnapshotMemory("maybe")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(FrozenInstanceError):
        snapshot.name = "x"  # type: ignore[misc]  # what is tested


def test_nested_document_that_is_not_well_formed_is_not_written() -> None:
    for snapshot in (
        Snapshot(name="a", domain="<domain>"),
        Snapshot(name="a", inactive_domain="<inactiveDomain/>"),
        Snapshot(name="a", cookie="<x/>"),
    ):
        with pytest.raises(MomentError):
            format_snapshot(snapshot)


def test_validation_refuses_what_reading_lets_pass() -> None:
    for inner in (
        "<name/><name/>",
        "<state>pmsuspended</state>",
        "<memory/>",
        "<cookie>text</cookie>",
        "<parent/>",
        "<domain/>",
        "<disks><disk name='vda' snapshot='no' type='file'/></disks>",
        "<disks><disk name='vda'><driver type='raw'/></disk></disks>",
        "<disks><disk name='vda' type='block'><source/></disk></disks>",
        "<disks><disk name='vda' type='network'><source protocol='nbd'/></disk></disks>",
    ):
        xml = f"<domainsnapshot>{inner}</domainsnapshot>"
        parse_snapshot(xml)
        with pytest.raises(MomentError) as caught:
            parse_snapshot(xml, validate=True)
        assert (caught.value.code, caught.value.libvirt_name) == (92, "VIR_ERR_XML_INVALID_SCHEMA")


def test_hostile_documents_are_refused_with_their_limit() -> None:
    for xml, code, message in (
        ("<!DOCTYPE a [<!ENTITY a 'b'>]><domainsnapshot><name>&a;</name></domainsnapshot>", 35, "document type"),
        ("<domainsnapshot>" + "<a>" * 252 + "</a>" * 252 + "</domainsnapshot>", 35, "deeper than 250"),
        ("<domainsnapshot>" + " " * (5 << 20) + "</domainsnapshot>", 35, "limit is 4194304"),
        ("<domainsnapshot>" + "<a/>" * 100_001 + "</domainsnapshot>", 35, "more than 100000 elements"),
        ("<domainsnapshot " + " ".join(f"a{n}=''" for n in range(1001)) + "/>", 35, "more than 1000 attributes"),
        ("<domainsnapshot><disks>" + "<disk name='vda'/>" * 1025 + "</disks></domainsnapshot>", 27, "1025 disks"),
    ):
        with pytest.raises(MomentError, match=message) as caught:
            parse_snapshot(xml)
        assert caught.value.code == code


GRAPHICS = "<domain type='x'><name>y</name><graphics a='{}'/></domain>"


@pytest.mark.parametrize(
    "inner",
    [
        GRAPHICS.format(" " * 3_900_000),
        "<domain type='x'><name>y</name>"
        + "\n  <e a='1'/>" * 90_000
        + "</domain><cookie>"
        + "<a/>" * 9_000
        + "</cookie>",
        "<disks><disk name='vda'><source file='/x'>" + "<a/>" * 90_000 + "</source></disk></disks>",
        "<u>\n" * 200 + "<a/>\n" * 90_000 + "</u>" * 200,
        "<name>x</name>" * 90_000,
        "<!-- -->" * 99_000,
    ],
    ids=["blanks", "domain", "source", "unknown", "names", "comments"],
)
def test_document_made_to_be_slow_is_read_and_written_soon_and_does_not_grow(inner: str) -> None:
    existing = "<name>a</name><creationTime>1</creationTime><state>running</state>"
    start = time.process_time()
    snapshot = parse_snapshot(f"<domainsnapshot>{existing}{inner}</domainsnapshot>", redefine=True)
    text = format_snapshot(snapshot)
    assert time.process_time() - start < 5
    assert len(text) < 5 * len(inner) + 1000


def test_content_that_would_grow_with_its_depth_is_refused() -> None:
    for depth, refused in ((20, False), (21, True)):
        content = "<a>" * depth + "</a>" * depth
        xml = f"<domainsnapshot><disks><disk name='vda'><source>{content}</source></disk></disks></domainsnapshot>"
        if refused:
            with pytest.raises(MomentError, match="deeper than 20"):
                parse_snapshot(xml)
        else:
            assert parse_snapshot(xml).disks[0].source_content.count("<a") == depth


def test_only_passwords_of_displays_are_left_out() -> None:
    display = """<graphics type='vnc' a=" passwd='kept' " passwd = "gone"   passwdValidTo='kept'/>"""
    domain = f"<domain type='kvm'>\n  <name>a</name>\n  {display}\n  <x passwd='kept'/>\n</domain>\n"
    text = format_snapshot(Snapshot(name="a", domain=domain))
    assert "gone" not in text
    assert text.count("kept") == 3
    assert "gone" in format_snapshot(Snapshot(name="a", domain=domain), secure=True)


def test_long_numbers_are_read_or_refused_without_delay() -> None:
    head = "<domainsnapshot><name>a</name><state>running</state><creationTime>"
    zeros = f"{head}{'0' * 1_000_000}5</creationTime></domainsnapshot>"
    assert parse_snapshot(zeros, redefine=True).creation_time == 5
    with pytest.raises(MomentError, match="creationTime"):
        parse_snapshot(f"{head}{' ' * 1_000_000}{'9' * 1_000_000}x</creationTime></domainsnapshot>", redefine=True)


def aligned(
    *disks: SnapshotDisk, default: str = "internal", uniform: bool = False
) -> list[tuple[str, str, str | None]]:
    snapshot = align_snapshot(Snapshot(name="s.1", disks=disks), DISKS, default=default, uniform=uniform)
    return [(disk.name, disk.location, disk.source) for disk in snapshot.disks]


def test_disks_that_are_not_listed_follow_the_domain_and_then_the_default() -> None:
    assert aligned() == [
        ("vda", "internal", None),
        ("vdb", "internal", None),
        ("vdc", "no", None),
        ("vdd", "no", None),
        ("vde", "external", "/img.d/e.s.1"),
        ("vdf", "internal", None),
        ("sda", "no", None),
    ]


def test_external_disks_get_a_name_beside_their_source() -> None:
    assert aligned(default="external")[:3] == [
        ("vda", "external", "/img.d/a.s.1"),
        ("vdb", "external", "/img.d/b.s.1"),
        ("vdc", "no", None),
    ]


def test_listed_disks_are_found_by_target_and_path_and_may_say_otherwise() -> None:
    listed = aligned(
        SnapshotDisk("vdf", SnapshotLocation.EXTERNAL, "/x"),
        SnapshotDisk("/img.d/a.qcow2", SnapshotLocation.NO),
        SnapshotDisk("vdd", SnapshotLocation.INTERNAL),
        SnapshotDisk("vde"),
    )
    assert [listed[place] for place in (0, 3, 4, 5)] == [
        ("vda", "no", None),
        ("vdd", "internal", None),
        ("vde", "external", "/img.d/e.s.1"),
        ("vdf", "external", "/x"),
    ]


def test_uniform_snapshot_is_internal_but_for_disks_of_which_the_domain_says_no() -> None:
    listed = aligned(SnapshotDisk("vde"), SnapshotDisk("vdd", SnapshotLocation.NO), uniform=True)
    assert [place[1] for place in listed[3:5]] == ["no", "internal"]
    for disk in (SnapshotDisk("vda", SnapshotLocation.NO), SnapshotDisk("vdd", SnapshotLocation.EXTERNAL)):
        with pytest.raises(MomentError, match="must use snapshot mode 'internal'"):
            aligned(disk, uniform=True)
    assert aligned(SnapshotDisk("vda", SnapshotLocation.NO), default="external", uniform=True)[0][1] == "no"


@pytest.mark.parametrize(
    ("disks", "message"),
    [
        ([SnapshotDisk("vdz")] * 8, "too many"),
        ([SnapshotDisk("vdz")], "no disk named"),
        ([SnapshotDisk("vda"), SnapshotDisk("/img.d/a.qcow2")], "twice"),
        ([SnapshotDisk("vda", SnapshotLocation.INTERNAL, "/x")], "requires use of external"),
        ([SnapshotDisk("vdf", SnapshotLocation.EXTERNAL)], "not a regular file"),
        ([SnapshotDisk("sda", SnapshotLocation.EXTERNAL)], "without source"),
        ([SnapshotDisk("vda", SnapshotLocation.EXTERNAL, source_type="block")], "on a 'block' device"),
    ],
)
def test_disks_that_cannot_take_part_are_refused(disks: list[SnapshotDisk], message: str) -> None:
    with pytest.raises(MomentError, match=message) as caught:
        aligned(*disks)
    assert caught.value.code == 67


@pytest.mark.parametrize(
    ("disks", "requests"),
    [
        ((DomainDisk("vda", "/a.raw"), DomainDisk("vdb", "/a.qcow2")), ()),
        ((DomainDisk("vda", "/a.s"),), ()),
        ((DomainDisk("vda", "/a.raw"), DomainDisk("vdb", "/b", snapshot="no", source_type="block")), ("vdb", "/a.s")),
        ((DomainDisk("vda", "/a.raw"), DomainDisk("vdb", "/a.s", snapshot="no")), ()),
    ],
)
def test_name_that_is_made_never_is_that_of_another_image(
    disks: tuple[DomainDisk, ...], requests: tuple[str, ...]
) -> None:
    listed = (SnapshotDisk(requests[0], SnapshotLocation.EXTERNAL, requests[1]),) if requests else ()
    with pytest.raises(MomentError, match="collision") as caught:
        align_snapshot(Snapshot(name="s", disks=listed), disks, default="external")
    assert caught.value.code == 67


def test_domain_without_disks_can_have_a_snapshot() -> None:
    assert align_snapshot(Snapshot(name="s"), (), default="internal") == Snapshot(name="s")
    with pytest.raises(MomentError, match="too many"):
        align_snapshot(Snapshot(name="s", disks=(SnapshotDisk("vda"),)), (), default="internal")
