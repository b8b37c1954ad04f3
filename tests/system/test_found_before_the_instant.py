"""What libvirt or QEMU would refuse in the middle of the instant is found before, named, and told with its remedy."""

from __future__ import annotations

import struct
from pathlib import Path

import libvirt
import pytest

from tests.crash.bed import Trap, Zygote
from tests.rig import Disk, Host, KiB, MiB, Vm, VmState
from tests.rig.cli import Vmkeep
from tests.system.history import INCREMENTAL, modes
from tests.system.offline import qemu_img
from tests.system.truth import Truth, assert_left_alone

pytestmark = pytest.mark.system

_DOMAIN = "vmkeep.hypervisor.domain:Domain."
_CORRUPT = 1 << 1  # of the incompatible features, at byte 72 of a qcow2 header (docs/interop/qcow2.txt)


def _small(host: Host, disks: list[Disk]) -> Vm:
    return host.define("guest", disks=disks, firmware="bios", tpm=False)


def test_block_job_of_somebody_else_is_named_before_anything_is_begun(host: Host, vmkeep: Vmkeep) -> None:
    vm = _small(host, [Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB)])
    vm.start()
    copy = host.dir / "disks" / "copy.qcow2"
    host.run(["virsh", "blockcopy", "guest", "vdb", copy, "--wait", "--transient-job"], check=True)
    for command in (["backup", "guest"], ["snapshot", "create", "guest", "s1"]):
        failure = vmkeep.fails(*command)
        assert (failure.code, failure.error["disk"]) == ("vm-busy", "vdb")
        assert "virsh blockjob guest vdb" in failure.error["hint"]
    assert vm.state() is VmState.RUNNING
    point = vmkeep.backup("guest", "--exclude", "vdb")  # which needs no job on that disk
    assert modes(point)["vda"][0] == "full"
    vm.domain.blockJobAbort("vdb")
    vmkeep.backup("guest")


def test_image_with_the_longest_name_is_kept_while_its_vm_runs(host: Host, vmkeep: Vmkeep) -> None:
    path = host.dir / "disks" / ("ä" * 120 + "b" * 9 + ".qcow2")
    assert len(path.name.encode()) == 255
    qemu_img("create", "-q", "-f", "qcow2", path, "4M")
    vm = _small(host, [Disk("vda", 4 * MiB, path=path)])
    vm.start(paused=True)
    assert modes(vmkeep.backup("guest"))["vda"][0] == "full"
    vm.write("vda", start=0, length=64 * KiB)
    truth = Truth.of(vm, uefi=False, tpm=False)
    point = vmkeep.backup("guest")
    assert modes(point)["vda"] == INCREMENTAL
    truth.assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
    assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[point["checkpoint"]])


@pytest.mark.parametrize("running", [True, False], ids=["running", "off"])
def test_two_disks_on_one_file_are_named(host: Host, vmkeep: Vmkeep, running: bool) -> None:
    path = host.dir / "disks" / "one.raw"
    qemu_img("create", "-q", "-f", "raw", path, "4M")
    link = path.with_name("link.raw")
    link.symlink_to(path)
    disks = [Disk("vda", 4 * MiB, format="raw", path=path, shareable=True)]
    disks.append(Disk("vdb", 4 * MiB, format="raw", path=link, shareable=True))
    vm = _small(host, disks)
    if running:
        vm.start()
    failure = vmkeep.fails("backup", "guest")
    assert (failure.code, failure.error["disk"]) == ("disk-unsupported", "vdb")
    assert "vda and vdb" in failure.error["message"]
    assert "--exclude vdb" in failure.error["hint"]
    assert vm.state() is (VmState.RUNNING if running else VmState.OFF)
    if running:  # QEMU refuses a job on the one as long as the other has the file open
        assert vmkeep.fails("backup", "guest", "--exclude", "vdb").code == "disk-unsupported"
        assert vmkeep.backup("guest", "--exclude", "vda", "--exclude", "vdb")["disks"] == []
        vm.destroy()
    vmkeep.backup("guest", "--exclude", "vdb")


def test_image_that_is_marked_as_corrupt_is_named_with_its_remedy(host: Host, vmkeep: Vmkeep) -> None:
    vm = _small(host, [Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB)])
    path = vm.disk_path("vda")
    _mark_as_corrupt(path)
    failure = vmkeep.fails("backup", "guest")
    assert (failure.code, failure.error["disk"]) == ("disk-unsupported", "vda")
    assert "corrupt" in failure.error["message"]
    assert "qemu-img check -r all" in failure.error["hint"]
    vmkeep.backup("guest", "--exclude", "vda")
    qemu_img("check", "-q", "-r", "all", path)
    vmkeep.backup("guest")


def _mark_as_corrupt(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(72)
        (features,) = struct.unpack(">Q", file.read(8))
        file.seek(72)
        file.write(struct.pack(">Q", features | _CORRUPT))


def test_disk_that_libvirt_drops_at_a_start_is_left_out_and_told_of(host: Host, vmkeep: Vmkeep) -> None:
    vm = _small(host, [Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB)])
    gone = vm.disk_path("vdb")
    definition = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    optional = f"<source startupPolicy='optional' file='{gone}'"
    host.connection.defineXML(definition.replace(f"<source file='{gone}'", optional))
    gone.unlink()
    off = vmkeep.backup("guest")
    assert modes(off) == {"vda": ("full", "no-base")}
    assert off["excluded"] == [{"target": "vdb", "reason": "optional-missing"}]
    assert any("vdb" in warning and "optional" in warning for warning in off["warnings"])
    vm.start()
    running = vmkeep.backup("guest")
    assert modes(running) == {"vda": INCREMENTAL}
    assert running["warnings"] != []
    vm.destroy()
    assert modes(vmkeep.backup("guest")) == {"vda": INCREMENTAL}


@pytest.mark.parametrize("place", [_DOMAIN + "suspend", _DOMAIN + "begin_backup"])
def test_vm_that_ends_just_before_the_job_begins_is_a_clear_failure(host: Host, zygote: Zygote, place: str) -> None:
    vm = _small(host, [Disk("vda", 4 * MiB)])
    vm.start()
    zygote.start(["backup", "guest"], traps=[Trap("before", place, "hold")])
    zygote.wait_reached()
    vm.destroy()
    zygote.go.touch()
    error = zygote.finish().error
    assert error["code"] == "job-aborted", error
    assert "stopped" in error["message"]
    assert_left_alone(vm, state=VmState.OFF)
