"""Several commands at one time."""

from __future__ import annotations

import pytest

from tests.rig import Disk, Host, MiB, Vm, VmState
from tests.rig.cli import Vmkeep, finished
from tests.system.held import held_in_its_copy
from tests.system.truth import Truth, assert_left_alone, checkpoints

pytestmark = pytest.mark.system


def _vm(host: Host, name: str) -> Vm:
    vm = host.define(name, disks=[Disk("vda", 32 * MiB)], tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=24 * MiB, seed=1)
    return vm


def test_second_backup_of_a_vm_is_refused_while_the_first_goes_on(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host, "guest")
    truth = Truth.of(vm, tpm=False)
    vmkeep.json("init")
    with held_in_its_copy(vm, vmkeep) as process:
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
    with held_in_its_copy(vm, vmkeep) as process:
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
