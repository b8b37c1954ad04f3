"""A bitmap that is broken, or cannot be made, never stops a backup or a restore: its disk is read whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import Disk, Host, KiB, MiB, Vm
from tests.rig.cli import Vmkeep
from tests.system.history import INCREMENTAL, Remembering, modes
from tests.system.offline import bitmaps, qemu_img, write_offline
from tests.system.truth import Truth

pytestmark = pytest.mark.system


@pytest.fixture
def remembering(host: Host) -> Remembering:
    return Remembering(host)


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("running", [True, False], ids=["blockresize", "while-off"])
def test_disk_that_grew_after_a_snapshot_is_read_whole_by_itself(
    host: Host, remembering: Remembering, running: bool
) -> None:
    vmkeep = remembering
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB)], firmware="bios", tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=1 * MiB, seed=1)
    vmkeep.backup("guest")
    vmkeep.json("snapshot", "create", "guest", "before")
    if running:
        host.run(["virsh", "blockresize", "guest", "vda", "6M"], check=True)
    else:
        vm.destroy()
        qemu_img("resize", "-q", vm.disk_path("vda"), "6M")
        vm.start(paused=True)
    for target in ("vda", "vdb"):
        vm.write_random(target, start=2 * MiB, length=64 * KiB, seed=2)
    assert vmkeep.run("checkpoint", "health", "guest").returncode in (0, 37)

    grown = vmkeep.backup("guest")
    assert modes(grown) == {"vda": ("full", "size-changed"), "vdb": INCREMENTAL}
    vm.write_random("vda", start=5 * MiB, length=64 * KiB, seed=3)
    assert set(modes(vmkeep.backup("guest")).values()) == {INCREMENTAL}
    assert modes(vmkeep.backup("guest", "--full")) == dict.fromkeys(("vda", "vdb"), ("full", "forced"))
    vmkeep.assert_all_kept()
    held = {name for path in (host.dir / "disks").glob("*.qcow2") for name in bitmaps(path)}
    vm.destroy()
    assert held <= {name for name in held if name.startswith("vmkeep-")}


def test_point_after_a_restore_in_place_to_one_from_before_a_snapshot_is_incremental(
    host: Host, remembering: Remembering
) -> None:
    vmkeep = remembering
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB)], firmware="bios", tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=1 * MiB, seed=1)
    first = vmkeep.backup("guest")
    vmkeep.json("snapshot", "create", "guest", "before")
    vm.write_random("vda", start=2 * MiB, length=64 * KiB, seed=2)
    vmkeep.backup("guest")
    vm.destroy()
    vmkeep.json("restore", first["id"], "--in-place", "--yes")
    vm.start(paused=True)
    vm.write_random("vda", start=3 * MiB, length=64 * KiB, seed=3)
    truth = Truth.of(vm, uefi=False, tpm=False)
    after = Vmkeep.backup(vmkeep, "guest")
    assert modes(after) == dict.fromkeys(("vda", "vdb"), INCREMENTAL)
    assert after["disks"][0]["bytes_read"] == 64 * KiB
    truth.assert_files(vmkeep.restore(after, host.dir / "work" / "after"))


def _kept_offline(host: Host, disks: list[Disk]) -> Vm:
    vm = host.define("guest", disks=disks, firmware="bios", tpm=False)
    for disk in disks:
        write_offline(vm, disk.target, b"\x11" * MiB, start=0)
    return vm


def test_vm_with_an_old_qcow2_goes_back_and_forth_between_its_points(host: Host, vmkeep: Vmkeep) -> None:
    """What plain `virsh vol-create-as` makes: version 2, which holds no bitmaps."""
    vm = _kept_offline(host, [Disk("vda", 4 * MiB, create_options=("compat=0.10",)), Disk("vdb", 4 * MiB)])
    first, truth = vmkeep.backup("guest"), Truth.of(vm, uefi=False, tpm=False)
    assert modes(first)["vda"] == ("scan", "no-bitmaps")
    for target in ("vda", "vdb"):
        write_offline(vm, target, b"\x22" * (128 * KiB), start=512 * KiB)
    later = Truth.of(vm, uefi=False, tpm=False)
    restored = vmkeep.json("restore", first["id"], "--in-place", "--yes")["restored"]
    assert restored["warnings"] == []
    truth.assert_vm(vm)
    vmkeep.json("restore", restored["safety"], "--in-place", "--yes")
    later.assert_vm(vm)
    assert modes(vmkeep.backup("guest")) == {"vda": ("scan", "no-bitmaps"), "vdb": INCREMENTAL}
    vm.start(paused=True)
    assert modes(vmkeep.backup("guest")) == {"vda": ("scan", "no-bitmaps"), "vdb": INCREMENTAL}

    (finding,) = [
        found for found in vmkeep.json("doctor")["doctor"]["findings"] if found["code"] == "image-without-bitmaps"
    ]
    amend = f"qemu-img amend -f qcow2 -o compat=1.1 {vm.disk_path('vda')}"
    assert amend in finding["remedy"]
    shown = {disk["target"]: disk for disk in vmkeep.json("vm", "show", "guest")["vm"]["disks"]}
    assert amend in shown["vda"]["read_whole"]
    assert (shown["vda"]["problem"], shown["vdb"]["read_whole"]) == (None, None)
    assert "compat=1.1" in vmkeep.run("vm", "show", "guest").stdout
    vm.destroy()
    host.run(amend.split(), check=True)
    assert modes(vmkeep.backup("guest"))["vda"][0] == "full"
    assert modes(vmkeep.backup("guest"))["vda"] == INCREMENTAL


@pytest.fixture
def full_directory(host: Host) -> Iterator[Path]:
    """A file system with no room for what is added to an image in it."""
    directory = host.dir / "work" / "full"
    directory.mkdir()
    host.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=1777", "tmpfs", directory], check=True)
    yield directory
    host.run(["umount", "--lazy", directory], check=True)


def test_bitmap_for_which_there_is_no_room_costs_only_its_disk(
    host: Host, vmkeep: Vmkeep, full_directory: Path
) -> None:
    image = full_directory / "image.qcow2"
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "4M"], check=True)
    vm = host.define(
        "guest", disks=[Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB, path=image)], firmware="bios", tpm=False
    )
    host.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x11 0 4M", image], check=True)
    first = vmkeep.backup("guest")
    host.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x22 1M 64k", image], check=True)
    host.run(["sh", "-c", f"cat /dev/zero > {full_directory}/filler; true"])
    second = vmkeep.backup("guest")
    assert (modes(second)["vda"], modes(second)["vdb"][0]) == (INCREMENTAL, "full")
    assert any("vdb" in warning and "no bitmap" in warning for warning in second["warnings"])
    vmkeep.json("restore", first["id"], "--in-place", "--yes")
    read = host.run(["qemu-io", "-f", "qcow2", "-r", "-c", "read -P 0x11 0 4M", image], check=True)
    assert "verification failed" not in read.stdout
    # The bitmaps that the restore removed have left room in the image for its new one.
    host.run(["rm", full_directory / "filler"], check=True)
    assert set(modes(vmkeep.backup("guest")).values()) == {INCREMENTAL}
    assert vm.disk_path("vdb") == image


def test_a_new_checkpoint_leaves_out_images_of_version_2(host: Host, vmkeep: Vmkeep) -> None:
    old = Disk("vda", MiB, create_options=("compat=0.10",))
    vm = host.define("guest", disks=[old, Disk("vdb", MiB)], firmware="bios", tpm=False)
    vm.start(paused=True)
    created = vmkeep.run("checkpoint", "create", "guest", "one")
    assert created.stdout == "checkpoint one of guest created: vdb\n"
    assert "vda is left out, because its image is qcow2 of version 2" in created.stderr
    assert f"qemu-img amend -f qcow2 -o compat=1.1 {vm.disk_path('vda')}" in created.stderr
    assert vmkeep.fails("checkpoint", "create", "guest", "two", "--diskspec", "vda").code == "moment-invalid"
