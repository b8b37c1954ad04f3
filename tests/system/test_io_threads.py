"""Disks in I/O threads, on both buses: QEMU 7.2 dies when a client of a backup job leaves early, so none does.

Each test does all of its cases on one VM: a guest that was killed by one of them would not be there for the next.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest
from lxml import etree

from tests.crash.bed import Zygote, wait_until
from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, assert_images_equal
from tests.rig.cli import Vmkeep, finished
from tests.system.busy_guest import WritingGuest, wait_until_in_io_thread
from tests.system.held import held_at_a_read, held_in_its_copy
from tests.system.history import INCREMENTAL, History, modes
from tests.system.truth import assert_left_alone, checkpoints, has_backup_job

pytestmark = pytest.mark.system

_LIMITS = "<iotune><total_bytes_sec>100000000</total_bytes_sec></iotune>"
_BUSES = {"virtio": ("vda", "vdb"), "scsi": ("sda", "sdb")}


@pytest.fixture(params=_BUSES)
def vm(host: Host, request: pytest.FixtureRequest) -> Vm:
    """A running VM with two disks in an I/O thread, of which the first has 16 MiB of content."""
    vm = _started(host, [Disk(target, 32 * MiB, bus=request.param, iothread=True) for target in _BUSES[request.param]])
    vm.write_random(_first(vm), start=0, length=16 * MiB, seed=1)
    return vm


def _started(host: Host, disks: list[Disk]) -> Vm:
    vm = host.define("guest", disks=disks, firmware="bios", tpm=False)
    vm.start()
    wait_until_in_io_thread(vm)
    return vm


def _first(vm: Vm) -> str:
    return vm.disks()[0].target


@pytest.mark.in_turn(1)
def test_points_their_ends_and_snapshots_of_a_vm_whose_disks_are_in_an_io_thread(vm: Vm, vmkeep: Vmkeep) -> None:
    history, first = History(vm, vmkeep, uefi=False, tpm=False), _first(vm)
    history.keep()
    assert not has_backup_job(vm)
    for seed, (end, expected) in enumerate(_ENDS.items(), 2):
        before = checkpoints(vm)
        vm.write_random(first, start=0, length=16 * MiB, seed=seed)
        with held_in_its_copy(vm, vmkeep) as process:
            end(process.pid)
        status = process.wait(60)
        process.communicate()
        assert status == expected
        wait_until(lambda: not has_backup_job(vm), "the job does not end", 20)
        wait_until(lambda: not any((vmkeep.home / "guards").iterdir()), "the guardian does not end", 20)
        assert_left_alone(vm, checkpoints_before=before)
    vm.write(first, start=20 * MiB, length=64 * KiB, pattern=0x31)
    assert modes(history.keep()) == dict.fromkeys((disk.target for disk in vm.disks()), INCREMENTAL)

    vmkeep.json("snapshot", "create", "guest", "before")
    assert vm.state() is VmState.RUNNING
    vm.write(first, start=21 * MiB, length=64 * KiB, pattern=0x32)
    assert modes(history.keep()) == dict.fromkeys((disk.target for disk in vm.disks()), INCREMENTAL)
    history.assert_kept()


def _killed(number: signal.Signals) -> Callable[[int], None]:
    return lambda process: os.kill(process, number)


_ENDS = {
    _killed(signal.SIGKILL): -signal.SIGKILL,
    _killed(signal.SIGINT): 130,
    _killed(signal.SIGTERM): 143,
}


@pytest.mark.in_turn(1)
def test_images_that_changed_places_are_read_again_over_the_same_connections(vm: Vm, vmkeep: Vmkeep) -> None:
    """And a repository that takes no more ends the point with all of them in use."""
    history = History(vm, vmkeep, uefi=False, tpm=False)
    second = vm.disks()[1].target
    vm.write_random(second, start=0, length=8 * MiB, seed=9)
    history.keep()
    vm.destroy()
    one, other = (vm.disk_path(disk.target) for disk in vm.disks())
    beside = one.with_suffix(".beside")
    one.rename(beside)
    other.rename(one)
    beside.rename(other)
    vm.start()
    wait_until_in_io_thread(vm)
    assert modes(history.keep()) == dict.fromkeys((disk.target for disk in vm.disks()), ("full", "base-mismatch"))

    repository = vmkeep.home / "repository"
    vm.host.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", repository / "packs"], check=True)
    try:
        vm.write_random(second, start=0, length=16 * MiB, seed=10)
        assert vmkeep.fails("backup", "--full", "guest").code == "no-space"
    finally:
        vm.host.run(["umount", "--lazy", repository / "packs"], check=True)
    assert vm.state() is VmState.RUNNING
    assert not has_backup_job(vm)
    history.keep()
    history.assert_kept()


def test_vm_with_thirty_disks_gets_its_points(host: Host, vmkeep: Vmkeep) -> None:
    """QEMU's server takes 100 clients, and all are kept until the job is gone."""
    disks = [Disk(f"sd{_letters(number)}", 1 * MiB, bus="scsi", iothread=True) for number in range(30)]
    vm = _started(host, disks)
    for start in (0, 256 * KiB):
        for number, disk in enumerate(disks, 1):
            vm.write(disk.target, start=start, length=64 * KiB, pattern=number)
        point = vmkeep.backup("guest")
        assert not has_backup_job(vm)
    assert point["kind"] == "incremental"
    output = vmkeep.restore(point, host.dir / "work" / "out", "--format", "raw")
    for number, disk in enumerate(disks, 1):
        written, rest = bytes([number]) * (64 * KiB), bytes(192 * KiB)
        expected = written + rest + written + rest + bytes(512 * KiB)
        assert_images_equal((output / f"{disk.target}.raw").read_bytes(), expected, disk.target)


