"""A snapshot is of the whole VM: libvirt has the disks, vmkeep the TPM state and UEFI variables of the same instant."""

from __future__ import annotations

import threading

import pytest

from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, assert_images_equal, read_offline_image
from tests.system.history import INCREMENTAL, Remembering, modes
from tests.system.offline import bitmaps, write_offline, zero_offline
from tests.system.snapshots import assert_nothing_left, create_snapshot, kept_snapshot, snapshots
from tests.system.truth import checkpoints

pytestmark = pytest.mark.system

_NVRAM_BYTES = 512  # what the rig changes of the UEFI variables, at the end


@pytest.fixture(scope="module")
def session_host(booting_session_host: Host) -> Host:
    """It is at work while snapshots are made."""
    return booting_session_host


@pytest.fixture
def vmkeep(host: Host) -> Remembering:
    return Remembering(host)


def _two_disks(host: Host, *, settled: bool = False) -> Vm:
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 4 * MiB)])
    vm.start(paused=not settled)
    if settled:
        vm.settle()
    return vm


def test_images_uefi_variables_and_tpm_below_a_snapshot_are_of_one_instant(host: Host, vmkeep: Remembering) -> None:
    """A counter is written to three places in turn, and the next backups are incremental and right."""
    vm = _two_disks(host, settled=True)
    vmkeep.backup("guest")
    nvram, first = vm.nvram(), vm.nvram()[-_NVRAM_BYTES]
    bases = {target: vm.disk_path(target) for target in ("vda", "vdb")}
    stop = threading.Event()

    def count() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            vm.write("vda", start=0, length=64 * KiB, pattern=number % 256)
            vm.write("vdb", start=4 * MiB - 64 * KiB, length=64 * KiB, pattern=number % 256)
            vm.change_nvram()

    writer = threading.Thread(target=count)
    writer.start()
    try:
        taken = create_snapshot(vmkeep, "guest", "before", "--description", "as it was")
    finally:
        stop.set()
        writer.join()

    assert vm.state() is VmState.RUNNING
    kept = kept_snapshot(vmkeep, vm, "before")
    below = {target: read_offline_image(path, "qcow2") for target, path in bases.items()}
    counters = [below["vda"][0], below["vdb"][-1], (kept.states["nvram"][-_NVRAM_BYTES] - first) % 256]
    steps = [(counters[0] - counter) % 256 for counter in counters]
    assert steps in ([0, 0, 0], [0, 0, 1], [0, 1, 1]), counters
    assert counters[0] > 0
    for target, place in (("vda", 0), ("vdb", 4 * MiB - 64 * KiB)):
        expected = bytearray(len(below[target]))
        expected[place : place + 64 * KiB] = below[target][place : place + 1] * (64 * KiB)
        assert_images_equal(below[target], bytes(expected), target)
    assert kept.states["nvram"][:-_NVRAM_BYTES] == nvram[:-_NVRAM_BYTES]
    assert kept.states["tpm"] == vm.tpm_state()
    (listed,) = snapshots(vm).values()
    assert listed.findtext("description") == "as it was"
    assert (kept.row.id, kept.row.creation_time) == (taken["id"], int(listed.findtext("creationTime") or 0))
    assert kept.row.current_point == vmkeep.json("points", "guest")["points"][-1]["id"]
    assert 0 < taken["pause_ms"] < 3000
    assert_nothing_left(vmkeep, vm)

    vm.write_random("vda", start=2 * MiB, length=100 * KiB, seed=1)
    running = vmkeep.backup("guest")
    vm.write_random("vda", start=4 * MiB, length=100 * KiB, seed=2)
    vm.destroy()
    off = vmkeep.backup("guest")
    for point in (running, off):
        assert set(modes(point).values()) == {INCREMENTAL}
    vmkeep.assert_all_kept()


