"""Points of VMs that are off: never started for it, and incremental across any order of states."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, random_bytes
from tests.rig.cli import Vmkeep, finished
from tests.system.held import held
from tests.system.offline import bitmaps, qemu_img, write_offline, zero_offline
from tests.system.truth import Truth, assert_left_alone, checkpoints

pytestmark = pytest.mark.system

_INCREMENTAL = ("incremental", "incremental")


def _modes(point: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {disk["target"]: (disk["mode"], disk["reason"]) for disk in point["disks"]}


def _read(point: dict[str, Any]) -> list[int]:
    return [disk["bytes_read"] for disk in point["disks"]]


def _used_vm(host: Host, *disks: Disk) -> Vm:
    """A VM that was started once, so that it has TPM state and UEFI variables, and is off."""
    vm = host.define("guest", disks=disks or (Disk("vda", 8 * MiB), Disk("vdb", 4 * MiB + 1536)))
    vm.start(paused=True)
    vm.destroy()
    return vm


def _assert_one_base(vm: Vm, point: dict[str, Any]) -> None:
    """Of our checkpoints and bitmaps, the point's own are there and no others."""
    assert [name for name in checkpoints(vm) if name.startswith("vmkeep-")] == [point["checkpoint"]]
    for disk in vm.disks():
        assert disk.path is not None
        assert [name for name in bitmaps(disk.path) if name.startswith("vmkeep-")] == [point["checkpoint"]]


def test_points_stay_incremental_whether_the_vm_is_off_or_runs(host: Host, vmkeep: Vmkeep) -> None:
    vm = _used_vm(host)
    write_offline(vm, "vda", random_bytes(1, 3 * MiB), start=1 * MiB + 512)
    points, truths = [vmkeep.backup("guest")], [Truth.of(vm)]  # off, whole
    _assert_one_base(vm, points[-1])
    write_offline(vm, "vda", random_bytes(2, 4 * KiB), start=2 * MiB)
    zero_offline(vm, "vda", start=3 * MiB, length=128 * KiB)
    write_offline(vm, "vdb", random_bytes(3, 512), start=4 * MiB + 1024)  # in the short last block
    points, truths = [*points, vmkeep.backup("guest")], [*truths, Truth.of(vm)]  # off again
    _assert_one_base(vm, points[-1])
    points, truths = [*points, vmkeep.backup("guest")], [*truths, Truth.of(vm)]  # off, nothing changed
    vm.start(paused=True)
    vm.write_random("vda", start=5 * MiB, length=64 * KiB, seed=4)
    vm.change_nvram()
    points, truths = [*points, vmkeep.backup("guest")], [*truths, Truth.of(vm)]  # running
    vm.write_random("vdb", start=1 * MiB, length=64 * KiB, seed=5)
    vm.destroy()
    write_offline(vm, "vda", random_bytes(6, 64 * KiB), start=7 * MiB)
    points, truths = [*points, vmkeep.backup("guest")], [*truths, Truth.of(vm)]  # both kinds of writes
    _assert_one_base(vm, points[-1])

    assert vm.state() is VmState.OFF
    assert set(_modes(points[0]).values()) == {("full", "no-base")}
    assert [set(_modes(point).values()) for point in points[1:]] == [{_INCREMENTAL}] * 4
    assert [point["pause_ms"] for point in points[:3]] == [0, 0, 0]
    blocks = [_read(point) for point in points[1:]]
    assert blocks == [[64 * KiB, 1536], [0, 0], [64 * KiB, 0], [64 * KiB, 64 * KiB]]
    assert [point["parent"] for point in points] == [None, *(point["id"] for point in points[:-1])]
    for truth, output in zip(truths, vmkeep.restore_all(points, host.dir / "work"), strict=True):
        truth.assert_files(output)


def test_vm_that_was_never_started_is_kept_without_state_and_comes_back(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB)])
    write_offline(vm, "vda", random_bytes(1, 1 * MiB), start=0)
    image = vm.read_image("vda")
    point = vmkeep.backup("guest")

    assert [point["state"][kind]["present"] for kind in ("tpm", "nvram")] == [False, False]
    assert len([warning for warning in point["warnings"] if "never started" in warning]) == 2
    assert vm.state() is VmState.OFF
    vm.delete()
    vmkeep.json("restore", point["id"], "--as", "guest", "--tpm", "new")
    restored = host.vm("guest")
    assert restored.read_image("vda") == image
    restored.start()


def test_state_that_is_gone_is_told_and_the_point_is_made(host: Host, vmkeep: Vmkeep) -> None:
    vm = _used_vm(host)
    before = vmkeep.backup("guest")
    vm.tpm_directory.rename(host.dir / "work" / "lost")
    point = vmkeep.backup("guest")

    assert before["state"]["tpm"]["present"] is True
    assert point["state"]["tpm"]["present"] is False
    (warning,) = point["warnings"]
    assert "TPM state file of guest is gone" in warning
    assert "`vmkeep state restore guest`" in warning