def _letters(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else "a" + chr(ord("a") + number - 26)


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("how", ["alive", "stopped"])
def test_guest_that_fills_the_scratch_of_disks_in_an_io_thread_runs_on(
    host: Host, vmkeep: Vmkeep, zygote: Zygote, how: str
) -> None:
    """Also when vmkeep stands still, which the guardian must kill if it is in the way."""
    scratch = host.dir / "work" / "scratch"
    scratch.mkdir()
    host.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "tmpfs", scratch], check=True)
    try:
        (vmkeep.home / "vmkeep.toml").write_text(f'scratch_dir = "{scratch}"\n')
        guest = WritingGuest(host, "writer", size=32 * MiB, iothread=True)
        guest.change(start=8 * MiB, length=24 * MiB, seed=7)
        with held_at_a_read(guest.vm, zygote) if how == "alive" else held_in_its_copy(guest.vm, vmkeep) as process:
            wait_until(lambda: not has_backup_job(guest.vm), "the guardian does not end the job", 90)
            wait_until(lambda: guest.vm.state() is VmState.RUNNING, "the guardian does not resume the VM", 40)
        if process is None:
            assert zygote.printed().status == 32
        else:
            process.communicate(timeout=60)
            assert process.returncode in (32, -signal.SIGKILL)
        guest.wait_written(256 * KiB)
        assert_left_alone(guest.vm)
    finally:
        host.run(["umount", "--lazy", scratch], check=True)


def test_vm_that_qemu_would_die_of_is_refused_by_name_before_anything_is_begun(host: Host, vmkeep: Vmkeep) -> None:
    """Limits and an I/O thread on one disk: QEMU 7.2 dies when such a VM is resumed after a job began."""
    disks = [Disk("vda", 4 * MiB, iothread=True, extra_xml=(_LIMITS,)), Disk("vdb", 4 * MiB, iothread=True)]
    vm = _started(host, disks)
    version = host.connection.getVersion()
    if version >= 9_000_000:
        pytest.skip("QEMU has no such fault since 9.0")
    refused = vmkeep.fails("backup", "guest")
    assert (refused.code, refused.error["disk"]) == ("disk-unsupported", "vda")
    assert all(word in refused.error["hint"] for word in ("off", "blkdeviotune", "--exclude vda"))
    assert_left_alone(vm)
    assert "vda" in str(vmkeep.json("vm", "show", "guest")["vm"]["problems"])
    assert "vda, vdb" in _io_threads_found(vmkeep)

    vmkeep.backup("guest", "--exclude", "vda")
    host.run(["virsh", "blkdeviotune", "guest", "vda", "--total-bytes-sec", "0"], check=True)
    vmkeep.backup("guest")
    host.run(["virsh", "blkdeviotune", "guest", "vdb", "--total-iops-sec", "500"], check=True)
    assert vmkeep.fails("backup", "guest").error["disk"] == "vdb"
    assert vm.state() is VmState.RUNNING
    vm.destroy()
    vmkeep.backup("guest")
    assert _io_threads_found(vmkeep) == ""


def _io_threads_found(vmkeep: Vmkeep) -> str:
    """Return what doctor says of the VM's I/O threads."""
    findings = json.loads(vmkeep.run("--json", "doctor", "guest").stdout)["doctor"]["findings"]
    return "".join(finding["message"] for finding in findings if finding["code"] == "io-threads")


def test_qemu_that_died_is_told_as_that_with_its_last_words(host: Host, vmkeep: Vmkeep) -> None:
    """It is made to die as it would of another tool: one client more, which leaves early."""
    vm = _started(host, [Disk("vda", 32 * MiB, iothread=True)])
    vm.write_random("vda", start=0, length=24 * MiB, seed=1)
    if host.connection.getVersion() >= 9_000_000:
        pytest.skip("QEMU has no such fault since 9.0")
    with held_in_its_copy(vm, vmkeep) as process:
        socket = etree.fromstring(vm.domain.backupGetXMLDesc()).xpath("string(server/@socket)")
        host.run(["nbdcopy", f"nbd+unix:///vda?socket={socket}", "null:"])
        wait_until(lambda: vm.state() is VmState.OFF, "QEMU lives", 20)
    status, document = finished(process)
    assert (status, document["error"]["code"]) == (32, "qemu-died")
    assert "nbd_blockdev_client_closed" in document["error"]["message"]
    assert document["error"]["path"] == "/var/log/libvirt/qemu/guest.log"