def test_snapshots_of_a_vm_that_is_off_keep_every_checkpoint_and_the_next_points_are_incremental(
    host: Host, vmkeep: Remembering
) -> None:
    """What was written before and after each overlay stands in the bitmaps of several images, and all of it counts."""
    vm = _two_disks(host)
    for name in ("theirs", "theirs-too"):
        host.run(["virsh", "checkpoint-create-as", "guest", name], check=True)
    vmkeep.backup("guest")
    vm.write_random("vda", start=1 * MiB, length=100 * KiB, seed=1)
    create_snapshot(vmkeep, "guest", "on")
    vm.write_random("vda", start=2 * MiB, length=100 * KiB, seed=2)
    vm.destroy()
    before = {name: _checkpoint(host, name) for name in checkpoints(vm)}
    marks = {target: set(bitmaps(vm.disk_path(target))) for target in ("vda", "vdb")}
    base, below, tpm = vm.disk_path("vda"), vm.read_image("vda"), vm.tpm_state()
    snapshot = create_snapshot(vmkeep, "guest", "off")

    assert (vm.state(), snapshot["was"]) == (VmState.OFF, "off")
    assert {name: _checkpoint(host, name) for name in checkpoints(vm)} == before
    assert {target: set(bitmaps(vm.disk_path(target))) for target in ("vda", "vdb")} == marks
    assert kept_snapshot(vmkeep, vm, "off").states["tpm"] == tpm
    write_offline(vm, "vda", b"\x22" * (100 * KiB), start=3 * MiB)
    zero_offline(vm, "vda", start=1 * MiB, length=4 * KiB)
    assert_images_equal(read_offline_image(base, "qcow2"), below)
    off = vmkeep.backup("guest")
    vm.start(paused=True)
    vm.write_random("vdb", start=1 * MiB, length=100 * KiB, seed=4)
    on = vmkeep.backup("guest")
    for point in (off, on):
        assert set(modes(point).values()) == {INCREMENTAL}
    vmkeep.assert_all_kept()
    assert_nothing_left(vmkeep, vm)


def _checkpoint(host: Host, name: str) -> str:
    return host.run(["virsh", "checkpoint-dumpxml", "guest", name, "--security-info"], check=True).stdout


def test_snapshot_with_memory_of_a_running_vm_is_one_that_runs_when_it_is_gone_back_to(
    host: Host, vmkeep: Remembering
) -> None:
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 4 * MiB, format="raw")])
    vm.start()
    vm.settle()
    base = vm.disk_path("vda")
    vm.write_random("vda", start=1 * MiB, length=100 * KiB, seed=1)
    image, nvram, tpm = vm.read_image("vda"), vm.nvram(), vm.tpm_state()
    memory = host.dir / "disks" / "guest.memory"
    snapshot = create_snapshot(vmkeep, "guest", "with", "--memspec", str(memory))
    vm.write("vda", start=0, length=64 * KiB)

    assert vm.state() is VmState.RUNNING
    assert snapshot["memory"] == str(memory)
    assert memory.stat().st_size > MiB
    listed = snapshots(vm)["with"]
    assert listed.findtext("state") == "running"  # libvirt saw it suspended
    assert vm.domain.snapshotCurrent().getName() == "with"
    assert_images_equal(read_offline_image(base, "qcow2"), image)
    assert kept_snapshot(vmkeep, vm, "with").states == {"nvram": nvram, "tpm": tpm}
    assert_nothing_left(vmkeep, vm)


def test_internal_snapshot_needs_leave_when_images_have_bitmaps(host: Host, vmkeep: Remembering) -> None:
    vm = host.define("old", disks=[Disk("vda", 8 * MiB)], firmware="bios", tpm=False)
    vm.start()
    plain = create_snapshot(vmkeep, "old", "plain", "--internal")
    assert (plain["kind"], plain["disks"]) == ("internal", [{"target": "vda", "overlay": None}])
    assert snapshots(vm)["plain"].findtext("state") == "running"
    assert kept_snapshot(vmkeep, vm, "plain").states == {}
    assert vm.state() is VmState.RUNNING
    vmkeep.backup("old")
    refused = vmkeep.fails("snapshot", "create", "old", "marked", "--internal")
    assert refused.code == "choice-required"
    assert "--with-bitmaps" in str(refused.error["hint"])
    vm.destroy()
    before = checkpoints(vm)
    create_snapshot(vmkeep, "old", "marked", "--internal", "--with-bitmaps")
    assert checkpoints(vm) == before
    assert sorted(snapshots(vm)) == ["marked", "plain"]
    assert set(modes(vmkeep.backup("old")).values()) == {INCREMENTAL}
    vmkeep.assert_all_kept()