def test_bitmaps_of_others_stay_and_ours_that_nobody_needs_go(host: Host, vmkeep: Vmkeep) -> None:
    vm = _used_vm(host)
    first, before = vmkeep.backup("guest"), Truth.of(vm)
    prefix = first["checkpoint"].removesuffix(first["id"])
    path = vm.disk_path("vda")
    for name in ("libvirt-somebody", prefix + "0" * 32, "vmkeep-00000000-" + "1" * 32):
        qemu_img("bitmap", "--add", "-f", "qcow2", path, name)
    write_offline(vm, "vda", random_bytes(2, 64 * KiB), start=0)
    second = vmkeep.backup("guest")

    assert _modes(second) == {"vda": _INCREMENTAL, "vdb": _INCREMENTAL}
    expected = {"libvirt-somebody", "vmkeep-00000000-" + "1" * 32, second["checkpoint"]}
    assert set(bitmaps(path)) == expected
    outputs = vmkeep.restore_all([first, second], host.dir / "work")
    for kept, output in zip((before, Truth.of(vm)), outputs, strict=True):
        kept.assert_files(output)


def test_lost_checkpoints_are_listed_again_and_the_point_is_incremental(host: Host, vmkeep: Vmkeep) -> None:
    vm = _used_vm(host)
    vmkeep.backup("guest")
    host.run(["virsh", "checkpoint-delete", "guest", checkpoints(vm)[0], "--metadata"], check=True)
    write_offline(vm, "vda", random_bytes(1, 64 * KiB), start=0)
    off = vmkeep.backup("guest")
    vm.start(paused=True)
    host.run(["virsh", "checkpoint-delete", "guest", checkpoints(vm)[0], "--metadata"], check=True)
    vm.write_random("vda", start=1 * MiB, length=64 * KiB, seed=2)
    running = vmkeep.backup("guest")
    third = vmkeep.backup("guest")

    for point in (off, running, third):
        assert _modes(point) == {"vda": _INCREMENTAL, "vdb": _INCREMENTAL}
    assert [_read(point)[0] for point in (off, running, third)] == [64 * KiB, 64 * KiB, 0]
    assert [name for name in checkpoints(vm) if name.startswith("vmkeep-")] == [third["checkpoint"]]
    Truth.of(vm).assert_files(vmkeep.restore(third, host.dir / "work" / "out"))


def _killed(vm: Vm) -> None:
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=64 * KiB, seed=9)
    pid = vm.host.path(f"/run/libvirt/qemu/{vm.name}.pid").read_text().strip()
    vm.host.run(["kill", "-KILL", pid], check=True)
    vm.host.run(["sh", "-c", f"until virsh domstate {vm.name} | grep -q 'shut off'; do sleep 0.1; done"], check=True)


def _removed(vm: Vm) -> None:
    (name,) = [name for name in bitmaps(vm.disk_path("vda")) if name.startswith("vmkeep-")]
    qemu_img("bitmap", "--remove", "-f", "qcow2", vm.disk_path("vda"), name)


def _disabled(vm: Vm) -> None:
    (name,) = [name for name in bitmaps(vm.disk_path("vda")) if name.startswith("vmkeep-")]
    qemu_img("bitmap", "--disable", "-f", "qcow2", vm.disk_path("vda"), name)


def _grown(vm: Vm) -> None:
    for name in bitmaps(vm.disk_path("vda")):
        qemu_img("bitmap", "--remove", "-f", "qcow2", vm.disk_path("vda"), name)
    qemu_img("resize", "-q", "-f", "qcow2", vm.disk_path("vda"), str(12 * MiB))


def _overlaid(vm: Vm) -> None:
    below = vm.disk_path("vda")
    overlay = below.with_name("overlay.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", overlay)
    vm.host.connection.defineXML(vm.xml().replace(str(below), str(overlay)))


def _replaced(vm: Vm) -> None:
    path = vm.disk_path("vda")
    size = str(8 * MiB)
    path.unlink()
    qemu_img("create", "-q", "-f", "qcow2", path, size)


