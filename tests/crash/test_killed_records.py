"""Commands that change libvirt's records of snapshots only, killed at their effects: each snapshot stays as it was.

After the kill a record may name the image of an earlier snapshot, as libvirt 9.0 leaves it. `snapshot repair` finds it
and puts it right, no image is touched, and the same command does the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from tests.crash.bed import KILLED, Zygote
from tests.crash.walk import NO_DEATH, deaths, need_effects
from tests.rig import Disk, Host, MiB, Vm, VmState
from tests.system.history import Forked
from tests.system.kept_snapshots import names, take
from tests.system.snapshots import snapshots
from tests.system.test_snapshot_health import health

pytestmark = pytest.mark.crash
_NAMES = ("S1", "S2", "S3")
_REDEFINE, _CURRENT, _RECORD_ONLY = 1, 2, 2


@dataclass(slots=True)
class Records:
    """A paused VM with three snapshots in a row, their records, and the bytes of their images."""

    vm: Vm
    vmkeep: Forked
    zygote: Zygote
    right: dict[str, str]
    images: dict[Path, bytes]

    @classmethod
    def make(cls, host: Host, zygote: Zygote) -> Records:
        vmkeep = Forked(host, zygote)
        vm = host.define("guest", disks=[Disk("vda", 2 * MiB), Disk("vdb", 1 * MiB)], tpm=False, firmware="bios")
        vm.start(paused=True)
        for number, name in enumerate(_NAMES, start=1):
            vm.write("vda", start=0, length=MiB // 4, pattern=number)
            take(vm, vmkeep, name, uefi=False, tpm=False)
        right = {name: vm.domain.snapshotLookupByName(name).getXMLDesc(1) for name in _NAMES}
        held = {path: path.read_bytes() for path in (host.dir / "disks").iterdir() if path.is_file()}
        return cls(vm, vmkeep, zygote, right, held)

    def put_back(self, *, wrong: str | None = None) -> None:
        """Give libvirt the right records again; with ``wrong`` as they are when virsh has removed that one."""
        for name in reversed(_NAMES):
            with contextlib.suppress(libvirt.libvirtError):
                self.vm.domain.snapshotLookupByName(name).delete(_RECORD_ONLY)
        for name in _NAMES:
            self.vm.domain.snapshotCreateXML(self.right[name], _REDEFINE | (_CURRENT if name == _NAMES[-1] else 0))
        if wrong is not None:
            self.vm.domain.snapshotLookupByName(wrong).delete(_RECORD_ONLY)

    def assert_right(self, *expected: str) -> None:
        assert names(self.vm) == list(expected)
        assert {name: told["health"] for name, told in health(self.vmkeep).items()} == dict.fromkeys(expected, "sound")
        for name in expected:
            assert self.named_in(snapshots(self.vm)[name]) == self.named_in(etree.fromstring(self.right[name])), name
        assert self.vm.state() is VmState.PAUSED
        # A paused guest writes nothing: the images that it stands on count as well.
        assert all(path.read_bytes() == held for path, held in self.images.items())

    @staticmethod
    def named_in(record: etree._Element) -> list[str]:
        """Return the images that a record says the VM was on, and those made by it."""
        return [str(file) for file in record.xpath("domain/devices/disk/source/@file | disks/disk/source/@file")]


@pytest.fixture(scope="module")
def records(crash_host: Host) -> Iterator[Records]:
    need_effects()
    crash_host.clear()
    zygote = Zygote(crash_host, crash_host.dir / "home")
    yield Records.make(crash_host, zygote)
    zygote.close()
    crash_host.clear()


def test_record_removed_alone_and_killed_anywhere(records: Records) -> None:
    command = ("--json", "snapshot", "delete", "guest", "S1", "--metadata", "--yes")
    records.put_back()
    assert records.zygote.command(*command, death=NO_DEATH).status == 0
    effects = records.zygote.effects
    records.assert_right("S2", "S3")
    assert any("snapshot" in effect for effect in effects), effects
    killed = 0
    for death in deaths(effects, 2, daily=True):
        records.put_back()
        killed += records.zygote.command(*command, death=death).status == KILLED
        try:
            records.vmkeep.json("snapshot", "repair", "guest")
            records.assert_right(*(["S1"] if "S1" in names(records.vm) else []), "S2", "S3")
            if "S1" in names(records.vm):
                records.vmkeep.json("snapshot", "delete", "guest", "S1", "--metadata")
            records.assert_right("S2", "S3")
        except AssertionError as error:
            error.add_note(f"killed at effect {death}: {effects[(death.effect or 1) - 1]}")
            raise
    assert killed > 0


def test_repair_of_records_killed_anywhere(records: Records) -> None:
    command = ("--json", "snapshot", "repair", "guest")
    records.put_back(wrong="S1")
    if records.named_in(snapshots(records.vm)["S2"]) == records.named_in(etree.fromstring(records.right["S2"])):
        pytest.skip("this libvirt changes no record")
    assert records.zygote.command(*command, death=NO_DEATH).status == 0
    effects = records.zygote.effects
    records.assert_right("S2", "S3")
    killed = 0
    for death in deaths(effects, 2, daily=True):
        records.put_back(wrong="S1")
        killed += records.zygote.command(*command, death=death).status == KILLED
        try:
            records.vmkeep.json("snapshot", "repair", "guest")
            records.assert_right("S2", "S3")
        except AssertionError as error:
            error.add_note(f"killed at effect {death}: {effects[(death.effect or 1) - 1]}")
            raise
    assert killed > 0
