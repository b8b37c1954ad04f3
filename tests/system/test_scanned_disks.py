"""Disks that can have no bitmap are read whole, unchanged blocks are not stored again, and all come back."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, assert_images_equal, random_bytes, read_offline_image
from tests.rig.cli import Vmkeep
from tests.system.offline import loop_device
from tests.system.truth import Truth, checkpoints

pytestmark = pytest.mark.system


def _modes(point: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {disk["target"]: (disk["mode"], disk["reason"]) for disk in point["disks"]}


def _stored(point: dict[str, Any]) -> dict[str, int]:
    return {disk["target"]: disk["bytes_stored"] for disk in point["disks"]}


def _use_scratch_dir(host: Host, vmkeep: Vmkeep) -> None:
    """Say where the scratch of disks without a directory goes; the host of a test has no directory for images."""
    vmkeep.home.mkdir(exist_ok=True)
    (vmkeep.home / "vmkeep.toml").write_text(f'scratch_dir = "{host.dir / "disks"}"\n')


def _block_disk(target: str, device: Path) -> str:
    return (
        f"<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{device}'/>"
        f"<target dev='{target}' bus='virtio'/></disk>"
    )


def test_disks_without_bitmaps_are_kept_beside_one_that_has_them(host: Host, vmkeep: Vmkeep) -> None:
    golden = host.dir / "disks" / "golden.raw"
    golden.write_bytes(random_bytes(5, 2 * MiB))
    disks = [
        Disk("vda", 8 * MiB),
        Disk("vdb", 4 * MiB + 512, format="raw"),
        Disk("vdc", 2 * MiB, format="raw", readonly=True, path=golden),
        Disk("vdd", 4 * MiB, format="raw", shareable=True),
    ]
    _use_scratch_dir(host, vmkeep)
    with loop_device(host.dir / "work" / "loop.img", random_bytes(6, 3 * MiB)) as device:
        vm = host.define("guest", disks=disks, tpm=False, device_xml=[_block_disk("vde", device)])
        vm.start(paused=True)
        for seed, target in enumerate(("vda", "vdb", "vdd"), 1):
            vm.write_random(target, start=1 * MiB, length=2 * MiB, seed=seed)
        first = vmkeep.backup("guest")
        images = [_images(vm, device)]
        vm.write_random("vdb", start=4 * MiB, length=512, seed=7)
        vm.write_random("vde", start=64 * KiB, length=4 * KiB, seed=8)
        second = vmkeep.backup("guest")
        images.append(_images(vm, device))
        vm.destroy()
        third = vmkeep.backup("guest")

    expected = {
        "vdb": ("scan", "no-bitmaps"),
        "vdc": ("scan", "read-only-disk"),
        "vdd": ("scan", "shareable-disk"),
        "vde": ("scan", "no-bitmaps"),
    }
    assert _modes(first) == {"vda": ("full", "no-base"), **expected}
    assert _modes(second) == _modes(third) == {"vda": ("incremental", "incremental"), **expected}
    assert any("vdd" in warning for warning in first["warnings"])
    assert {target: stored for target, stored in _stored(second).items() if stored > 16 * KiB} == {
        "vde": _stored(second)["vde"]
    }
    assert _stored(second)["vde"] < 80 * KiB
    assert sum(_stored(third).values()) == 0
    for point, truth in zip((first, second), images, strict=True):
        output = vmkeep.restore(point, host.dir / "work" / point["id"])
        for target, image in truth.items():
            assert_images_equal(read_offline_image(output / f"{target}.qcow2"), image, target)
    vm.delete()
    vmkeep.json("restore", second["id"], "--as", "guest", "--disks-dir", host.dir / "disks", "--force")
    restored = host.vm("guest")
    for target, image in images[1].items():
        assert_images_equal(restored.read_image(target), image, target)
    restored.start(paused=True)


def _images(vm: Vm, device: Path) -> dict[str, bytes]:
    images = {target: vm.read_image(target) for target in ("vda", "vdb", "vdc", "vdd")}
    return {**images, "vde": device.read_bytes()}


def test_transient_disk_is_kept_as_it_will_be_after_the_stop(host: Host, vmkeep: Vmkeep) -> None:
    path = host.dir / "disks" / "kiosk.qcow2"
    raw = host.dir / "work" / "kiosk.raw"
    raw.write_bytes(random_bytes(1, 2 * MiB))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(path)], check=True)
    disks = [Disk("vda", 4 * MiB), Disk("vdb", path=path, extra_xml=("<transient/>",))]
    vm = host.define("guest", disks=disks, tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=64 * KiB, seed=2)
    vm.write_random("vdb", start=0, length=64 * KiB, seed=3)
    # Only then does QEMU write to the overlay that the changes are in.
    vm.monitor("qemu-io -d /machine/peripheral/virtio-disk1/virtio-backend flush")
    point = vmkeep.backup("guest")
    vm.destroy()
    off = vmkeep.backup("guest")

    assert _modes(point)["vdb"] == _modes(off)["vdb"] == ("scan", "transient-disk")
    assert any("vdb" in warning for warning in point["warnings"])
    for each in (point, off):
        output = vmkeep.restore(each, host.dir / "work" / each["id"])
        assert_images_equal(read_offline_image(output / "vdb.qcow2"), raw)


def test_network_disk_is_kept_while_the_vm_runs_and_named_when_it_is_off(host: Host, vmkeep: Vmkeep) -> None:
    image = host.dir / "disks" / "remote.raw"
    image.write_bytes(random_bytes(1, 2 * MiB))
    socket = host.dir / "disks" / "remote.sock"
    command = ["qemu-nbd", "-f", "raw", "--persistent", "--shared=4", "-k", str(socket), str(image)]
    with subprocess.Popen(command) as server:
        try:
            while not socket.exists():
                time.sleep(0.02)
            socket.chmod(0o777)
            network = (
                "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd'>"
                f"<host transport='unix' socket='{socket}'/></source><target dev='vdb' bus='virtio'/></disk>"
            )
            _use_scratch_dir(host, vmkeep)
            vm = host.define("guest", disks=[Disk("vda", 4 * MiB)], tpm=False, device_xml=[network])
            vm.start(paused=True)
            point = vmkeep.backup("guest")
            vm.destroy()
            failure = vmkeep.fails("backup", "guest")
        finally:
            server.terminate()
    without = vmkeep.backup("guest", "--exclude", "vdb")

    assert _modes(point)["vdb"] == ("scan", "no-bitmaps")
    output = vmkeep.restore(point, host.dir / "work" / "out")
    assert_images_equal(read_offline_image(output / "vdb.qcow2"), image)
    assert (failure.code, failure.error["disk"]) == ("disk-unsupported", "vdb")
    assert "Start the VM" in failure.error["hint"]
    assert without["excluded"] == [{"target": "vdb", "reason": "requested"}]
    restored = vmkeep.json("restore", without["id"], "--as", "copy", "--tpm", "new")["restored"]
    assert any("vdb" in warning for warning in restored["warnings"])


def test_volume_of_a_storage_pool_is_kept_as_the_file_that_it_is(host: Host, vmkeep: Vmkeep) -> None:
    directory = host.dir / "disks" / "pool"
    directory.mkdir()
    host.run(["virsh", "pool-create-as", "keep", "dir", "--target", str(directory)], check=True)
    host.run(["virsh", "vol-create-as", "keep", "system.qcow2", "4M", "--format", "qcow2"], check=True)
    # libvirt makes volumes of the old version of qcow2, which has no bitmaps.
    subprocess.run(["qemu-img", "amend", "-o", "compat=1.1", str(directory / "system.qcow2")], check=True)
    volume = (
        "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/>"
        "<source pool='keep' volume='system.qcow2'/><target dev='vda' bus='virtio'/></disk>"
    )
    vm = host.define("guest", disks=[], tpm=False, device_xml=[volume])
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=1 * MiB, seed=1)
    first = vmkeep.backup("guest")
    vm.write_random("vda", start=0, length=64 * KiB, seed=2)
    vm.destroy()
    second = vmkeep.backup("guest")

    assert _modes(first) == {"vda": ("full", "no-base")}
    assert _modes(second) == {"vda": ("incremental", "incremental")}
    image = read_offline_image(directory / "system.qcow2", "qcow2")
    output = vmkeep.restore(second, host.dir / "work" / "out")
    assert_images_equal(read_offline_image(output / "vda.qcow2"), image)


def test_image_of_the_old_version_of_qcow2_is_scanned(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB, create_options=("compat=0.10",))], tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=1 * MiB, seed=1)
    running = vmkeep.backup("guest")
    vm.destroy()
    off = vmkeep.backup("guest")

    assert _modes(running) == _modes(off) == {"vda": ("scan", "no-bitmaps")}
    assert _stored(off) == {"vda": 0}
    Truth.of(vm, tpm=False).assert_files(vmkeep.restore(off, host.dir / "work" / "out"))


def test_vm_without_disks_is_kept_for_its_state(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[])
    vm.start(paused=True)
    point = vmkeep.backup("guest")
    truth = Truth.of(vm)

    assert point["disks"] == []
    assert vm.state() is VmState.PAUSED
    assert checkpoints(vm) == []
    truth.assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
