"""Several commands at one time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.rig import Disk, Host, MiB, Vm, VmState
from tests.rig.cli import Vmkeep, finished
from tests.system.truth import Truth, assert_left_alone, checkpoints, has_backup_job

pytestmark = pytest.mark.system


def _vm(host: Host, name: str) -> Vm:
    vm = host.define(name, disks=[Disk("vda", 32 * MiB)], tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=24 * MiB, seed=1)
    return vm


@contextmanager
def _held_in_its_copy(vm: Vm, vmkeep: Vmkeep) -> Iterator[subprocess.Popen[str]]:
    """Start a backup and stop its process (not its guardian) while the job runs; it goes on after the block."""
    process = vmkeep.start("backup", vm.name)
    deadline = time.monotonic() + 30
    while not has_backup_job(vm):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield process
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_second_backup_of_a_vm_is_refused_while_the_first_goes_on(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host, "guest")
    truth = Truth.of(vm, tpm=False)
    vmkeep.json("init")
    with _held_in_its_copy(vm, vmkeep) as process:
        failure = vmkeep.fails("backup", "guest")
        assert vmkeep.json("points")["points"] == []
        assert vmkeep.json("verify", "--all")["ok"] is True
        assert vmkeep.json("vm", "show", "guest")["vm"]["state"] == "paused"
    status, document = finished(process)

    assert (failure.code, failure.status, failure.error["vm"]) == ("vm-busy", 11, "guest")
    assert status == 0
    point = document["point"]
    assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[point["checkpoint"]])
    truth.assert_files(vmkeep.restore(point, host.dir / "work" / "out"))


def test_vm_restored_beside_a_running_backup_of_another(host: Host, vmkeep: Vmkeep) -> None:
    other, vm = _vm(host, "other"), _vm(host, "guest")
    truth = Truth.of(other, tpm=False)
    kept = vmkeep.backup("other")
    other.delete()
    with _held_in_its_copy(vm, vmkeep) as process:
        vmkeep.json("restore", kept["id"], "--as", "other")
    status, document = finished(process)

    assert status == 0
    truth.assert_vm(host.vm("other"))
    Truth.of(vm, tpm=False).assert_files(vmkeep.restore(document["point"], host.dir / "work" / "out"))


def test_two_vms_kept_at_once_on_a_host_that_was_never_used(host: Host, vmkeep: Vmkeep) -> None:
    vms = [_vm(host, name) for name in ("one", "two")]
    processes = [vmkeep.start("backup", vm.name) for vm in vms]
    results = [finished(process) for process in processes]

    assert [status for status, _ in results] == [0, 0], repr(results)
    for vm, (_, document) in zip(vms, results, strict=True):
        point = document["point"]
        assert checkpoints(vm) == [point["checkpoint"]]
        Truth.of(vm, tpm=False).assert_files(vmkeep.restore(point, host.dir / "work" / vm.name))
    assert vmkeep.json("verify", "--all")["ok"] is True


@pytest.mark.parametrize(("end", "status", "code"), [("TERM", 143, "terminated"), ("INT", 130, "interrupted")])
def test_backup_ended_by_a_signal_leaves_nothing(host: Host, vmkeep: Vmkeep, end: str, status: int, code: str) -> None:
    vm = _vm(host, "guest")
    vmkeep.json("init")
    with _held_in_its_copy(vm, vmkeep) as process:
        os.kill(process.pid, signal.Signals[f"SIG{end}"])
    ended, document = finished(process)

    assert (ended, document["error"]["code"]) == (status, code)
    assert_left_alone(vm, state=VmState.PAUSED)
    assert vmkeep.json("points")["points"] == []
    point = vmkeep.backup("guest")
    Truth.of(vm, tpm=False).assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
