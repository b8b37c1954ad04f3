"""Commands that are ended in the middle, and hosts on which something ends in the middle of a command."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.crash.bed import wait_until
from tests.rig import Disk, Host, KiB, MiB, Vm, VmState
from tests.rig.cli import Vmkeep, finished
from tests.system.busy_guest import power_off_soon
from tests.system.held import held, held_in_its_copy
from tests.system.history import INCREMENTAL, History, modes
from tests.system.truth import Truth, assert_left_alone, checkpoints, files_below, has_backup_job

pytestmark = pytest.mark.system


def _vm(host: Host) -> Vm:
    vm = host.define("guest", disks=[Disk("vda", 32 * MiB)], tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=24 * MiB, seed=1)
    return vm


def test_backup_ended_by_a_signal_leaves_nothing(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host)
    vmkeep.json("init")
    with held_in_its_copy(vm, vmkeep) as process:
        os.kill(process.pid, signal.SIGTERM)
    status, document = finished(process)

    assert (status, document["error"]["code"]) == (143, "terminated")
    assert_left_alone(vm, state=VmState.PAUSED)
    assert vmkeep.json("points")["points"] == []
    point = vmkeep.backup("guest")
    Truth.of(vm, tpm=False).assert_files(vmkeep.restore(point, host.dir / "work" / "out"))


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("kind", ["files", "vm"])
def test_restore_ended_by_a_signal_leaves_nothing(host: Host, vmkeep: Vmkeep, kind: str) -> None:
    vm = _vm(host)
    point, truth = vmkeep.backup("guest"), Truth.of(vm, tpm=False)
    vm.delete()
    output = host.dir / "work" / "out"
    images = output if kind == "files" else host.dir / "disks"
    where: list[str | Path] = ["--output", output] if kind == "files" else ["--as", "guest"]
    command = ["restore", point["id"], *where]
    with held(vmkeep, command, lambda: any(images.glob(".*.partial"))) as process:
        os.kill(process.pid, signal.SIGTERM)
    status, document = finished(process)

    assert (status, document["error"]["code"]) == (143, "terminated")
    assert files_below(images) == {}
    assert not output.exists()  # it was made for the files
    assert host.connection.listAllDomains() == []
    vmkeep.json(*command)
    if kind == "files":
        truth.assert_files(output)
    else:
        truth.assert_vm(host.vm("guest"))


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("end", ["stopped", "killed", "shut down"])
def test_vm_that_ends_while_it_is_copied_is_a_clear_failure(host: Host, vmkeep: Vmkeep, end: str) -> None:
    vm = host.define("guest", disks=[Disk("vda", 32 * MiB)], firmware="bios", tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=1 * MiB, length=23 * MiB, seed=1)
    history = History(vm, vmkeep, uefi=False, tpm=False)
    first = history.keep()
    vm.write_random("vda", start=1 * MiB, length=15 * MiB, seed=2)
    power_off_soon(vm)
    with held_in_its_copy(vm, vmkeep) as process:
        if end == "stopped":
            vm.destroy()
        elif end == "killed":
            pid = host.path("/run/libvirt/qemu/guest.pid").read_text().strip()
            host.run(["kill", "-KILL", pid], check=True)
        else:
            vm.resume()  # the guest boots, and powers off by itself
        wait_until(lambda: vm.state() is VmState.OFF, "the VM does not end", 20)
    status, document = finished(process)

    code, said = ("qemu-died", "QEMU died") if end == "killed" else ("job-aborted", "stopped")
    assert (status, document["error"]["code"], document["error"]["vm"]) == (32, code, "guest")
    assert said in document["error"]["message"]
    assert vm.state() is VmState.OFF
    assert [point["id"] for point in vmkeep.json("points")["points"]] == [first["id"]]
    vm.start(paused=True)
    vm.write_random("vda", start=20 * MiB, length=64 * KiB, seed=3)
    point = history.keep()
    # QEMU saves its bitmaps when it ends in order, and the base of the first point is sound then.
    reason = ("full", "bitmap-missing") if end == "killed" else INCREMENTAL
    assert modes(point) == {"vda": reason}
    assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[point["checkpoint"]])
    history.assert_kept()


def test_libvirtd_killed_while_a_vm_is_copied(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host)
    history = History(vm, vmkeep, tpm=False)
    history.keep()
    vm.write_random("vda", start=0, length=16 * MiB, seed=2)
    truth = history.now()
    with held_in_its_copy(vm, vmkeep) as process:
        host.restart_libvirtd(signal.SIGKILL)
    status, document = finished(process)

    if status == 0:
        history.add(document["point"], truth)
    else:
        assert document["error"]["code"] in ("job-aborted", "hypervisor-unavailable"), document
    assert vm.state() is VmState.PAUSED
    vm.write_random("vda", start=20 * MiB, length=64 * KiB, seed=3)
    point = history.keep()
    assert checkpoints(vm) == [point["checkpoint"]]
    history.assert_kept()


def test_backup_job_of_somebody_else_is_not_disturbed(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host)
    with vm.own_backup_job(["vda"], checkpoint="theirs"):
        began = time.monotonic()
        failure = vmkeep.fails("backup", "guest")
        assert time.monotonic() - began < 20  # libvirt itself would wait 30 s, with the guest suspended
        assert checkpoints(vm) == ["theirs"]
        assert has_backup_job(vm)
    assert (failure.code, failure.status, failure.error["vm"]) == ("vm-busy", 11, "guest")
    vm.write_random("vda", start=0, length=64 * KiB, seed=3)
    point = vmkeep.backup("guest")
    assert checkpoints(vm) == sorted(["theirs", point["checkpoint"]])
    Truth.of(vm, tpm=False).assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
