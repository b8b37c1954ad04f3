"""Backup definitions."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmkeep.moments import (
    Backup,
    BackupDisk,
    BackupDiskMode,
    BackupMode,
    BackupServer,
    DomainDisk,
    MomentError,
    ServerTransport,
    StoreType,
    align_backup,
    format_backup,
    parse_backup,
)

GOLDEN = Path(__file__).parent / "golden"
DISKS = (
    DomainDisk("vda", "/img/a.qcow2", format="qcow2"),
    DomainDisk("vdb", "/dev/b", source_type="block"),
    DomainDisk("vdc", "/img/ro", readonly=True),
    DomainDisk("sda", None, readonly=True),
)


@pytest.mark.parametrize("name", ["pull", "push", "pull-tcp", "pull-fd"])
def test_backup_is_written_as_it_was_read(name: str) -> None:
    text = (GOLDEN / f"{name}.xml").read_text(encoding="utf-8")
    assert format_backup(parse_backup(text)) == text


def test_backup_is_read() -> None:
    backup = parse_backup((GOLDEN / "pull.xml").read_text(encoding="utf-8"))
    assert (backup.mode, backup.incremental) == (BackupMode.PULL, "vmkeep-1")
    assert backup.server == BackupServer(transport=ServerTransport.UNIX, socket="/run/vmkeep/it's.sock")
    first, second, third = backup.disks
    assert first == BackupDisk(
        name="vda",
        mode=BackupDiskMode.INCREMENTAL,
        incremental="vmkeep-1",
        export_name="vda",
        export_bitmap="backup-vda",
        store_type=StoreType.FILE,
        store="/scratch/vda.qcow2",
        store_format="qcow2",
    )
    assert (second.mode, second.store_type, second.store) == (BackupDiskMode.FULL, StoreType.BLOCK, "/dev/scratch")
    assert "f52a81b2" in second.store_content
    assert third == BackupDisk(name="vdc", backup=False)


def test_what_libvirt_adds_to_a_running_job_is_read() -> None:
    xml = (
        "<domainbackup mode='pull' id='1'><server transport='unix' socket='/s'/><disks>"
        "<disk name='vda' backup='yes' state='running' type='file' backupmode='full' index='3'>"
        "<driver type='qcow2'/><scratch file='/x'/></disk></disks></domainbackup>"
    )
    (disk,) = parse_backup(xml).disks
    assert (disk.state, disk.index) == ("running", 3)


def test_server_that_is_handed_over_has_a_group_of_descriptors_and_nothing_else() -> None:
    server = parse_backup((GOLDEN / "pull-fd.xml").read_text(encoding="utf-8")).server
    assert server == BackupServer(transport=ServerTransport.FD, fd_group="nbd")
    for wrong in ("transport='fd'", "transport='fd' fdgroup='x' socket='/s'", "name='h' fdgroup='x'"):
        with pytest.raises(MomentError, match="transport fd"):
            parse_backup(f"<domainbackup mode='pull'><server {wrong}/></domainbackup>")


REFUSED_PULLS = [
    "",
    "<server transport='unix'/>",
    "<server transport='unix' socket='relative'/>",
    "<server transport='unix' socket='/s' name='h'/>",
    "<server transport='tcp'/>",
    "<server name='h' socket='/s'/>",
    "<server name='h' port='x'/>",
    "<server transport='rdma' name='h'/>",
    "<server name='h' tls='maybe'/>",
    "<server name='h'/><bogus/>",
    "<server name='h'/><disks/>",
    "<server name='h'/><disks><disk/></disks>",
    "<server name='h'/><disks><disk name='/path'/></disks>",
    "<server name='h'/><disks><disk name='vda' backup='maybe'/></disks>",
    "<server name='h'/><disks><disk name='vda' type='network'/></disks>",
    "<server name='h'/><disks><disk name='vda' backup='yes'/></disks>",
    "<server name='h'/><disks><disk name='vda' backup='yes' type='block'/></disks>",
    "<server name='h'/><disks><disk name='vda' backupmode='full' incremental='c'/></disks>",
    "<server name='h'/><disks><disk name='vda' backup='no' type='file'/></disks>",
    "<server name='h'/><disks><disk name='vda'><driver type='qcow2'/></disk></disks>",
    "<server name='h'/><disks><disk name='vda'><driver type='raw'/><scratch file='/x'/></disk></disks>",
    "<server name='h'/><disks><disk name='vda'><driver type='qcow2'/><scratch dev='/x'/></disk></disks>",
    "<server name='h'/><disks><disk name='vda'><driver type='qcow2'/><scratch/></disk></disks>",
    "<server name='h'/><disks><disk name='vda'><target file='/x'/></disk></disks>",
]


@pytest.mark.parametrize("inner", REFUSED_PULLS)
def test_pull_backup_that_libvirts_schema_refuses_is_refused(inner: str) -> None:
    with pytest.raises(MomentError) as caught:
        parse_backup(f"<domainbackup mode='pull'>{inner}</domainbackup>")
    assert caught.value.code == 92


REFUSED_PUSHES = [
    "<server name='h'/>",
    "<disks><disk name='vda'><target file='/x'/></disk></disks>",
    "<disks><disk name='vda'><driver type='raw'/></disk></disks>",
    "<disks><disk name='vda' type='file' exportname='x'/></disks>",
    "<disks><disk name='vda' type='file'><scratch file='/x'/></disk></disks>",
    "<disks><disk name='vda' type='file'><target file='x'/></disk></disks>",
]


@pytest.mark.parametrize("inner", REFUSED_PUSHES)
def test_push_backup_that_libvirts_schema_refuses_is_refused(inner: str) -> None:
    with pytest.raises(MomentError) as caught:
        parse_backup(f"<domainbackup>{inner}</domainbackup>")
    assert caught.value.code == 92


def test_push_backup_may_choose_a_disk_and_say_nothing_more() -> None:
    """By the schema of libvirt 11.3; that of 9.0 wants a type."""
    text = "<domainbackup mode='push'>\n  <disks>\n    <disk name='vda' backup='yes'/>\n  </disks>\n</domainbackup>\n"
    assert format_backup(parse_backup(text)) == text


def test_disk_of_a_pull_backup_without_a_store_is_named_alone() -> None:
    disk = BackupDisk(name="vda", export_name="x")
    assert "<disk name='vda' exportname='x'/>" in format_backup(Backup(mode=BackupMode.PULL, disks=(disk,)))


def test_other_documents_are_refused() -> None:
    for xml, code in (("<domaincheckpoint/>", 27), ("<domainbackup", 35), ("<domainbackup mode='x'/>", 92)):
        with pytest.raises(MomentError) as caught:
            parse_backup(xml)
        assert caught.value.code == code


def test_without_a_list_writable_disks_with_media_take_part_and_get_a_store_beside_them() -> None:
    backup = align_backup(Backup(mode=BackupMode.PULL), DISKS[:1] + DISKS[2:], suffix="c1")
    assert [(d.name, d.backup, d.mode, d.store) for d in backup.disks] == [
        ("vda", True, BackupDiskMode.FULL, "/img/a.qcow2.c1"),
        ("vdc", False, None, None),
        ("sda", False, None, None),
    ]


def test_listed_disks_come_first_in_their_order_and_the_others_take_no_part() -> None:
    disks = (BackupDisk(name="vdb", store="/s/b", store_type=StoreType.FILE), BackupDisk(name="vda"))
    backup = align_backup(Backup(disks=disks), DISKS, suffix="1")
    assert [(d.name, d.backup) for d in backup.disks] == [("vdb", True), ("vda", True), ("vdc", False), ("sda", False)]


def test_job_wide_base_makes_disks_incremental_unless_they_say_otherwise() -> None:
    disks = (
        BackupDisk(name="vda"),
        BackupDisk(name="vdb", mode=BackupDiskMode.FULL, store="/s"),
    )
    backup = align_backup(Backup(incremental="c0", disks=disks), DISKS, suffix="1")
    assert [(d.mode, d.incremental) for d in backup.disks[:2]] == [
        (BackupDiskMode.INCREMENTAL, "c0"),
        (BackupDiskMode.FULL, None),
    ]
    own = align_backup(Backup(incremental="c0", disks=(BackupDisk(name="vda", incremental="c9"),)), DISKS, suffix="1")
    assert own.disks[0].incremental == "c9"


@pytest.mark.parametrize(
    ("disks", "message"),
    [
        ((BackupDisk(name="vdz"),), "no disk named"),
        ((BackupDisk(name="/img/a.qcow2"),), "no disk named"),
        ((BackupDisk(name="vda"), BackupDisk(name="vda")), "twice"),
        ((BackupDisk(name="vda", mode=BackupDiskMode.INCREMENTAL),), "names no checkpoint"),
        ((BackupDisk(name="sda", store="/s"),), "no media"),
        ((BackupDisk(name="vdb"),), "refusing to generate"),
    ],
)
def test_disks_that_cannot_take_part_are_refused(disks: tuple[BackupDisk, ...], message: str) -> None:
    with pytest.raises(MomentError, match=message) as caught:
        align_backup(Backup(disks=disks), DISKS, suffix="1")
    assert caught.value.code == 67


def test_domain_without_disks_cannot_have_a_backup() -> None:
    with pytest.raises(MomentError, match="at least one disk"):
        align_backup(Backup(), (), suffix="1")
