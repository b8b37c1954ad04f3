"""vmkeep is killed with SIGKILL while the guest's file systems are frozen: they are thawed, by the guardian alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import libvirt_qemu
import pytest

from tests.crash.bed import KILLED, Trap, Zygote
from tests.guest import LinuxGuest
from tests.guest.files import make_file_system
from tests.rig import Disk, Host, MiB, VmState
from tests.system.truth import checkpoints, has_backup_job

pytestmark = [pytest.mark.system, pytest.mark.crash]

_DOMAIN = "vmkeep.hypervisor.domain:Domain."


@dataclass(frozen=True, slots=True)
class QuietGuest:
    """A guest with its agent and a mounted file system, and vmkeep in killable processes."""

    guest: LinuxGuest
    zygote: Zygote


@pytest.fixture(scope="module")
def quiet(crash_host: Host) -> Iterator[QuietGuest]:
    home = crash_host.dir / "work" / "quiesce"  # not the home of the other crash tests: they count its points
    home.mkdir()
    disks = [Disk("vda", 8 * MiB)]
    with LinuxGuest.define(crash_host, "linux", disks=disks, agent=True, whole=False).boot() as guest:
        make_file_system(guest)
        zygote = Zygote(crash_host, home)
        zygote.run(["backup", "linux"]).acts  # noqa: B018  raises when it failed
        yield QuietGuest(guest, zygote)
        zygote.close()
    guest.vm.delete()


@pytest.mark.in_turn(2)
@pytest.mark.parametrize(
    "trap",
    [
        Trap("during", _DOMAIN + "freeze", delay_ms=3),
        Trap("during", _DOMAIN + "freeze", delay_ms=30),
        Trap("after", _DOMAIN + "freeze"),
        Trap("after", _DOMAIN + "suspend"),
        Trap("during", _DOMAIN + "begin_backup", delay_ms=15),
        Trap("after", _DOMAIN + "resume"),
        Trap("during", _DOMAIN + "thaw", delay_ms=3),
    ],
    ids=lambda trap: f"{trap.when}-{trap.place.rpartition('.')[2]}-{trap.delay_ms:g}ms",
)
def test_frozen_guest_is_thawed_when_its_point_is_killed(quiet: QuietGuest, trap: Trap) -> None:
    vm, before = quiet.guest.vm, checkpoints(quiet.guest.vm)
    outcome = quiet.zygote.run(["backup", "linux", "quiesce"], traps=[trap])
    killed_at = time.monotonic()
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"

    quiet.guest.run("date > /mnt/thawed && sync", timeout_seconds=5)  # waits as long as the file system is frozen
    thawed_seconds = time.monotonic() - killed_at
    assert thawed_seconds < 3, f"frozen for {thawed_seconds:.1f} s after the kill"
    _wait_for_guardian(quiet, before)
    status = libvirt_qemu.qemuAgentCommand(vm.domain, '{"execute": "guest-fsfreeze-status"}', 5, 0)
    assert json.loads(status)["return"] == "thawed"
    taken = quiet.zygote.run(["backup", "linux", "quiesce"]).acts[0]
    assert (taken["point"]["kind"], taken["warnings"]) == ("incremental", [])


def test_frozen_guest_is_thawed_when_its_snapshot_is_killed_and_the_snapshot_is_whole(quiet: QuietGuest) -> None:
    vm, before = quiet.guest.vm, checkpoints(quiet.guest.vm)
    trap = Trap("after", "vmkeep.hypervisor.snapshots:DomainSnapshots.create")
    outcome = quiet.zygote.run(["snapshot", "linux", "frozen", "quiesce"], traps=[trap])
    killed_at = time.monotonic()
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"

    quiet.guest.run("date > /mnt/thawed && sync", timeout_seconds=5)
    assert time.monotonic() - killed_at < 3
    _wait_for_guardian(quiet, before)
    kept = quiet.zygote.run(["kept", vm.uuid]).acts[0]
    assert "frozen" in kept


def _wait_for_guardian(quiet: QuietGuest, before: list[str]) -> None:
    """Wait until nothing of the killed point is left; nothing of vmkeep but the guardian runs."""
    vm = quiet.guest.vm
    deadline = time.monotonic() + 5
    while vm.state() is not VmState.RUNNING or has_backup_job(vm) or checkpoints(vm) != before:
        assert time.monotonic() < deadline, (vm.state(), has_backup_job(vm), checkpoints(vm), before)
        time.sleep(0.05)


def test_frozen_guest_is_thawed_when_vmkeep_is_stopped(quiet: QuietGuest) -> None:
    vm, before = quiet.guest.vm, checkpoints(quiet.guest.vm)
    quiet.zygote.start(
        ["backup", "linux", "quiesce"], traps=[Trap("after", "vmkeep.hypervisor.domain:Domain.freeze", "hold")]
    )
    quiet.zygote.wait_reached()
    quiet.zygote.stop()
    stopped_at = time.monotonic()
    quiet.guest.run("date > /mnt/thawed && sync", timeout_seconds=8)
    assert time.monotonic() - stopped_at < 6
    quiet.zygote.go.touch()
    quiet.zygote.go_on()
    assert quiet.zygote.finish().error["code"] == "job-aborted"
    _wait_for_guardian(quiet, before)
    assert vm.state() is VmState.RUNNING
