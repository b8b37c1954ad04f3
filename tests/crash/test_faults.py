"""What dies around vmkeep during a point: its guardian, libvirtd, QEMU; and signals."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator

import pytest

from tests.crash.bed import KILLED, Bed, Trap, wait_until
from tests.rig import Disk, Host, MiB, Vm, VmState
from tests.rig.cli import Vmkeep, finished
from tests.system.truth import Truth, assert_left_alone, checkpoints, has_backup_job

pytestmark = [pytest.mark.system, pytest.mark.crash]

_BEGUN = Trap("after", "vmkeep.hypervisor.domain:Domain.begin_backup", "hold")
_COPYING = Trap("after", "vmkeep.host.points.point:capture_disk", "hold")
_STORED = Trap("after", "vmkeep.flows.take_point:record_point", "hold")


@pytest.mark.parametrize("trap", [_BEGUN, _COPYING, _STORED], ids=lambda trap: trap.place.rpartition(":")[2])
def test_next_start_makes_right_what_vmkeep_and_its_guardian_left(bed: Bed, trap: Trap) -> None:
    bed.change()
    killed_content = bed.content.copy()
    bed.zygote.start(["backup", bed.vm.name], traps=[trap])
    bed.zygote.wait_reached()
    bed.kill_guardians()
    bed.zygote.kill()
    assert bed.zygote.finish().status == KILLED
    assert has_backup_job(bed.vm)  # so there is something to make right
    assert bed.vm.state() is (VmState.PAUSED if trap is _BEGUN else VmState.RUNNING)

    recovered = bed.next_backup_and_prove_all(killed=killed_content)
    assert any("was undone" in told for told in recovered)
    assert bed.vm.state() is VmState.RUNNING


@pytest.mark.parametrize("trap", [_BEGUN, _COPYING], ids=lambda trap: trap.place.rpartition(":")[2])
def test_point_whose_guardian_is_killed_is_given_up_and_undone(bed: Bed, trap: Trap) -> None:
    bed.change()
    before = checkpoints(bed.vm)
    bed.zygote.start(["backup", bed.vm.name], traps=[trap])
    bed.zygote.wait_reached()
    bed.kill_guardians()
    bed.zygote.go.touch()
    error = bed.zygote.finish().error
    ended_at = time.monotonic()

    assert error["code"] == "job-aborted"
    bed.assert_safe(before, killed_at=ended_at)
    bed.next_backup_and_prove_all(killed=bed.content.copy())


def test_stored_point_stands_when_the_guardian_is_killed_at_its_end(bed: Bed) -> None:
    bed.change()
    truth = bed.content.copy()
    bed.zygote.start(["backup", bed.vm.name], traps=[_STORED])
    bed.zygote.wait_reached()
    bed.kill_guardians()
    bed.zygote.go.touch()
    point = bed.zygote.finish().acts[0]["point"]

    bed.assert_nothing_stale(point["checkpoint"])
    bed.truths[point["id"]] = truth
    bed.next_backup_and_prove_all(killed=truth)


@pytest.mark.parametrize("trap", [_COPYING, _STORED], ids=lambda trap: trap.place.rpartition(":")[2])
def test_libvirtd_killed_during_the_point(bed: Bed, trap: Trap) -> None:
    bed.change()
    truth = bed.content.copy()
    bed.zygote.start(["backup", bed.vm.name], traps=[trap])
    bed.zygote.wait_reached()
    bed.host.restart_libvirtd(signal.SIGKILL)
    bed.zygote.go.touch()
    outcome = bed.zygote.finish()

    if outcome.status == 0:
        bed.truths[outcome.acts[0]["point"]["id"]] = truth
    else:
        assert outcome.error["code"] in ("job-aborted", "hypervisor-unavailable")
    wait_until(lambda: bed.guardians() == [], "the guardian does not end")
    assert bed.vm.state() is VmState.RUNNING
    assert not has_backup_job(bed.vm)
    bed.next_backup_and_prove_all(killed=truth)


def test_qemu_killed_during_the_copy(bed: Bed) -> None:
    bed.change()
    bed.zygote.start(["backup", bed.vm.name], traps=[Trap("before", "vmkeep.host.points.point:capture_disk#2", "hold")])
    bed.zygote.wait_reached()
    pid = bed.host.path(f"/run/libvirt/qemu/{bed.vm.name}.pid").read_text().strip()
    bed.host.run(["kill", "-KILL", pid], check=True)
    wait_until(lambda: bed.vm.state() is VmState.OFF, "QEMU does not end")
    bed.zygote.go.touch()
    error = bed.zygote.finish().error

    assert error["code"] == "qemu-died", error
    bed.vm.start()
    bed.vm.settle()
    bed.next_backup_and_prove_all(killed=bed.content.copy(), incremental=False)  # QEMU's death broke the bitmaps


# -- signals, through the command itself -------------------------------------------------------------------------


@pytest.fixture
def large_vm(crash_host: Host) -> Iterator[tuple[Vm, Vmkeep]]:
    """A VM whose full point takes a second, with an installation of its own."""
    vm = crash_host.define("large", disks=[Disk("vda", 192 * MiB)], firmware="bios", tpm=False)
    vm.start(paused=True)
    for number in range(6):
        vm.write_random("vda", start=number * 32 * MiB, length=32 * MiB, seed=number)
    vm.resume()
    home = crash_host.dir / "large-home"
    yield vm, Vmkeep(crash_host, home=home)
    vm.delete()
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize(
    ("number", "status", "code"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signal_ends_a_backup_as_a_failure_does(
    large_vm: tuple[Vm, Vmkeep], number: signal.Signals, status: int, code: str
) -> None:
    vm, vmkeep = large_vm
    truth = Truth.of(vm, uefi=False, tpm=False)
    vmkeep.json("init")
    process = vmkeep.start("backup", vm.name)
    wait_until(lambda: has_backup_job(vm), "the backup does not begin", 20)
    process.send_signal(number)
    ended, document = finished(process)

    assert (ended, document["error"]["code"]) == (status, code)
    assert_left_alone(vm)
    for name in ("owners", "guards", "locks"):
        assert list((vmkeep.home / name).iterdir()) == []
    assert vmkeep.json("points")["points"] == []
    point = vmkeep.backup(vm.name)
    output = vmkeep.host.dir / "work" / f"after-{status}"
    truth.assert_files(vmkeep.restore(point, output))
    shutil.rmtree(output)