@pytest.mark.in_turn(2)
@pytest.mark.parametrize(
    ("change", "reasons", "whole"),
    [
        (_killed, {"qemu-killed"}, ("vda", "vdb")),
        (_removed, {"bitmap-missing"}, ("vda",)),
        (_disabled, {"bitmap-not-recording"}, ("vda",)),
        (_grown, {"size-changed"}, ("vda",)),
        (_overlaid, {"external-snapshot"}, ("vda",)),
        (_replaced, {"bitmap-missing"}, ("vda",)),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else None,
)
def test_only_the_disk_whose_base_is_lost_is_read_whole_and_all_heals(
    host: Host, vmkeep: Vmkeep, change: Any, reasons: set[str], whole: tuple[str, ...]
) -> None:
    vm = _used_vm(host)
    write_offline(vm, "vda", random_bytes(1, 1 * MiB), start=0)
    first, before = vmkeep.backup("guest"), Truth.of(vm)
    change(vm)
    write_offline(vm, "vda", random_bytes(2, 64 * KiB), start=2 * MiB)
    point = vmkeep.backup("guest")
    truth = Truth.of(vm)
    write_offline(vm, "vda", random_bytes(3, 64 * KiB), start=3 * MiB)
    following = vmkeep.backup("guest")

    modes = _modes(point)
    assert {modes[target] for target in whole} == {("full", reason) for reason in reasons}
    assert {modes[target] for target in modes if target not in whole} <= {_INCREMENTAL}
    assert set(_modes(following).values()) == {_INCREMENTAL}
    outputs = vmkeep.restore_all([first, point, following], host.dir / "work")
    for kept, output in zip((before, truth, Truth.of(vm)), outputs, strict=True):
        kept.assert_files(output)
    _assert_one_base(vm, following)


def test_vm_may_be_started_while_its_point_is_copied_and_is_kept_as_it_runs_then(host: Host, vmkeep: Vmkeep) -> None:
    vm = _used_vm(host, Disk("vda", 64 * MiB), Disk("vdb", 16 * MiB, format="raw"))
    vmkeep.backup("guest")
    write_offline(vm, "vda", random_bytes(1, 48 * MiB), start=0)
    guards = vmkeep.home / "guards"

    def copies() -> bool:
        return any('"stage": "copy"' in _text(record) for record in guards.glob("*.json"))

    with held(vmkeep, ["backup", "guest"], copies) as process:
        vm.start(paused=True)
        vm.write_random("vda", start=32 * MiB, length=64 * KiB, seed=2)
        vm.write_random("vdb", start=0, length=64 * KiB, seed=3)
    status, document = finished(process)

    assert status == 0
    point = document["point"]
    assert vm.state() is VmState.PAUSED
    assert _modes(point) == {"vda": _INCREMENTAL, "vdb": ("scan", "no-bitmaps")}
    Truth.of(vm).assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
    assert checkpoints(vm) == [point["checkpoint"]]


def test_disk_left_out_for_once_is_read_against_its_own_base_afterwards(host: Host, vmkeep: Vmkeep) -> None:
    vm = _used_vm(host)
    write_offline(vm, "vdb", random_bytes(1, 1 * MiB), start=0)
    first = vmkeep.backup("guest")
    vm.start(paused=True)
    vm.write_random("vdb", start=2 * MiB, length=64 * KiB, seed=2)
    second = vmkeep.backup("guest", "--exclude", "vdb")
    vm.destroy()
    write_offline(vm, "vdb", random_bytes(3, 64 * KiB), start=3 * MiB)
    third = vmkeep.backup("guest", "--exclude", "vdb")
    fourth = vmkeep.backup("guest")

    assert set(_modes(second)) == set(_modes(third)) == {"vda"}
    assert set(_modes(fourth).values()) == {_INCREMENTAL}
    assert _read(fourth) == [0, 128 * KiB]
    assert first["id"] not in checkpoints(vm)[0]
    _assert_one_base(vm, fourth)
    Truth.of(vm).assert_files(vmkeep.restore(fourth, host.dir / "work" / "out"))


def test_image_that_another_program_writes_to_is_named(host: Host, vmkeep: Vmkeep) -> None:
    vm = _used_vm(host, Disk("vda", 4 * MiB))
    path = vm.disk_path("vda")
    with subprocess.Popen(["qemu-nbd", "-f", "qcow2", "-k", str(host.dir / "work" / "other.sock"), str(path)]) as other:
        try:
            while not (host.dir / "work" / "other.sock").exists():
                time.sleep(0.02)
            failure = vmkeep.fails("backup", "guest")
        finally:
            other.terminate()

    assert failure.code == "vm-busy"
    assert str(path) in failure.error["message"]
    assert vmkeep.backup("guest")["kind"] == "full"


def test_quiesce_asks_nothing_of_a_vm_that_is_off(host: Host, vmkeep: Vmkeep) -> None:
    vm = _used_vm(host)
    point = vmkeep.backup("guest", "--quiesce")

    assert point["kind"] == "full"
    assert vm.state() is VmState.OFF


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def test_vm_saved_with_its_memory_is_kept_with_a_warning_and_goes_on(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB)])
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=1 * MiB, seed=1)
    vmkeep.backup("guest")
    vm.write_random("vda", start=0, length=64 * KiB, seed=2)
    host.run(["virsh", "managedsave", "guest"], check=True)
    point = vmkeep.backup("guest")
    truth = Truth.of(vm)
    vm.start()

    assert any("managed save" in warning for warning in point["warnings"])
    assert _modes(point) == {"vda": _INCREMENTAL}
    truth.assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
    assert vm.state() is VmState.PAUSED
    if not _job_can_begin(vm):  # libvirt 11.3 with QEMU 10.0: not before the VM has run
        refused = vmkeep.fails("backup", "guest")
        assert (refused.code, "virsh resume guest" in refused.error["hint"]) == ("hypervisor-error", True)
        assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[point["checkpoint"]])
        vm.resume()
        vm.suspend()
    following = vmkeep.backup("guest")
    assert _modes(following) == {"vda": _INCREMENTAL}


def _job_can_begin(vm: Vm) -> bool:
    try:
        with vm.own_backup_job(["vda"]):
            return True
    except libvirt.libvirtError:
        return False
