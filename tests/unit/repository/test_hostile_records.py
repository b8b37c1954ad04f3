"""A record that no vmkeep wrote is damage, named by its object and by what is wrong; what vmkeep writes is read."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.attack.hostile_records import HOSTILE, SECRET, disk, state
from tests.unit.repository.records import GOOD
from vmkeep.errors import ObjectDamaged
from vmkeep.repository import PointRecord
from vmkeep.repository.fields import as_lines


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_record_is_damage_and_its_fault_is_named(fault: str) -> None:
    with pytest.raises(ObjectDamaged) as caught:
        PointRecord.from_json({**GOOD, **HOSTILE[fault]}, "points/x")
    assert caught.value.path == "points/x"
    assert caught.value.message.startswith("points/x ")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


def test_point_that_is_its_own_parent_is_damage() -> None:
    with pytest.raises(ObjectDamaged, match="its own parent"):
        PointRecord.from_json({**GOOD, "parent": GOOD["id"]}, "points/x")


@pytest.mark.parametrize("field", list(GOOD))
@pytest.mark.parametrize("value", [None, 7, 1.5, True, "\ud800", [], {}, [[]], [None], {"a": {}}], ids=repr)
def test_no_type_of_a_field_is_more_than_damage(field: str, value: object) -> None:
    with suppress(ObjectDamaged):
        PointRecord.from_json({**GOOD, field: value}, "points/x")


@pytest.mark.parametrize(
    "name",
    [
        "win11",
        "Windows Server 2022 (prod)",
        'it\'s "quoted" & <angled>',
        "Büro-Rechner №1",
        "データベース",
        "שרת",
        "خادم",
        "🏳️‍🌈",  # with a joiner, which is no direction mark
        "name=a;b|c$(d)`e`",
        "-rf",
        "..",
        " padded ",
        "a" * 251,  # the longest that a file NAME.xml can have
        "é" * 125,
    ],
)
def test_names_that_people_give_their_vms_are_read(name: str) -> None:
    record = PointRecord.from_json({**GOOD, "vm_name": name}, "points/x")
    assert record.vm_name == name
    assert record.as_json() == {**GOOD, "vm_name": name}


@pytest.mark.parametrize(
    "target", ["vda", "vdzz", "hda", "sda", "sdab", "xvda", "fda", "ubda", "vda1", "sd_a", "nvme0n1"]
)
def test_targets_that_libvirt_gives_are_read(target: str) -> None:
    assert PointRecord.from_json({**GOOD, "disks": [disk(target=target)]}, "points/x").disks[0].target == target


@pytest.mark.parametrize(
    "source",
    [
        "/var/lib/libvirt/images/win 11.qcow2",
        "rbd/pool/image",
        "",
        "iqn.2020-01.com.example:disk/1",
        "/Büro/データ.img",
    ],
)
def test_sources_of_disks_are_read(source: str) -> None:
    assert PointRecord.from_json({**GOOD, "disks": [disk(source=source)]}, "points/x").disks[0].source == source


def test_all_else_that_vmkeep_writes_is_read() -> None:
    value = {
        **GOOD,
        "kind": "incremental",
        "parent": "b" * 32,
        "checkpoint": "vmkeep-e52023b9-" + "a" * 32,
        "pause_ms": 166.4,
        "labels": {"why": "before the update\nof Tuesday", "vmkeep.safety": "c" * 32, "größe": "😀"},
        "definition": "<domain>\n\t<title>\u200fשרת\u200e</title>\r\n</domain>",
        "warnings": ["two\nlines\tand a tab"],
        "excluded": [{"target": "sda", "reason": "removable"}],
        "states": [state(), state(kind="nvram", file="nvram.fd", size_bytes=540672, version_id="6" * 32)],
        "disks": [disk(mode="scan"), disk(target="vdb", stored={"size_bytes": 70 * 4096 + 1000, "block_bytes": 4096})],
        "secrets": [SECRET],
        "sequence": 2**62,
        "later": {"kept": [1, 2.5, None, "x"]},
    }
    assert PointRecord.from_json(value, "points/x").as_json() == value
    old = state(kind="tpm", file="tpm1.2/tpm-00.permall")
    assert PointRecord.from_json({**GOOD, "states": [old]}, "points/x").states[0].file == old["file"]


@pytest.mark.parametrize("created", ["1970-01-01T00:00:00.000000+00:00", "9998-12-31T00:00:00.000000+00:00"])
def test_clocks_that_are_wrong_are_read(created: str) -> None:
    assert PointRecord.from_json({**GOOD, "created": created}, "points/x").created == created


@pytest.mark.parametrize(
    "said",
    ["plain", "two\nlines", "\x1b[31mred\x07", "a\u202eb", "\ud800", "\0", "x" * 300_000, "é" * 100_000, "\u2028"],
)
def test_message_of_anybody_can_be_kept_as_a_warning(said: str) -> None:
    kept = as_lines(said)
    assert PointRecord.from_json({**GOOD, "warnings": [kept]}, "points/x").warnings == (kept,)
    assert kept[:5] == said[:5] or "\\" in kept
