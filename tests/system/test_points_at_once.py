"""Several commands at one time."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from tests.crash.bed import wait_until
from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, random_bytes
from tests.rig.cli import Vmkeep, finished
from tests.system.held import held_in_its_copy
from tests.system.history import INCREMENTAL, History, assert_all_kept, modes
from tests.system.offline import write_offline
from tests.system.truth import Truth, assert_left_alone, checkpoints, has_backup_job

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


def test_backup_waits_for_the_vm_when_it_is_told_to_and_runs_by_itself(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host, "guest")
    vmkeep.json("init")
    with held_in_its_copy(vm, vmkeep) as first:
        waiting = vmkeep.start("backup", "guest", "--wait", "10m")
        job = vmkeep.start("schedule", "run", "backup")
        # The engines of all three have started, and two of them find the VM held.
        owners = vmkeep.home / "owners"
        wait_until(lambda: len(list(owners.glob("*.lock"))) == 3, "not all of them begin", 60)
        assert vmkeep.json("points")["points"] == []
    point = finished(first)[1]["point"]
    assert finished(waiting)[0] == 0
    status, document = finished(job)
    assert (status, document["run"]["vms"], document["run"]["failures"]) == (0, ["guest"], [])
    points = vmkeep.json("points")["points"]
    assert [each["kind"] for each in points] == ["full", "incremental", "incremental"]
    assert points[0]["id"] == point["id"]
    # None was tried in vain meanwhile; when the VM is let go of, one of the two may find that the other was first.
    states = [each["state"] for each in vmkeep.json("log")["operations"]]
    assert states.count("done") == 3
    assert states.count("failed") <= 1

    (vmkeep.home / "vmkeep.toml").write_text('objective = "1h"\n')
    found = vmkeep.json("status")["status"]
    assert [(each["name"], each["protection"], each["point"]) for each in found["vms"]] == [
        ("guest", "good", points[2]["id"])
    ]
    assert [(each["job"], each["runs"][0]["status"]) for each in found["jobs"]] == [("backup", 0)]
    assert found["needs"] == []
    assert found["space"]["points"] == 3


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


def test_six_vms_at_once_are_copied_two_at_a_time_and_all_are_right(host: Host, vmkeep: Vmkeep) -> None:
    """Six processes at the same time, then one command for all six; the memory stays what two points take."""
    vms = [_small_vm(host, number) for number in range(6)]
    histories = [History(vm, vmkeep, uefi=False, tpm=False) for vm in vms]
    vmkeep.json("init")
    started = Vmkeep(host, forked=False)  # whose memory is its own, and whose environment tells of its home
    with _Load(vmkeep) as load:
        processes = [started.start("backup", vm.name) for vm in vms]
        results = [finished(process) for process in processes]
    assert [status for status, _ in results] == [0] * 6, repr(results)
    for history, (_, document) in zip(histories, results, strict=True):
        history.add(document["point"], history.now())
    assert 1 <= load.most_points <= 2
    # A process that waits takes about 85 MiB with its guardian, one that copies 150 and more.
    assert load.most_memory_bytes < 1000 * MiB

    for vm in vms[:3]:  # the others are off
        vm.write_random("vda", start=0, length=64 * KiB, seed=9)
    with _Load(vmkeep) as load:
        points = {point["vm"]: point for point in started.json("backup", "--all")["points"]}
    for vm, history in zip(vms, histories, strict=True):
        assert modes(points[vm.name]) == {"vda": INCREMENTAL}
        history.add(points[vm.name], history.now())
    assert load.most_points == 1
    assert load.most_memory_bytes < 400 * MiB
    assert_all_kept(vmkeep, histories)


def test_point_that_waits_for_its_turn_can_be_ended_and_has_touched_no_guest(host: Host, vmkeep: Vmkeep) -> None:
    first, second = _small_vm(host, 0), _small_vm(host, 1)
    vmkeep.json("init")
    (vmkeep.home / "vmkeep.toml").write_text("points_at_once = 1\n")
    with held_in_its_copy(first, vmkeep) as holder:
        waiting = vmkeep.start("backup", second.name)
        locks = vmkeep.home / "locks"
        wait_until(lambda: (locks / f"{second.uuid}.lock").exists(), "the second one does not begin", 30)
        time.sleep(0.5)
        assert (second.state(), has_backup_job(second), checkpoints(second)) == (VmState.PAUSED, False, [])
        assert waiting.poll() is None
        waiting.send_signal(signal.SIGTERM)
        status, document = finished(waiting)
        assert (status, document["error"]["code"]) == (143, "terminated")
    status, document = finished(holder)
    assert status == 0
    Truth.of(first, uefi=False, tpm=False).assert_files(vmkeep.restore(document["point"], host.dir / "work" / "out"))


def _small_vm(host: Host, number: int) -> Vm:
    vm = host.define(f"vm{number}", disks=[Disk("vda", 16 * MiB)], firmware="bios", tpm=False, memory_mib=32)
    content = random_bytes(number, 8 * MiB)
    write_offline(vm, "vda", content, start=1 * MiB)
    if number < 3:
        vm.start(paused=True)
    return vm


class _Load:
    """How many points are under way at one time, and the memory of all processes of vmkeep, at most."""

    def __init__(self, vmkeep: Vmkeep) -> None:
        self._guards = vmkeep.home / "guards"
        self._home = f"VMKEEP_HOME={vmkeep.home}".encode()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.most_points = 0
        self.most_memory_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._ending.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ending.wait(0.05):
            self.most_points = max(self.most_points, len(list(self._guards.glob("*.json"))))
            processes = [path for path in Path("/proc").iterdir() if path.name.isdecimal()]
            memory = sum(_proportional_bytes(process, self._home) for process in processes)
            self.most_memory_bytes = max(self.most_memory_bytes, memory)


def _proportional_bytes(process: Path, home: bytes) -> int:
    """Return what a process takes, its share of what it has in common with others; 0 for one of somebody else."""
    try:
        if b"/python" not in (process / "cmdline").read_bytes() or home not in (process / "environ").read_bytes():
            return 0
        return int((process / "smaps_rollup").read_text().split("Pss:")[1].split()[0]) * KiB
    except (OSError, IndexError):
        return 0  # it ended just now
