"""QEMU writes to an image that libvirt does not know of: nothing is begun, it is told, and it is put right."""

from __future__ import annotations

import signal

import libvirt
import pytest

from tests.rig import Disk, Host, KiB, MiB, VmState, assert_images_equal
from tests.rig.images import random_bytes
from tests.rig.qemufiles import images_open, images_written, pivoted_behind_libvirt, put_on_overlays
from tests.system.history import INCREMENTAL, Forked, modes
from tests.system.truth import checkpoints

pytestmark = pytest.mark.system

_ASTRAY = ("writes-astray", 25)


def test_vm_on_an_overlay_that_libvirt_does_not_know_is_refused_and_merged_back_while_it_runs(
    host: Host, forked: Forked
) -> None:
    disks = [Disk("vda", 8 * MiB), Disk("vdb", 4 * MiB, format="raw"), Disk("vdc", 1 * MiB)]
    vm = host.define("guest", disks=disks, tpm=False, firmware="bios")
    vm.start()
    first = forked.backup("guest")
    images = {disk.target: vm.disk_path(disk.target) for disk in disks}
    expected = {disk.target: bytearray(disk.size_bytes) for disk in disks}

    def write(target: str, start: int, length: int, seed: int) -> None:
        vm.write_random(target, start=start, length=length, seed=seed)
        expected[target][start : start + length] = random_bytes(seed, length)

    write("vda", 0, 100 * KiB, seed=1)
    write("vdb", 64 * KiB, 64 * KiB, seed=2)
    overlays = {target: host.dir / "disks" / f"other-{target}.overlay" for target in ("vda", "vdb")}
    put_on_overlays(vm, overlays)
    write("vda", 50 * KiB, 1 * MiB, seed=3)
    write("vdb", 0, 1 * MiB, seed=4)
    write("vdc", 0, 64 * KiB, seed=5)
    before = checkpoints(vm)

    for refused in (
        forked.fails("backup", "guest"),
        forked.fails("snapshot", "create", "guest", "s1"),
        forked.fails("checkpoint", "create", "guest", "c1"),
        forked.fails("checkpoint", "delete", "guest", first["checkpoint"], "--yes"),
    ):
        assert (refused.code, refused.status) == _ASTRAY
        assert str(overlays["vda"]) in refused.error["message"]
        assert "doctor --fix" in refused.error["hint"]
    assert checkpoints(vm) == before
    assert not vm.domain.listAllSnapshots()
    shown = forked.json("vm", "show", "guest")["vm"]
    assert not shown["complete"]
    assert sum("QEMU writes to" in problem for problem in shown["problems"]) == 2
    found = forked.run("--json", "doctor", "guest")
    assert found.returncode != 0
    assert found.stdout.count('"code": "writes-astray"') == 2

    forked.run("doctor", "--fix")
    assert images_written(vm) == set(images.values())
    assert not set(images_open(vm)) & set(overlays.values())
    assert all(overlay.exists() for overlay in overlays.values()), "they are not vmkeep's"
    assert '"writes-astray"' not in forked.run("--json", "doctor", "guest").stdout
    for target, content in expected.items():
        assert_images_equal(vm.read_image(target), bytes(content), target)
    write("vda", 7 * MiB, 64 * KiB, seed=6)
    point = forked.backup("guest")
    assert modes(point)["vda"] == modes(point)["vdc"] == INCREMENTAL
    output = forked.restore(point, host.dir / "work" / "out", "--format", "raw")
    for target, content in expected.items():
        assert_images_equal((output / f"{target}.raw").read_bytes(), bytes(content), target)

    forked.json("snapshot", "create", "guest", "s1")  # libvirt is well
    write("vda", 6 * MiB, 64 * KiB, seed=7)
    for overlay in overlays.values():
        overlay.unlink()  # or it is refused, because they stand on the images
    forked.json("snapshot", "delete", "guest", "s1")
    vm.domain.managedSave(libvirt.VIR_DOMAIN_SAVE_PAUSED)
    vm.domain.create()
    assert forked.json("vm", "show", "guest")["vm"]["complete"], "disks that wait for their guest are not astray"
    vm.destroy()
    for target, content in expected.items():
        assert_images_equal(vm.read_image(target), bytes(content), target)


def test_vm_that_libvirt_lost_while_it_runs_is_no_vm_that_is_off(host: Host, forked: Forked) -> None:
    vm = host.define("guest", disks=[Disk("vda", 1 * MiB)], tpm=False, firmware="bios")
    copy = host.dir / "disks" / "copy.qcow2"
    vm.start(paused=True)
    first = forked.backup("guest")
    image = vm.disk_path("vda")
    pivoted_behind_libvirt(vm, "vda", copy)
    vm.write("vda", start=0, length=64 * KiB, pattern=0x11)
    refused = forked.fails("backup", "guest")
    assert (refused.code, refused.status) == _ASTRAY
    assert str(copy) in refused.error["message"]
    shown = forked.json("vm", "show", "guest")["vm"]
    assert any(str(copy) in problem for problem in shown["problems"])

    # What libvirt 9.0 writes in the pivot of a block job, and cannot read.
    record = host.path("/run/libvirt/qemu/guest.xml")
    good = record.read_text()
    host.end_libvirtd(signal.SIGKILL)
    record.write_text(good.replace("</disk>", "<mirror type='file' job=''/></disk>", 1))
    host.start_libvirtd()
    assert vm.state() is VmState.OFF
    for refused in (
        forked.fails("backup", "guest"),
        forked.fails("snapshot", "create", "guest", "s1"),
        forked.fails("restore", first["id"], "--in-place", "--yes"),
    ):
        assert (refused.code, refused.status) == _ASTRAY
        assert str(copy) in refused.error["message"]
    assert not forked.json("vm", "show", "guest")["vm"]["complete"]
    assert '"writes-astray"' in forked.run("--json", "doctor", "guest").stdout

    # The way back that docs/operations.md gives.
    host.end_libvirtd()
    record.write_text(good)
    host.start_libvirtd()
    assert vm.state() is VmState.PAUSED
    vm.destroy()
    definition = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    host.connection.defineXML(definition.replace(str(image), str(copy)))
    vm.start(paused=True)
    point = forked.backup("guest")
    output = forked.restore(point, host.dir / "work" / "out", "--format", "raw")
    assert_images_equal((output / "vda.raw").read_bytes(), b"\x11" * (64 * KiB) + bytes(MiB - 64 * KiB), "vda")
