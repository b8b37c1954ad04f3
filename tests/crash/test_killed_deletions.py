"""vmkeep, libvirtd or QEMU killed in the middle of the deletion of an external snapshot: a commit and its pivot.

Nothing that the guest had written down is lost. What is left is told with the command that mends it, and a snapshot
whose image was written to is never called sound and never reverted to.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt
import pytest
from lxml import etree

from tests.crash.bed import wait_until
from tests.crash.test_killed_libvirtd import _libvirtd
from tests.rig import Disk, Host, MiB, Vm, VmState, assert_images_equal
from tests.rig.cli import Vmkeep
from tests.rig.domain_xml import disks_of
from tests.rig.images import read_offline_image
from tests.rig.qemufiles import images_open, images_written
from tests.system.kept_snapshots import names
from tests.turns import sampled

pytestmark = [pytest.mark.system, pytest.mark.crash]

_CRASHING_SECONDS = 5.0
_SIZES = {"vda": 32 * MiB, "vdb": 16 * MiB}
_CASES = [
    ("vmkeep", "committing"),
    ("vmkeep", "pivoted"),
    ("libvirtd", "committing"),
    ("libvirtd", "pivoted"),
    ("QEMU", "committing"),
    ("QEMU", "pivoted"),
]


@dataclass(slots=True)
class _Guest:
    """A VM that stands still, on the overlays of one snapshot, and what its disks must hold."""

    host: Host
    vm: Vm
    vmkeep: Vmkeep
    base: dict[str, Path]
    content: dict[str, bytearray] = field(default_factory=dict)
    written_ns: int = 0
    """When the image below vda was written last before the deletion."""

    @classmethod
    def make(cls, host: Host) -> _Guest:
        host.clear()
        disks = [Disk(target, size) for target, size in _SIZES.items()]
        vm = host.define("guest", disks=disks, tpm=False, firmware="bios")
        vm.start(paused=True)
        guest = cls(host, vm, Vmkeep(host), {disk.target: Path(str(disk.path)) for disk in vm.disks()})
        guest.content = {target: bytearray(size) for target, size in _SIZES.items()}
        guest.change(1)
        guest.vmkeep.backup("guest")
        guest.vmkeep.json("snapshot", "create", "guest", "one")
        guest.change(3)
        guest.written_ns = guest.base["vda"].stat().st_mtime_ns
        return guest

    def change(self, seed: int) -> None:
        """Write as a guest does that waits until it is on the disk."""
        for target, content in self.content.items():
            length = len(content) // 4
            self.vm.qemu_io(target, [f"write -f -P {seed} {seed * MiB} {length}"])
            content[seed * MiB : seed * MiB + length] = bytes([seed]) * length

    @property
    def overlays(self) -> dict[str, Path]:
        return {target: path.with_suffix(".one") for target, path in self.base.items()}

    def is_at(self, moment: str) -> bool:
        if moment == "committing":
            # QEMU opens the image for writing a moment before it writes: one that dies in between has harmed nothing,
            # and the snapshot is sound as before.
            return self.base["vda"].stat().st_mtime_ns != self.written_ns
        return not images_open(self.vm).get(self.overlays["vda"])

    def assert_whole(self) -> None:
        for target, content in self.content.items():
            read = read_offline_image(self.vm.disk_path(target)) if self.is_off else self.vm.read_image(target)
            assert_images_equal(read, bytes(content), target)

    @property
    def is_off(self) -> bool:
        return self.vm.state() is VmState.OFF

    def astray(self) -> set[str]:
        """Return the disks that QEMU has on another image than libvirt says."""
        return (
            set()
            if self.is_off
            else {disk.target for disk in self.vm.disks() if disk.path not in images_written(self.vm)}
        )

    def findings(self, code: str) -> list[dict[str, Any]]:
        told = self.vmkeep.run("--json", "doctor", "guest")

        return [each for each in json.loads(told.stdout)["doctor"]["findings"] if each["code"] == code]

    def part(self, target: str) -> dict[str, Any]:

        told = json.loads(self.vmkeep.run("--json", "snapshot", "health", "guest").stdout)
        (judged,) = told["snapshot_health"]["snapshots"]
        return next(part for part in judged["parts"] if part["name"] == target)


@pytest.fixture
def guest(crash_host: Host, beds: Any) -> Iterator[_Guest]:
    beds.clear()
    yield _Guest.make(crash_host)
    crash_host.clear()


def _qemu(vm: Vm) -> int:
    """Return QEMU of a VM as it is seen from outside."""
    inside = Path(f"/proc/{vm.host.init_pid}/ns/pid").readlink()
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if f"guest={vm.name},".encode() in words and (process / "ns/pid").readlink() == inside:
                return int(process.name)
    raise AssertionError("the VM has no QEMU")


def _kill_in_deletion(guest: _Guest, who: str, moment: str) -> None:
    daemon, qemu = _libvirtd(guest.host), _qemu(guest.vm)
    command = guest.vmkeep.start("snapshot", "delete", "guest", "one")
    deadline = time.monotonic() + 60
    while not guest.is_at(moment):  # without a pause: what is waited for lasts some milliseconds
        assert command.poll() is None, "the deletion was over"
        assert time.monotonic() < deadline, "the deletion did not come to that"
    if who == "vmkeep":
        command.kill()
    elif who == "libvirtd":
        os.kill(daemon, signal.SIGSTOP)
        guest.host.restart_libvirtd(signal.SIGKILL)
        _keep_started(guest.host)
    else:
        os.kill(qemu, signal.SIGKILL)
    with command:
        command.communicate(timeout=120)
    if who != "vmkeep":
        assert command.returncode > 0


def _keep_started(host: Host) -> None:
    """Start libvirtd anew when it dies of what it finds, as systemd does: 11.3 was seen to, at the end of a commit."""
    deadline = time.monotonic() + _CRASHING_SECONDS
    while time.monotonic() < deadline:
        try:
            _libvirtd(host)
        except AssertionError:
            host.start_libvirtd()
            return
        time.sleep(0.05)


@pytest.mark.parametrize(("who", "moment"), sampled(_CASES, 1), ids=lambda value: str(value))
def test_killed_deletion_loses_nothing_and_is_told_and_mended(guest: _Guest, who: str, moment: str) -> None:
    _kill_in_deletion(guest, who, moment)
    if who == "vmkeep":  # libvirt goes on
        wait_until(lambda: names(guest.vm) == [], "libvirt does not delete the snapshot", 60)
        assert guest.findings("deletion-unfinished") == []
    else:
        if lost := who == "libvirtd" and guest.is_off:
            _end_lost(guest)
        wait_until(lambda: guest.is_off is (lost or who == "QEMU"), "the VM is not in the state that it should be", 60)
        _assert_told_and_mended(guest)
    assert names(guest.vm) == []
    if guest.is_off:
        guest.vm.start(paused=True)
    guest.assert_whole()
    assert images_written(guest.vm) == {guest.vm.disk_path(target) for target in guest.content}
    later = disks_of(guest.vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    assert {disk.target: disk.path for disk in later} == {disk.target: disk.path for disk in guest.vm.disks()}
    guest.change(5)
    output = guest.vmkeep.restore(guest.vmkeep.backup("guest"), guest.host.dir / "work" / "out", "--format", "raw")
    for target, content in guest.content.items():
        assert_images_equal((output / f"{target}.raw").read_bytes(), bytes(content), target)
    assert guest.findings("deletion-unfinished") == []


def _assert_told_and_mended(guest: _Guest) -> None:
    assert names(guest.vm) == ["one"]
    assert (guest.part("vda")["health"], "interrupted" in str(guest.part("vda")["why"])) == ("broken", True)
    refused = guest.vmkeep.fails("snapshot", "revert", "guest", "one", "--stop", "--no-safety")
    assert refused.code in ("disk-unsupported", "writes-astray"), refused
    if astray := guest.astray():
        told = {finding["path"]: finding for finding in guest.findings("writes-astray")}
        assert set(told) == {str(guest.overlays[target]) for target in astray}
        for target in astray:
            assert f"QEMU writes to {guest.base[target]}," in told[str(guest.overlays[target])]["message"]
        guest.change(4)  # what the guest writes before anybody looks
        assert guest.vmkeep.fails("backup", "guest").code == "writes-astray"
        _give_back_by_hand(guest, astray)
    guest.assert_whole()
    (finding,) = guest.findings("deletion-unfinished")
    words = shlex.split(str(finding["remedy"]))
    assert words[0] == "vmkeep"
    guest.vmkeep.json(*words[1:])


def _end_lost(guest: _Guest) -> None:
    """Do what docs/operations.md says of a VM that libvirt 9.0 calls off while its QEMU runs: it is shut down."""
    (told,) = guest.findings("writes-astray")
    assert "is off, and its QEMU" in told["message"]
    assert guest.vmkeep.fails("snapshot", "delete", "guest", "one").code == "writes-astray"
    opened, qemu = images_open(guest.vm), _qemu(guest.vm)
    astray = {target for target, overlay in guest.overlays.items() if not opened.get(overlay)}
    assert all(str(guest.base[target]) in told["message"] for target in astray)
    os.kill(qemu, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{qemu}").exists(), "QEMU does not end", 60)
    _give_back_by_hand(guest, astray)


def _give_back_by_hand(guest: _Guest, targets: set[str]) -> None:
    """Do what docs/operations.md says of a pivot: the VM is shut down, and its disks are on what QEMU wrote to."""
    if not guest.is_off:
        guest.vm.destroy()
    xml = guest.vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    root = etree.fromstring(xml)
    for disk in root.iterfind("devices/disk"):
        target = str(disk.xpath("string(target/@dev)"))
        if target in targets:
            disk.find("source").set("file", str(guest.base[target]))  # type: ignore[union-attr]
            for below in disk.findall("backingStore"):
                disk.remove(below)
    guest.host.connection.defineXML(etree.tostring(root, encoding="unicode"))
