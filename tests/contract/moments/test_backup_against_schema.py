"""Backup definitions, judged by the schema that libvirt itself validates them with."""

from __future__ import annotations

from pathlib import Path

import libvirt
import pytest
from hypothesis import given
from lxml import etree

from tests.property.moments.test_moment_texts import backups
from tests.unit.moments import test_backups as cases
from vmkeep.moments import (
    Backup,
    BackupDisk,
    BackupMode,
    BackupServer,
    ServerTransport,
    StoreType,
    align_backup,
    format_backup,
    luks_content,
    parse_backup,
)

SCHEMA = Path("/usr/share/libvirt/schemas/domainbackup.rng")
NEWER = {cases.GOLDEN / "pull-fd.xml"}
"""What the schema of libvirt 9.0 does not know."""


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(SCHEMA))


@pytest.mark.parametrize("path", sorted(set(cases.GOLDEN.glob("pu*.xml")) - NEWER), ids=lambda path: path.name)
def test_golden_backup_is_valid(schema: etree.RelaxNG, path: Path) -> None:
    schema.assertValid(etree.parse(path))


def test_aligned_backup_is_valid(schema: etree.RelaxNG) -> None:
    backup = Backup(
        mode=BackupMode.PULL,
        incremental="c0",
        server=BackupServer(transport=ServerTransport.UNIX, socket="/run/s"),
        disks=(BackupDisk(name="vda", export_name="vda", export_bitmap="b", store_format="qcow2"),),
    )
    text = format_backup(align_backup(backup, cases.DISKS, suffix="c1"))
    schema.assertValid(etree.fromstring(text))


def test_backup_with_encrypted_scratch_is_valid_and_read_as_it_was_written(schema: etree.RelaxNG) -> None:
    uuid = "5d6f1a8e-0d0a-4c8b-9b46-0a7b1d2c3e4f"
    disk = BackupDisk(
        name="vda", store_type=StoreType.FILE, store="/s", store_format="qcow2", store_content=luks_content(uuid)
    )
    server = BackupServer(transport=ServerTransport.UNIX, socket="/run/s")
    backup = Backup(mode=BackupMode.PULL, server=server, disks=(disk,))
    text = format_backup(backup)
    schema.assertValid(etree.fromstring(text))
    assert parse_backup(text) == backup
    assert uuid in text


@given(backups)
def test_any_pull_backup_is_valid(schema: etree.RelaxNG, backup: Backup) -> None:
    schema.assertValid(etree.fromstring(format_backup(backup)))


_TYPE_LEFT_OUT = "<disks><disk name='vda'/></disks>"
_TYPE_OPTIONAL_AT = 11_003_000


@pytest.mark.parametrize("inner", cases.REFUSED_PULLS)
def test_pull_backup_refused_here_is_refused_by_the_schema(schema: etree.RelaxNG, inner: str) -> None:
    assert not schema.validate(etree.fromstring(f"<domainbackup mode='pull'>{inner}</domainbackup>"))


@pytest.mark.parametrize("inner", cases.REFUSED_PUSHES)
def test_push_backup_refused_here_is_refused_by_the_schema(schema: etree.RelaxNG, inner: str) -> None:
    if inner == _TYPE_LEFT_OUT and libvirt.getVersion() >= _TYPE_OPTIONAL_AT:
        return  # a type for each disk of a push backup is asked for by the schema of 9.0, no longer by that of 11.3
    assert not schema.validate(etree.fromstring(f"<domainbackup>{inner}</domainbackup>"))
