"""libvirtd is killed in the middle of a snapshot: QEMU may be on overlays that libvirt does not know of, or forgets.

Whatever is left, the next command puts it right: QEMU writes to the images of the definition, the next start has them
too, and nothing that the guest wrote is lost.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from tests.crash.bed import KILLED, Trap, Zygote, wait_until
from tests.rig import Disk, Host, KiB, MiB, Vm, assert_images_equal
from tests.rig.domain_xml import disks_of
from tests.rig.images import random_bytes
from tests.rig.qemufiles import execute, images_open, images_written, put_on_overlays
from tests.system.snapshots import snapshots
from tests.turns import sampled

pytestmark = [pytest.mark.system, pytest.mark.crash]

_PLANNED = Trap("after", "vmkeep.host.guard.guardian:Guardian.wait_ready")
_MERGING = "vmkeep.hypervisor.blocknodes:BlockNodes."
_SETTLING = "vmkeep.host.snapshots.overlays:"

_PLACES = [
    Trap("after", _MERGING + "commit"),
    None,
    Trap("before", _MERGING + "complete"),
    Trap("after", _MERGING + "complete"),
    Trap("before", _MERGING + "dismiss"),
    Trap("before", _MERGING + "close"),
    Trap("after", _MERGING + "close"),
    Trap("before", _SETTLING + "remove_closed"),
    Trap("after", _SETTLING + "remove_closed"),
]


@dataclass(slots=True)
class _Guest:
    """A VM without firmware of its own that stands still, what its disks must hold, and runs of vmkeep."""

    host: Host
    vm: Vm
    zygote: Zygote
    content: dict[str, bytearray]
    seed: int = 0

    def change(self) -> None:
        self.seed += 1
        for target, content in self.content.items():
            start = self.seed * 7 * 64 * KiB % (len(content) - MiB)
            self.vm.write_random(target, start=start, length=100 * KiB, seed=self.seed)
            content[start : start + 100 * KiB] = random_bytes(self.seed, 100 * KiB)

    def wait_for_guardian(self) -> None:
        guards = self.host.dir / "home" / "guards"
        wait_until(lambda: not list(guards.glob("*")), "the guardian does not end", 60)

    def recover(self) -> list[str]:
        """Run what every command begins with, and return what it tells."""
        outcome = self.zygote.run()
        assert outcome.acts == []
        return outcome.recovered

    def assert_right(self) -> None:
        """QEMU is on the images of the definition, also of the next start, and nothing is left."""
        assert images_written(self.vm) == {self.vm.disk_path(target) for target in self.content}
        later = disks_of(self.vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        assert {disk.target: disk.path for disk in later} == {disk.target: disk.path for disk in self.vm.disks()}
        assert list((self.host.dir / "home" / "snapshots").glob("*")) == []
        assert not execute(self.vm, "query-jobs")

    def assert_whole(self) -> None:
        for target, content in self.content.items():
            assert_images_equal(self.vm.read_image(target), bytes(content), target)

    def assert_next_point_whole(self) -> None:
        point = self.zygote.run(["backup", self.vm.name]).acts[0]["point"]
        output = self.host.dir / "work" / str(point["id"])
        assert self.zygote.command("restore", point["id"], "--output", output, "--format", "raw").status == 0
        for target, content in self.content.items():
            assert_images_equal((output / f"{target}.raw").read_bytes(), bytes(content), target)


@pytest.fixture(scope="module")
def guests(crash_host: Host) -> Iterator[_Guest]:
    crash_host.clear()
    sizes = {"vda": 4 * MiB, "vdb": 2 * MiB}
    disks = [Disk(target, size) for target, size in sizes.items()]
    vm = crash_host.define("guest", disks=disks, tpm=False, firmware="bios")
    vm.start(paused=True)
    zygote = Zygote(crash_host, crash_host.dir / "home")
    guest = _Guest(crash_host, vm, zygote, {target: bytearray(size) for target, size in sizes.items()})
    guest.change()
    guest.assert_next_point_whole()
    yield guest
    zygote.close()
    crash_host.clear()


@pytest.fixture
def guest(guests: _Guest) -> _Guest:
    return guests


def _planned(guest: _Guest, name: str) -> dict[str, Path]:
    """Have a snapshot die when it is planned; return its overlays, which are not there."""
    guest.change()
    assert guest.zygote.run(["snapshot", guest.vm.name, name, ""], traps=[_PLANNED]).status == KILLED
    guest.wait_for_guardian()
    return {target: guest.vm.disk_path(target).with_suffix(f".{name}") for target in guest.content}


def _interrupted(guest: _Guest, name: str) -> dict[str, Path]:
    """The same, and QEMU was put on the overlays by a libvirtd that died then."""
    overlays = _planned(guest, name)
    put_on_overlays(guest.vm, overlays)
    guest.change()
    return overlays


@pytest.mark.parametrize(
    "trap",
    [_PLACES[0], *sampled(_PLACES[1:], 2)],
    ids=lambda trap: "whole" if trap is None else f"{trap.when}-{trap.place.rpartition('.')[2]}",
)
def test_overlays_of_an_interrupted_snapshot_are_merged_back_also_when_that_is_killed(
    guest: _Guest, trap: Trap | None
) -> None:
    overlays = _interrupted(guest, f"m{guest.seed}")
    if trap is not None:
        assert guest.zygote.run(traps=[trap]).status == KILLED
        if "commit" in trap.place:
            guest.host.restart_libvirtd()  # which meets a job that is not its own
        guest.change()
    guest.recover()
    guest.assert_right()
    assert not set(images_open(guest.vm)) & set(overlays.values())
    assert not any(overlay.exists() for overlay in overlays.values())
    guest.assert_whole()
    guest.assert_next_point_whole()


def _is_at(vm: Vm, moment: str, image: Path, overlay: Path) -> bool:
    is_open = images_open(vm)
    return is_open.get(overlay, False) if moment == "before-the-change" else not is_open.get(image, True)


def _stopped_in_a_snapshot(guest: _Guest, moment: str) -> str:
    """Stop libvirtd in the middle of a snapshot, and return its name.

    What is waited for lasts a millisecond. On a busy machine it may be over when libvirtd is stopped: then it has
    written its record of the snapshot, goes on, and another snapshot is begun.
    """
    deadline = time.monotonic() + 60
    while True:
        name, image = f"k{guest.seed}", guest.vm.disk_path("vda")
        overlay = image.with_suffix(f".{name}")
        libvirtd = _libvirtd(guest.host)
        guest.zygote.start(["snapshot", guest.vm.name, name, ""])
        while not _is_at(guest.vm, moment, image, overlay):
            assert time.monotonic() < deadline, "the snapshot did not come to that, or was not met there"
        os.kill(libvirtd, signal.SIGSTOP)
        if not guest.host.path(f"/var/lib/libvirt/qemu/snapshot/{guest.vm.name}/{name}.xml").exists():
            return name
        os.kill(libvirtd, signal.SIGCONT)
        assert guest.zygote.finish().status == 0
        guest.change()


@pytest.mark.parametrize("moment", sampled(["at-the-change", "before-the-change"], 1))
def test_libvirtd_killed_in_a_snapshot_loses_nothing(guest: _Guest, moment: str) -> None:
    name = _stopped_in_a_snapshot(guest, moment)
    guest.host.restart_libvirtd(signal.SIGKILL)
    assert guest.zygote.finish().status != 0
    guest.wait_for_guardian()
    guest.change()  # what the guest writes before anybody puts anything right
    told = guest.recover()
    assert not any("could not be put right" in sentence for sentence in told), told
    assert name not in snapshots(guest.vm)
    guest.assert_right()
    guest.assert_whole()
    guest.assert_next_point_whole()
    guest.vm.destroy()
    guest.vm.start(paused=True)
    guest.assert_whole()


def test_next_start_is_on_the_overlays_when_libvirtd_died_before_it_wrote_that_down(guest: _Guest) -> None:
    before = guest.vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    overlays = _planned(guest, f"p{guest.seed}")
    disks = "".join(f"<disk name='{target}'><source file='{path}'/></disk>" for target, path in overlays.items())
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    guest.vm.domain.snapshotCreateXML(f"<domainsnapshot><disks>{disks}</disks></domainsnapshot>", flags)
    guest.host.connection.defineXML(before)
    guest.change()
    printed = guest.zygote.command("--json", "doctor", "guest")
    assert printed.out.count('"writes-astray"') == len(overlays)
    assert any("it is defined to be on the former now" in told for told in guest.recover())
    guest.assert_right()
    guest.vm.destroy()
    guest.vm.start(paused=True)
    guest.assert_whole()


def test_overlays_that_were_not_formatted_yet_are_removed(guest: _Guest) -> None:
    overlays = _planned(guest, f"h{guest.seed}")
    for overlay in overlays.values():
        overlay.touch()
    guest.recover()
    guest.assert_right()
    assert not any(overlay.exists() for overlay in overlays.values())


def test_vm_that_was_stopped_on_such_overlays_is_defined_on_them_unless_it_was_started_below(guest: _Guest) -> None:
    overlays = _interrupted(guest, f"o{guest.seed}")
    guest.vm.destroy()
    assert any("it is defined to be on the former now" in told for told in guest.recover())
    assert {disk.target: disk.path for disk in guest.vm.disks()} == overlays
    guest.vm.start(paused=True)
    guest.assert_right()
    guest.assert_whole()

    overlays = _interrupted(guest, f"d{guest.seed}")
    guest.vm.destroy()
    guest.vm.start(paused=True)
    told = guest.recover()
    assert any("each holds what the other one lacks" in sentence for sentence in told), told
    assert all(overlay.exists() for overlay in overlays.values())
    assert len(list((guest.host.dir / "home" / "snapshots").glob("*"))) == 1
    for overlay in overlays.values():
        overlay.unlink()
    guest.recover()
    guest.assert_right()


def _libvirtd(host: Host) -> int:
    """Return libvirtd of the bed's host as it is seen from outside."""
    inside = Path(f"/proc/{host.init_pid}/ns/pid").readlink()
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if (process / "comm").read_text() == "libvirtd\n" and (process / "ns/pid").readlink() == inside:
                return int(process.name)
    raise AssertionError("the host has no libvirtd")
