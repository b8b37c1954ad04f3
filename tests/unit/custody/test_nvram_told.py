"""Boot entries and what is marked for the next start are told in words."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest

from tests.unit.custody.stores import GLOBAL, Made, make_store
from vmkeep.custody.bootentries import BootEntry
from vmkeep.custody.nvram import NvramTold, tell_of_nvram

SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
PARTITION = uuid.UUID("6a0f8a2e-52cf-4f5a-9f0e-5f0c1f1f0b5e")


def node(kind: int, sub: int, body: bytes) -> bytes:
    return struct.pack("<BBH", kind, sub, 4 + len(body)) + body


def option(description: str, *nodes: bytes, attributes: int = 1) -> bytes:
    path = b"".join(nodes) + node(0x7F, 0xFF, b"")
    return struct.pack("<IH", attributes, len(path)) + description.encode("utf-16-le") + b"\0\0" + path


WINDOWS = option(
    "Windows Boot Manager",
    node(4, 1, struct.pack("<IQQ16sBB", 1, 2048, 4096, PARTITION.bytes_le, 2, 2)),
    node(4, 4, "\\EFI\\Microsoft\\Boot\\bootmgfw.efi\0".encode("utf-16-le")),
)


def told(*made: Made) -> NvramTold:
    return tell_of_nvram(make_store(made))


def test_boot_entries_are_told_in_their_order_with_what_they_start() -> None:
    found = told(
        Made("Boot0000", option("UiApp", node(4, 7, bytes(16)), node(4, 6, bytes(16)), attributes=9)),
        Made("Boot0002", option("PXE", node(3, 11, b"\x52\x54\0\1\2\3" + bytes(27)), node(3, 12, bytes(23)))),
        Made("Boot000A", WINDOWS),
        Made("BootOrder", struct.pack("<HHH", 0xA, 2, 7)),
        Made("BootNext", struct.pack("<H", 2)),
        Made("Boot", b"of another name"),
        Made("Boot00zz", b"no number"),
    )
    assert found.booting.order == ("000A", "0002", "0007")
    assert found.booting.next == "0002"
    assert found.booting.entries == (
        BootEntry("000A", "Windows Boot Manager", f"partition {PARTITION}/EFI/Microsoft/Boot/bootmgfw.efi"),
        BootEntry("0002", "PXE", "network 52:54:00:01:02:03/IPv4"),
        BootEntry("0000", "UiApp", "firmware volume/firmware file", hidden=True),
    )
    assert [mark.name for mark in found.marks] == ["BootNext"]


@pytest.mark.parametrize("content", [b"", b"\1\0\0\0", b"\1\0\0\0\4\0A\0B", WINDOWS[:-9]])
def test_entry_that_is_cut_off_is_told_as_such(content: bytes) -> None:
    (entry,) = told(Made("Boot0001", content)).booting.entries
    assert entry.problem is not None


def test_what_the_next_start_is_to_do_is_told() -> None:
    found = told(
        Made("OsIndications", struct.pack("<Q", 0x5)),
        Made("OsIndicationsSupported", struct.pack("<Q", 0x1)),
        Made("MokNew", b"key", SHIM),
        Made("SbatLevel", b"sbat,1,2024010900\n", SHIM),
        Made("fwupd-1f-0", b"x", "0abba7dc-e516-4167-bbf5-4d9d1c739416"),
        Made("MokNew", b"of nobody"),
    )
    assert {(mark.name, mark.lasting) for mark in found.marks} == {
        ("OsIndications", False),
        ("MokNew", False),
        ("SbatLevel", True),
        ("fwupd-1f-0", False),
    }
    (indications,) = (mark.what for mark in found.marks if mark.name == "OsIndications")
    assert indications == "at the next start: into the firmware's menu, take capsules from the EFI system partition"
    assert told(Made("OsIndications", bytes(8))).marks == ()


def test_template_says_where_it_boots_and_how_much_room_it_has() -> None:
    found = tell_of_nvram(Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd").read_bytes())
    assert "UiApp" in [entry.description for entry in found.booting.entries]
    assert all(entry.problem is None for entry in found.booting.entries)
    assert found.room_bytes == 0x40000 - 28 - 72
    assert 0 < found.used_bytes <= found.room_bytes - found.blank_bytes
    assert found.first_expiry is not None
    assert found.first_expiry.subject == "Microsoft Corporation KEK CA 2011"


def test_store_that_cannot_be_read_leaves_everything_unknown() -> None:
    found = tell_of_nvram(b"QFI\xfb" + bytes(100))
    assert (found.secure_boot, found.microsoft, found.variables) == (None, None, 0)
    assert found.problem == "it is a qcow2 image, which is not looked into"
    assert GLOBAL not in str(found)
