"""What dies or fills up around vmkeep during a point: its guardian, libvirtd, QEMU, scratch; and signals."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.bed import KILLED, Bed, Trap, Zygote, wait_until
from tests.rig import Disk, Host, KiB, MiB, Vm, VmState
from tests.rig.cli import Vmkeep, finished
from tests.system.truth import Truth, assert_left_alone, checkpoints, has_backup_job

pytestmark = [pytest.mark.system, pytest.mark.crash]

_BEGUN = Trap("after", "vmkeep.hypervisor.domain:Domain.begin_backup", "hold")
_COPYING = Trap("after", "vmkeep.host.point:capture_disk", "hold")
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
    bed.zygote.start(["backup", bed.vm.name], traps=[Trap("before", "vmkeep.host.point:capture_disk#2", "hold")])
    bed.zygote.wait_reached()
    pid = bed.host.path(f"/run/libvirt/qemu/{bed.vm.name}.pid").read_text().strip()
    bed.host.run(["kill", "-KILL", pid], check=True)
    wait_until(lambda: bed.vm.state() is VmState.OFF, "QEMU does not end")
    bed.zygote.go.touch()
    error = bed.zygote.finish().error

    assert error["code"] == "job-aborted", error
    assert "stopped" in error["message"]
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


# -- scratch -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_scratch(crash_host: Host) -> Iterator[Path]:
    """A file system of 1 MiB inside the host, too small for what a guest may overwrite during a point."""
    directory = crash_host.dir / "scratch"
    directory.mkdir()
    crash_host.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "tmpfs", directory], check=True)
    yield directory
    crash_host.run(["umount", "--lazy", directory], check=True)
    directory.rmdir()


@pytest.fixture
def writing_vm(crash_host: Host) -> Iterator[Vm]:
    """A VM whose guest is a boot sector that writes 32 KiB at each clock tick through the device, round 2 MiB for ever.

    The first round is over when this returns: only what overwrites data goes into the scratch.

    The rig's own writes do not go through the device, so no error policy applies to them and nothing would stop.
    """
    vm = crash_host.define("writer", disks=[Disk("vda", 16 * MiB)], firmware="bios", tpm=False)
    vm.start(paused=True)
    vm.write_bytes("vda", start=0, content=_boot_sector(first=2048, end=2048 + 2 * MiB // 512))
    vm.resume()
    wait_until(lambda: _written_bytes(vm) > 2 * MiB + 256 * KiB, "the guest does not write", 60)
    yield vm
    vm.delete()


def test_guest_that_fills_the_scratch_runs_on_and_sees_no_error(
    crash_host: Host, writing_vm: Vm, small_scratch: Path
) -> None:
    home = crash_host.dir / "writer-home"
    home.mkdir()
    settings = home / "vmkeep.toml"
    settings.write_text(f'scratch_dir = "{small_scratch}"\n')
    zygote = Zygote(crash_host, home)
    try:
        zygote.start(["backup", "writer"], traps=[Trap("before", "vmkeep.host.point:capture_disk", "hold")])
        zygote.wait_reached()
        assert has_backup_job(writing_vm)
        wait_until(lambda: not has_backup_job(writing_vm), "the guardian does not end the job", 20)
        wait_until(lambda: writing_vm.state() is VmState.RUNNING, "the guardian does not resume the VM", 3)
        zygote.go.touch()
        error = zygote.finish().error

        assert error["code"] == "job-aborted", error
        assert "scratch" in error["message"]
        assert crash_host.run(["ls", "-A", small_scratch]).stdout == ""
        assert_left_alone(writing_vm)
        before = _written_bytes(writing_vm)  # at an error the guest would have halted
        wait_until(lambda: _written_bytes(writing_vm) > before + 64 * KiB, "the guest does not write any more")

        settings.unlink()
        writing_vm.suspend()
        vmkeep = Vmkeep(crash_host, home=home)
        point = vmkeep.backup("writer")
        output = crash_host.dir / "work" / "writer"
        Truth.of(writing_vm, uefi=False, tpm=False).assert_files(vmkeep.restore(point, output))
        shutil.rmtree(output)
    finally:
        zygote.close()
        shutil.rmtree(home)


def _boot_sector(*, first: int, end: int) -> bytes:
    """Return a program for the BIOS that writes 64 sectors at each tick, from ``first`` to ``end`` and again.

    After a write that failed it halts for ever.
    """
    code = bytes.fromhex(
        "fa 31c0 8ed8 8ec0 8ed0 bc007c fb"  # no segments, stack below the code
        "8816417c"  # keep the drive number
        "b443 b000 8a16417c be447c cd13"  # loop: extended write of the packet
        "721d"  # to the end when it failed
        "6683064c7c40"  # 64 sectors on
    )
    code += bytes.fromhex("66813e4c7c") + end.to_bytes(4, "little") + bytes.fromhex("7209")
    code += bytes.fromhex("66c7064c7c") + first.to_bytes(4, "little")
    code += bytes.fromhex("f4 ebd4 fa f4 ebfd 00 0000")  # wait for the tick, loop; halt; drive number, padding
    code += bytes.fromhex("1000 4000 0080 0000") + first.to_bytes(8, "little")  # the packet: 64 sectors from 0:8000
    return code.ljust(510, b"\0") + b"\x55\xaa"


def _written_bytes(vm: Vm) -> int:
    return int(vm.domain.blockStats("vda")[3])
