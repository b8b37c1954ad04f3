"""What happens to a VM between points: the same command works, and only the disk concerned is read whole."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Any

import pytest

from tests.rig import Disk, Host, KiB, MiB, Vm, VmState
from tests.rig.cli import Vmkeep
from tests.system.history import Remembering
from tests.system.offline import bitmaps
from tests.system.truth import Truth, checkpoints

pytestmark = pytest.mark.system


@pytest.fixture
def vmkeep(host: Host) -> Remembering:
    return Remembering(host)


_SCSI = "<controller type='scsi' index='0' model='virtio-scsi'/>"


def _two_disks(host: Host) -> Vm:
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 8 * MiB)], tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=2 * MiB, seed=1)
    vm.write_random("vdb", start=0, length=2 * MiB, seed=2)
    return vm


def _dirty(vm: Vm, seed: int) -> None:
    """Change 64 KiB of each disk, and make another 64 KiB zero."""
    for target in ("vda", "vdb"):
        vm.write_random(target, start=1 * MiB, length=64 * KiB, seed=seed)
        vm.write_zeroes(target, start=512 * KiB, length=64 * KiB)


def _modes(point: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {disk["target"]: (disk["mode"], disk["reason"]) for disk in point["disks"]}


_INCREMENTAL = ("incremental", "incremental")


def _assert_kept(vmkeep: Remembering, vm: Vm, point: dict[str, Any]) -> None:
    """Its checkpoint is the only one of ours, and every point is right, this one and the earlier ones."""
    ours = [name for name in checkpoints(vm) if name.startswith("vmkeep-")]
    assert ours == [point["checkpoint"]]
    vmkeep.assert_all_kept()


def _assert_healed(vmkeep: Remembering, vm: Vm) -> None:
    """The point that follows is incremental everywhere, and all are right."""
    vm.write_random("vda", start=3 * MiB, length=64 * KiB, seed=99)
    following = vmkeep.backup(vm.name)
    assert set(_modes(following).values()) == {_INCREMENTAL}
    _assert_kept(vmkeep, vm, following)


def test_disk_added_between_points_is_read_whole_by_itself(host: Host, vmkeep: Remembering) -> None:
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB)], tpm=False, device_xml=[_SCSI])
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=2 * MiB, seed=1)
    vmkeep.backup("guest")
    path = host.dir / "disks" / "added.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(4 * MiB)], check=True)
    disk = (
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'/>"
        "<target dev='sda' bus='scsi'/></disk>"
    )
    definition = host.dir / "work" / "disk.xml"
    definition.write_text(disk)
    host.run(["virsh", "attach-device", "guest", definition, "--live", "--config"], check=True)
    vm.write_random("sda", start=0, length=1 * MiB, seed=2)
    vm.write_random("vda", start=1 * MiB, length=64 * KiB, seed=3)
    point = vmkeep.backup("guest")

    assert point["kind"] == "incremental"
    assert _modes(point) == {"vda": _INCREMENTAL, "sda": ("full", "new-disk")}
    _assert_healed(vmkeep, vm)


def test_disk_grown_between_points_is_read_whole_by_itself(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    vmkeep.backup("guest")
    host.run(["virsh", "blockresize", "guest", "vdb", f"{12 * MiB}B"], check=True)
    _dirty(vm, seed=3)
    vm.write_random("vdb", start=11 * MiB, length=1 * MiB, seed=4)
    point = vmkeep.backup("guest")

    assert _modes(point) == {"vda": _INCREMENTAL, "vdb": ("full", "size-changed")}
    assert point["disks"][1]["size_bytes"] == 12 * MiB
    _assert_healed(vmkeep, vm)


def test_disk_unplugged_and_replaced_by_another_file_is_read_whole_by_itself(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    vmkeep.backup("guest")
    vm.destroy()
    replacement = host.dir / "disks" / "replacement.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(replacement), str(8 * MiB)], check=True)
    xml = vm.xml().replace(str(vm.disk_path("vdb")), str(replacement))
    host.connection.defineXML(xml)
    vm.start(paused=True)
    _dirty(vm, seed=3)
    point = vmkeep.backup("guest")

    assert _modes(point) == {"vda": _INCREMENTAL, "vdb": ("full", "source-changed")}
    _assert_kept(vmkeep, vm, point)


def test_disk_unplugged_and_plugged_in_again_is_read_against_its_own_base(host: Host, vmkeep: Remembering) -> None:
    disks = [Disk("vda", 8 * MiB), Disk("vdb", 4 * MiB), Disk("sda", 4 * MiB, bus="scsi")]
    vm = host.define("guest", disks=disks, tpm=False, device_xml=[_SCSI])
    vm.start(paused=True)
    for seed, disk in enumerate(disks, 1):
        vm.write_random(disk.target, start=0, length=1 * MiB, seed=seed)
    vmkeep.backup("guest")
    vm.destroy()
    definition = vm.domain.XMLDesc(2)
    path = str(vm.disk_path("sda"))
    disk_xml = f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'/>"
    file = host.dir / "work" / "disk.xml"
    file.write_text(f"{disk_xml}<target dev='sda' bus='scsi'/></disk>")
    host.run(["virsh", "detach-device", "guest", file, "--config"], check=True)
    vm.start(paused=True)
    _dirty(vm, seed=5)
    without = vmkeep.backup("guest")
    vm.destroy()
    host.connection.defineXML(definition)
    vm.start(paused=True)
    vm.write_random("sda", start=2 * MiB, length=64 * KiB, seed=6)
    point = vmkeep.backup("guest")

    assert _modes(without) == {"vda": _INCREMENTAL, "vdb": _INCREMENTAL}
    assert _modes(point) == {"vda": _INCREMENTAL, "vdb": _INCREMENTAL, "sda": _INCREMENTAL}
    assert [disk["bytes_read"] for disk in point["disks"]] == [0, 0, 64 * KiB]  # its bitmap came back with it
    _assert_healed(vmkeep, vm)
    vm.destroy()
    assert bitmaps(vm.disk_path("sda")) == checkpoints(vm)  # and was removed at last


def test_bitmaps_left_in_use_by_a_killed_qemu_are_not_trusted(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    vmkeep.backup("guest")
    _dirty(vm, seed=3)
    pid = host.path("/run/libvirt/qemu/guest.pid").read_text().strip()
    host.run(["kill", "-KILL", pid], check=True)
    deadline = time.monotonic() + 10
    while vm.state() is not VmState.OFF:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    vm.start(paused=True)
    point = vmkeep.backup("guest")

    assert point["kind"] == "full"
    # Made while this QEMU ran, the bitmaps never came to be written to the images.
    assert _modes(point) == {"vda": ("full", "bitmap-missing"), "vdb": ("full", "bitmap-missing")}
    _assert_healed(vmkeep, vm)


def test_bitmap_removed_from_one_image_costs_only_that_disk(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    checkpoint = vmkeep.backup("guest")["checkpoint"]
    _dirty(vm, seed=3)
    vm.destroy()
    command = ["qemu-img", "bitmap", "--remove", "-f", "qcow2", str(vm.disk_path("vdb")), checkpoint]
    subprocess.run(command, check=True)
    vm.start(paused=True)
    point = vmkeep.backup("guest")

    assert _modes(point) == {"vda": _INCREMENTAL, "vdb": ("full", "bitmap-missing")}
    _assert_healed(vmkeep, vm)


def test_vm_stopped_and_started_in_between_stays_incremental(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    vmkeep.backup("guest")
    _dirty(vm, seed=3)
    vm.destroy()
    vm.start(paused=True)
    _dirty(vm, seed=4)
    point = vmkeep.backup("guest")

    assert set(_modes(point).values()) == {_INCREMENTAL}
    assert [disk["bytes_read"] for disk in point["disks"]] == [64 * KiB, 64 * KiB]  # zeroes are not read
    _assert_kept(vmkeep, vm, point)


def test_lost_checkpoint_metadata_does_not_stop_the_next_point(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    checkpoint = vmkeep.backup("guest")["checkpoint"]
    _dirty(vm, seed=3)
    host.run(["virsh", "checkpoint-delete", "guest", checkpoint, "--metadata"], check=True)
    point = vmkeep.backup("guest")

    assert set(_modes(point).values()) == {_INCREMENTAL}
    assert [disk["bytes_read"] for disk in point["disks"]] == [64 * KiB, 64 * KiB]
    _assert_healed(vmkeep, vm)


def test_checkpoints_of_others_are_left_as_they_are(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    host.run(["virsh", "checkpoint-create-as", "guest", "theirs-before"], check=True)
    vm.write_random("vda", start=4 * MiB, length=64 * KiB, seed=3)
    vmkeep.backup("guest")
    host.run(["virsh", "checkpoint-create-as", "guest", "theirs-between"], check=True)
    _dirty(vm, seed=4)
    point = vmkeep.backup("guest")

    assert set(_modes(point).values()) == {_INCREMENTAL}
    assert [disk["bytes_read"] for disk in point["disks"]] == [64 * KiB, 64 * KiB]  # zeroes are not read
    assert checkpoints(vm) == sorted(["theirs-before", "theirs-between", point["checkpoint"]])
    changed = [(512 * KiB, 64 * KiB), (1 * MiB, 64 * KiB)]
    assert vm.dirty_ranges("vda", "theirs-between") == changed
    assert vm.dirty_ranges("vda", "theirs-before") == [*changed, (4 * MiB, 64 * KiB)]
    _assert_kept(vmkeep, vm, point)
    assert {"theirs-before", "theirs-between"} < set(checkpoints(vm))


def test_left_over_checkpoint_of_ours_is_removed_by_the_next_point(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    checkpoint = vmkeep.backup("guest")["checkpoint"]
    prefix = checkpoint.rsplit("-", 1)[0]
    host.run(["virsh", "checkpoint-create-as", "guest", f"{prefix}-{'0' * 32}"], check=True)
    host.run(["virsh", "checkpoint-create-as", "guest", f"vmkeep-00000000-{'0' * 32}"], check=True)
    _dirty(vm, seed=3)
    point = vmkeep.backup("guest")

    # One of another repository is somebody else's.
    assert checkpoints(vm) == sorted([point["checkpoint"], f"vmkeep-00000000-{'0' * 32}"])
    assert set(_modes(point).values()) == {_INCREMENTAL}
    vmkeep.assert_all_kept()


def test_deleted_newest_point_does_not_become_the_base_of_the_next(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    first = vmkeep.backup("guest")
    _dirty(vm, seed=3)
    second = vmkeep.backup("guest")
    vmkeep.delete(second, "--grace", "0")
    stored = vmkeep.home / "repository" / "points" / second["id"]
    assert stored.exists(), "the VM still has its checkpoint"
    assert vmkeep.json("retain")["retention"]["gone"] == []
    _dirty(vm, seed=4)
    third = vmkeep.backup("guest")

    assert third["kind"] == "full"
    assert vmkeep.json("retain")["retention"]["gone"] == [second["id"]]
    assert not stored.exists()
    assert [point["id"] for point in vmkeep.json("points")["points"]] == [first["id"], third["id"]]
    _assert_kept(vmkeep, vm, third)


def test_point_after_libvirtd_was_restarted_is_incremental(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    vmkeep.backup("guest")
    _dirty(vm, seed=3)
    host.restart_libvirtd()
    point = vmkeep.backup("guest")

    assert set(_modes(point).values()) == {_INCREMENTAL}
    _assert_kept(vmkeep, vm, point)


def test_external_snapshot_taken_and_committed_between_points_loses_nothing(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    vmkeep.backup("guest")
    vm.write_random("vda", start=2 * MiB, length=64 * KiB, seed=3)
    snapshot = ["virsh", "snapshot-create-as", "guest", "outer", "--disk-only", "--no-metadata"]
    overlay = host.dir / "disks" / "overlay.qcow2"
    host.run([*snapshot, "--diskspec", f"vda,file={overlay}", "--diskspec", "vdb,snapshot=no"], check=True)
    _dirty(vm, seed=4)
    during = vmkeep.backup("guest")
    vm.write_random("vda", start=4 * MiB, length=64 * KiB, seed=5)
    host.run(["virsh", "blockcommit", "guest", "vda", "--active", "--pivot", "--wait"], check=True)
    vm.write_random("vda", start=6 * MiB, length=64 * KiB, seed=6)
    point = vmkeep.backup("guest")

    # libvirt gives the overlay bitmaps of the same names, so nothing of what was written is unrecorded.
    assert _modes(during) == {"vda": _INCREMENTAL, "vdb": _INCREMENTAL}
    assert {disk["target"]: disk["bytes_read"] for disk in during["disks"]}["vda"] < 1 * MiB
    assert _modes(point)["vdb"] == _INCREMENTAL
    _assert_healed(vmkeep, vm)


def test_image_put_back_from_an_older_copy_is_read_against_the_point_of_its_bitmap(
    host: Host, vmkeep: Remembering
) -> None:
    vm = _two_disks(host)
    first = vmkeep.backup("guest")
    vm.destroy()
    older = vm.disk_path("vda").read_bytes()
    vm.start(paused=True)
    _dirty(vm, seed=3)
    vmkeep.backup("guest")
    vm.destroy()
    vm.disk_path("vda").write_bytes(older)
    vm.start(paused=True)
    vm.write_random("vda", start=5 * MiB, length=64 * KiB, seed=4)
    point = vmkeep.backup("guest")

    assert set(_modes(point).values()) == {_INCREMENTAL}
    assert [disk["bytes_read"] for disk in point["disks"]] == [64 * KiB, 0]
    _assert_kept(vmkeep, vm, point)
    vmkeep.delete(first)
    vmkeep.assert_all_kept()


def test_image_put_back_from_a_copy_older_than_all_points_is_read_whole(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    vm.destroy()
    older = vm.disk_path("vda").read_bytes()
    vmkeep.backup("guest")
    vm.disk_path("vda").write_bytes(older)
    vm.start(paused=True)
    vm.write_random("vda", start=5 * MiB, length=64 * KiB, seed=4)
    point = vmkeep.backup("guest")

    assert _modes(point) == {"vda": ("full", "bitmap-missing"), "vdb": _INCREMENTAL}
    _assert_kept(vmkeep, vm, point)


def test_images_that_changed_places_are_not_read_against_the_base_of_the_other(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    vmkeep.backup("guest")
    vm.destroy()
    one, other = vm.disk_path("vda"), vm.disk_path("vdb")
    aside = one.with_suffix(".aside")
    for source, place in ((one, aside), (other, one), (aside, other)):
        source.rename(place)
    vm.start(paused=True)
    _dirty(vm, seed=5)
    point = vmkeep.backup("guest")

    assert set(_modes(point).values()) == {("full", "base-mismatch")}
    _assert_healed(vmkeep, vm)


def test_point_of_another_installation_of_the_repository_is_built_on(host: Host, vmkeep: Remembering) -> None:
    vm = _two_disks(host)
    vmkeep.backup("guest")
    other = Vmkeep(host, home=host.dir / "work" / "other-home")
    shutil.copytree(vmkeep.home / "keys", other.home / "keys")
    other.json("init", "--adopt", "--yes", "--repository", vmkeep.home / "repository")
    _dirty(vm, seed=3)
    second = vmkeep.backup("guest")  # the other one does not know it
    vm.write_random("vda", start=3 * MiB, length=64 * KiB, seed=4)
    third = other.backup("guest")

    assert set(_modes(third).values()) == {_INCREMENTAL}
    assert [disk["bytes_read"] for disk in third["disks"]] == [64 * KiB, 0]
    assert third["parent"] == second["id"]
    assert checkpoints(vm) == [third["checkpoint"]]
    vmkeep.assert_all_kept()  # the two that this installation knows
    Truth.of(vm, tpm=False).assert_files(other.restore(third, host.dir / "work" / "out"))
