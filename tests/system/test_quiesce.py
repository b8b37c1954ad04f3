"""Points with the guest's file systems frozen by its agent: clean on the disk, thawed afterwards, or refused."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator

import libvirt_qemu
import pytest

from tests.guest import LinuxGuest
from tests.guest.files import make_file_system, needs_recovery
from tests.rig import Disk, Host, MiB, Vm, VmState, read_offline_image
from tests.rig.cli import Vmkeep
from tests.system.truth import assert_left_alone, checkpoints

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def guest(session_host: Host) -> Iterator[LinuxGuest]:
    """A guest with its agent and an ext4 file system in /mnt; its boot costs seconds, so tests share it."""
    session_host.clear()
    disks = [Disk("vda", 16 * MiB)]
    with LinuxGuest.define(session_host, "linux", disks=disks, agent=True, whole=False).boot() as guest:
        make_file_system(guest)
        yield guest
    session_host.clear()


@pytest.fixture(scope="module")
def vmkeep_there(guest: LinuxGuest) -> Vmkeep:
    return Vmkeep(guest.vm.host)


def _agent(vm: Vm, command: str) -> object:
    """Ask the agent as libvirt's own tools do."""
    answer = libvirt_qemu.qemuAgentCommand(vm.domain, json.dumps({"execute": command}), 5, 0)
    return json.loads(answer)["return"]


def _assert_thawed(guest: LinuxGuest) -> None:
    assert _agent(guest.vm, "guest-fsfreeze-status") == "thawed"
    guest.run("date > /mnt/thawed && sync", timeout_seconds=5)  # would wait in a frozen file system


def _image(vmkeep: Vmkeep, point: dict[str, object], name: str) -> bytes:
    return read_offline_image(vmkeep.restore(point, vmkeep.host.dir / "work" / name) / "vda.qcow2")


def test_file_system_in_a_quiesced_point_is_whole_without_its_journal(guest: LinuxGuest, vmkeep_there: Vmkeep) -> None:
    guest.run("printf only-in-%s memory > /mnt/first")  # not synchronised: the kernel writes it seconds later
    plain = _image(vmkeep_there, vmkeep_there.backup("linux"), "plain")
    guest.run("printf written-%s out > /mnt/second")
    point = vmkeep_there.backup("linux", "--quiesce")
    _assert_thawed(guest)
    quiesced = _image(vmkeep_there, point, "quiesced")

    assert needs_recovery(plain)
    assert b"only-in-memory" not in plain
    assert not needs_recovery(quiesced)
    assert b"only-in-memory" in quiesced
    assert b"written-out" in quiesced
    assert point["kind"] == "incremental"


def test_file_system_below_a_quiesced_snapshot_is_whole_without_its_journal(
    guest: LinuxGuest, vmkeep_there: Vmkeep
) -> None:
    guest.run("printf kept-%s below > /mnt/third")
    base = guest.vm.disk_path("vda")
    vmkeep_there.json("snapshot", "create", "linux", "--quiesce")
    _assert_thawed(guest)
    below = read_offline_image(base, "qcow2")
    assert not needs_recovery(below)
    assert b"kept-below" in below


def test_guest_writes_on_while_a_quiesced_point_is_copied(guest: LinuxGuest, vmkeep_there: Vmkeep) -> None:
    guest.run(
        "(while :; do cut -d ' ' -f 1 /proc/uptime >> /mnt/times; usleep 10000; done) < /dev/null & echo $! > writer"
    )
    time.sleep(0.5)
    vmkeep_there.backup("linux", "--quiesce")
    _assert_thawed(guest)
    guest.run("kill $(cat writer)")
    times = [float(line) for line in guest.run("cat /mnt/times").split()]
    longest = max(later - earlier for earlier, later in itertools.pairwise(times))
    assert longest < 3.0, f"the guest could not write for {longest} s"


def test_agent_that_hangs_is_an_error_before_the_guest_is_touched(guest: LinuxGuest, vmkeep_there: Vmkeep) -> None:
    before = checkpoints(guest.vm)
    guest.run("kill -STOP $(pidof qemu-ga)")
    try:
        failure = vmkeep_there.fails("backup", "linux", "--quiesce")
    finally:
        guest.run("kill -CONT $(pidof qemu-ga)")
    assert (failure.code, failure.error["vm"]) == ("agent-unavailable", "linux")
    assert_left_alone(guest.vm, checkpoints_before=before)
    _assert_thawed(guest)


def test_paused_guest_cannot_be_quiesced(guest: LinuxGuest, vmkeep_there: Vmkeep) -> None:
    before = checkpoints(guest.vm)
    guest.vm.suspend()
    try:
        failure = vmkeep_there.fails("backup", "linux", "--quiesce")
        assert failure.code == "agent-unavailable"
        assert_left_alone(guest.vm, state=VmState.PAUSED, checkpoints_before=before)
    finally:
        guest.vm.resume()
    _assert_thawed(guest)


def test_vm_without_an_agent_is_an_error_that_says_what_to_do(guest: LinuxGuest, vmkeep_there: Vmkeep) -> None:
    bare = guest.vm.host.define("bare", disks=[Disk("vda", 1 * MiB)])
    bare.start(paused=False)
    try:
        failure = vmkeep_there.fails("backup", "bare", "--quiesce")
        assert (failure.code, failure.error["vm"]) == ("agent-unavailable", "bare")
        assert "--quiesce" in failure.error["hint"]
        assert_left_alone(bare)
    finally:
        bare.delete()
