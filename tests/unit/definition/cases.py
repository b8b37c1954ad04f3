"""The golden changes: what is asked of each input, whose result stands beside it as NAME.out.xml."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Final

from vmkeep.definition import DiskPlacement, Remap

GOLDEN: Final = Path(__file__).parent / "golden"


def macs() -> Remap:
    """Return a change that numbers the MAC addresses."""
    numbers = count(1)
    return Remap(new_mac=lambda: f"52:54:00:00:00:{next(numbers):02x}")


def changes_of(case: str) -> Remap:
    """Return the change of a golden case."""
    match case:
        case "windows":
            return Remap(
                name="Copy of <win> & 'more' ☃",
                uuid="99999999-8888-4777-8666-555555555555",
                new_mac=macs().new_mac,
                disks={
                    "vda": DiskPlacement("/restore/a & b/vda.qcow2", "qcow2"),
                    "vdb": DiskPlacement("/restore/vdb.qcow2", "qcow2"),
                    "vdc": DiskPlacement("/restore/vdc.raw"),
                },
                removed=frozenset({"vdd", "sda", "sdb"}),
                nvram="/restore/it's_VARS.fd",
            )
        case "live":
            return Remap(disks={"vda": DiskPlacement("/images/top.qcow2", "qcow2")})
        case "bios":
            return Remap(
                name="plain again",
                new_mac=macs().new_mac,
                disks={"vda": DiskPlacement("/restore/vda.qcow2", "qcow2")},
                removed=frozenset({"sda"}),
            )
        case _:
            raise ValueError(case)
