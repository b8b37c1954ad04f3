"""Disks of every kind that QEMU and libvirt offer, in one VM: kept and brought back whole, running and off.

One VM, because what costs is to start it; nineteen disks, which is more than one PCI bus has room for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.rig import (
    Disk,
    Host,
    KiB,
    MiB,
    Vm,
    VmState,
    assert_sparse_files_equal,
    random_bytes,
)
from tests.rig.cli import Vmkeep
from tests.rig.images import convert_to_raw
from tests.system.offline import loop_device, qemu_img, write_offline

pytestmark = pytest.mark.system

_TIB = 1 << 40
_BLOCKS_OF_4096 = "<blockio logical_block_size='4096' physical_block_size='4096'/>"
_LOOP = ("vdf", "vdg")
_BIG = "vdb"
_IN_PLACE = ("vdb", "vdc", "vdd", "vde", "vdf", "sdc", "sdd", "sde", "sdf", "sdg", "sdh")
_RAW = {"vde", "sdi", "sdk", *_LOOP}


@dataclass(frozen=True, slots=True)
class Odd:
    """The VM, what it held at each of its points as sparse raw files, and the points, oldest first."""

    host: Host
    vm: Vm
    vmkeep: Vmkeep
    loops: dict[str, Path]
    truths: list[dict[str, Path]]
    points: list[dict[str, Any]]

    @property
    def targets(self) -> list[str]:
        return [disk.target for disk in self.vm.disks()]

    def file(self, target: str) -> Path:
        return self.loops.get(target) or self.vm.disk_path(target)

    def write(self, target: str, seed: int, start: int, length: int) -> None:
        """Write at a place, running or off."""
        if self.vm.state() is not VmState.OFF:
            self.vm.write_random(target, start=start, length=length, seed=seed)
        elif target in self.loops:
            with self.loops[target].open("r+b") as device:
                device.seek(start)
                device.write(random_bytes(seed, length))
                device.flush()
                os.fsync(device.fileno())
        else:
            write_offline(self.vm, target, random_bytes(seed, length), start=start)

    def change(self, seed: int) -> None:
        """Write something else to every disk: within it and up to its last byte."""
        for number, target in enumerate(self.targets):
            size = self.vm.domain.blockInfo(target)[0]
            self.write(target, 100 * seed + number, 64 * KiB * seed, 40 * KiB)
            self.write(target, 100 * seed + 50 + number, size - 4 * KiB, 4 * KiB)
        self.write(_BIG, 1000 + seed, _TIB + seed * MiB, 128 * KiB)

    def read_to(self, directory: Path) -> dict[str, Path]:
        """Copy every disk as it is now to a raw file, sparse where the disk is."""
        directory.mkdir()
        found = {target: directory / f"{target}.raw" for target in self.targets}
        if self.vm.state() is VmState.OFF:
            for target, raw in found.items():
                convert_to_raw(self.file(target), raw, self.vm.disk(target).format)
            return found
        with self.vm.own_backup_job(self.targets) as socket:
            for target, raw in found.items():
                subprocess.run(["nbdcopy", f"nbd+unix:///{target}?socket={socket}", raw], check=True)
        return found

    def take(self) -> dict[str, Any]:
        self.truths.append(self.read_to(self.host.dir / "work" / f"truth-{len(self.truths)}"))
        self.points.append(self.vmkeep.backup(self.vm.name))
        return self.points[-1]

    def assert_restores(self, number: int) -> None:
        output = self.host.dir / "work" / f"restored-{number}"
        self.vmkeep.restore(self.points[number], output, "--format", "raw")
        for target, truth in self.truths[number].items():
            assert_sparse_files_equal(output / f"{target}.raw", truth, target)
        shutil.rmtree(output)

    def assert_is_at(self, number: int) -> None:
        now = self.read_to(self.host.dir / "work" / "now")
        for target, truth in self.truths[number].items():
            assert_sparse_files_equal(now[target], truth, target)
        shutil.rmtree(self.host.dir / "work" / "now")


def _make_images(disks: Path) -> dict[str, Path]:
    """Make the images that need more than a size: each with content that was there before the VM."""
    made = {}

    def image(name: str, *options: str, size: int = 3 * MiB, backing: tuple[Path, str] | None = None) -> Path:
        path = disks / f"odd-{name}.qcow2"
        below = ["-b", str(backing[0]), "-F", backing[1]] if backing else []
        qemu_img("create", "-q", "-f", "qcow2", *options, *below, path, str(size))
        return path

    base = disks / "odd-base.raw"
    base.write_bytes(random_bytes(1, 2 * MiB))
    middle = image("middle", size=5 * MiB // 2, backing=(base, "raw"))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", middle], check=True, capture_output=True)
    made["chain"] = image("chain", size=4 * MiB, backing=(middle, "qcow2"))
    made["overlay"] = image("overlay", size=3 * MiB, backing=(base, "raw"))
    for name, raw in (("data", "off"), ("dataraw", "on")):
        data = disks / f"odd-{name}.data"
        made[name] = image(name, "-o", f"data_file={data},data_file_raw={raw}")
        shutil.chown(data, "libvirt-qemu")  # libvirt 9.0 knows nothing of data files, so it gives QEMU no right to them
    source = disks / "odd-source.raw"
    source.write_bytes(random_bytes(2, MiB) + b"text " * (MiB // 5) + bytes(2 * MiB - MiB // 5 * 5))
    made["compressed"] = disks / "odd-compressed.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", source, made["compressed"])
    source.unlink()
    return made


@pytest.fixture(scope="module")
def odd(session_host: Host) -> Iterator[Odd]:
    host = session_host
    made = _make_images(host.dir / "disks")
    controller = "<controller type='scsi' index='0' model='virtio-scsi'/>"
    disks = [
        Disk("vda", MiB),
        Disk(_BIG, 2 * _TIB),
        Disk("vdc", 3 * MiB + 512),
        Disk("vdd", 3 * MiB, extra_xml=(_BLOCKS_OF_4096,)),
        Disk("vde", 3 * MiB, format="raw", extra_xml=(_BLOCKS_OF_4096,)),
        Disk("sda", 3 * MiB, bus="scsi", create_options=("cluster_size=4k",)),
        Disk("sdb", 9 * MiB, bus="scsi", create_options=("cluster_size=2M",)),
        Disk("sdc", 3 * MiB, bus="scsi", create_options=("extended_l2=on",), extra_xml=(_BLOCKS_OF_4096,)),
        Disk("sdd", bus="scsi", path=made["data"]),
        Disk("sde", bus="scsi", path=made["dataraw"]),
        Disk("sdf", bus="scsi", path=made["compressed"]),
        Disk("sdg", bus="scsi", path=made["chain"]),
        Disk("sdh", bus="scsi", path=made["overlay"]),
        Disk("sdi", 3 * MiB + 3 * KiB, bus="scsi", format="raw"),
        Disk("sdj", 3 * MiB, bus="sata"),
        Disk("sdk", 3 * MiB, bus="sata", format="raw"),
        Disk("sdl", 3 * MiB, bus="usb"),
    ]
    vmkeep = Vmkeep(host)
    (vmkeep.home / "vmkeep.toml").write_text(f'scratch_dir = "{host.dir / "disks"}"\nimages_dir = "{host.dir}/disks"\n')
    with (
        loop_device(host.dir / "work" / "loop-1", random_bytes(3, 3 * MiB), "--sector-size=4096") as one,
        loop_device(host.dir / "work" / "loop-2", random_bytes(4, 2 * MiB + 512)) as two,
    ):
        loops = dict(zip(_LOOP, (one, two), strict=True))
        blocks = [
            f"<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{device}'/>"
            f"<target dev='{target}' bus='virtio'/></disk>"
            for target, device in loops.items()
        ]
        vm = host.define("odd", disks=disks, tpm=False, firmware="bios", device_xml=[controller, *blocks])
        vm.start(paused=True)
        yield Odd(host, vm, vmkeep, loops, [], [])
        vm.destroy()
        host.clear()


def test_odd_disks_of_a_running_vm_are_kept(odd: Odd) -> None:
    odd.change(1)
    assert _modes(odd.take()) == _expected(odd, "full")
    odd.change(2)
    assert _modes(odd.take()) == _expected(odd, "incremental")
    for number in (0, 1):
        odd.assert_restores(number)


def test_two_tebibytes_that_are_nearly_empty_cost_next_to_nothing(odd: Odd) -> None:
    full, incremental = ({disk["target"]: disk for disk in point["disks"]}[_BIG] for point in odd.points[:2])
    written = 40 * KiB + 4 * KiB + 128 * KiB
    for disk in (full, incremental):
        assert disk["size_bytes"] == 2 * _TIB
        assert written <= disk["bytes_read"] <= 6 * 64 * KiB
        assert written <= disk["bytes_stored"] <= written + 64 * KiB
    process = Vmkeep(odd.vmkeep.host, forked=False).start("backup", "--full", "odd")
    peak = 0
    # Not what wait4 tells: Linux counts the memory of the process that started this one, up to the exec.
    with process:
        while process.poll() is None:
            peak = max(peak, _peak_bytes(process.pid))
            time.sleep(0.01)
    assert process.returncode == 0
    assert 32 * MiB < peak < 256 * MiB


def _peak_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KiB
    return 0


def test_odd_disks_of_a_vm_that_is_off_are_kept(odd: Odd) -> None:
    odd.vm.destroy()
    odd.change(3)
    assert _modes(odd.take()) == _expected(odd, "incremental")
    odd.assert_restores(2)


def test_odd_disks_go_back_in_place(odd: Odd) -> None:
    disks = odd.host.dir / "disks"
    below = {name: (disks / name).read_bytes() for name in ("odd-base.raw", "odd-middle.qcow2")}
    only = [word for target in _IN_PLACE for word in ("--only", target)]
    odd.vmkeep.json("restore", odd.points[0]["id"], "--in-place", "--yes", *only)
    odd.truths.append(odd.truths[2] | {target: odd.truths[0][target] for target in _IN_PLACE})
    odd.assert_is_at(3)
    assert {name: (disks / name).read_bytes() for name in below} == below
    assert odd.vm.disk_path("sde") == disks / "odd-dataraw.qcow2"
    data = qemu_img("info", disks / "odd-dataraw.qcow2")
    assert "odd-dataraw.data" in data
    odd.change(4)
    assert _modes(odd.take()) == _expected(odd, "incremental")
    odd.vm.start(paused=True)
    odd.assert_is_at(4)
    odd.vm.destroy()


def test_odd_disks_come_back_as_a_vm(odd: Odd) -> None:
    odd.vmkeep.json("restore", odd.points[1]["id"], "--as", "copy")
    copy = odd.host.vm("copy")
    copy.start(paused=True)
    restored = Odd(odd.host, copy, odd.vmkeep, {}, odd.truths, odd.points)
    assert restored.targets == odd.targets
    restored.assert_is_at(1)
    xml = copy.xml()
    assert xml.count("logical_block_size='4096'") == 3
    copy.destroy()


def test_libvirt_knows_no_nvme_bus(odd: Odd) -> None:
    """A newer one does (11.5); such disks then belong into the VM above."""
    with pytest.raises(libvirt.libvirtError, match="nvme"):
        odd.host.define("nvme", disks=[Disk("nvme0n1", MiB, bus="nvme")], tpm=False, firmware="bios")


def _expected(odd: Odd, mode: str) -> dict[str, str]:
    return {target: "scan" if target in _RAW else mode for target in odd.targets}


def _modes(point: dict[str, Any]) -> dict[str, str]:
    return {disk["target"]: disk["mode"] for disk in point["disks"]}
