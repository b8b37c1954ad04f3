"""Scratch runs out while a point is copied: the guest sees no error and loses no write, whatever its error policy."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.bed import Zygote, wait_until
from tests.rig import Disk, Host, KiB, MiB, VmState, read_offline_image
from tests.rig.cli import Started, Vmkeep
from tests.system.busy_guest import TARGETS, WritingGuest
from tests.system.held import held_at_a_read, held_in_its_copy
from tests.system.truth import assert_left_alone, has_backup_job

pytestmark = pytest.mark.system


@pytest.fixture
def small_scratch(host: Host, vmkeep: Vmkeep) -> Iterator[Path]:
    """A file system of 1 MiB inside the host, too small for what a guest may overwrite during a point."""
    directory = host.dir / "work" / "scratch"
    directory.mkdir()
    host.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "tmpfs", directory], check=True)
    (vmkeep.home / "vmkeep.toml").write_text(f'scratch_dir = "{directory}"\n')
    yield directory
    host.run(["umount", "--lazy", directory], check=True)


def _assert_guest_met_no_error(guest: WritingGuest, vmkeep: Vmkeep, scratch: Path) -> None:
    """The guest, which halts at an error, writes on; nothing is left; and what it wrote is all there."""
    guest.wait_written(256 * KiB)
    # A process that the guardian killed is not there to wait for it, and the files are the last that it removes.
    wait_until(lambda: not list((vmkeep.home / "guards").glob("*.json")), "the guardian does not end", 20)
    assert vmkeep.host.run(["ls", "-A", scratch]).stdout.split() in ([], ["filler"])
    assert_left_alone(guest.vm)
    (vmkeep.home / "vmkeep.toml").unlink()
    point = vmkeep.backup("writer")
    output = vmkeep.restore(point, vmkeep.host.dir / "work" / "out")
    guest.assert_of_one_instant({t: read_offline_image(output / f"{t}.qcow2", "qcow2") for t in TARGETS})


def test_scratch_without_room_for_its_own_tables_is_told_as_full(
    host: Host, vmkeep: Vmkeep, small_scratch: Path
) -> None:
    host.run(["mount", "-o", "remount,size=8k", small_scratch], check=True)
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB)], firmware="bios", tpm=False)
    vm.start(paused=True)
    refused = vmkeep.fails("backup", "guest")
    assert (refused.code, refused.status) == ("no-space", 34)
    assert host.run(["ls", "-A", small_scratch]).stdout == ""
    assert_left_alone(vm, state=VmState.PAUSED)


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("policy", [None, "stop", "enospace"])
def test_guest_that_fills_the_scratch_runs_on_and_sees_no_error(
    host: Host, vmkeep: Vmkeep, zygote: Zygote, small_scratch: Path, policy: str | None
) -> None:
    guest = WritingGuest(host, "writer", policies=(policy, policy))
    with held_at_a_read(guest.vm, zygote):
        _assert_saved(guest)
    ended = zygote.printed()

    error = json.loads(ended.err)["error"]
    assert (ended.status, error["code"]) == (32, "job-aborted")
    assert "scratch" in error["message"]
    _assert_guest_met_no_error(guest, vmkeep, small_scratch)


def test_guest_is_saved_from_full_scratch_also_when_vmkeep_stands_still_in_the_middle_of_a_reply(
    host: Host, vmkeep: Vmkeep, small_scratch: Path
) -> None:
    """QEMU cannot stop the guest before the reply is taken or the client is dead, and would hang for ever."""
    guest = WritingGuest(host, "writer", size=32 * MiB)
    guest.change(start=8 * MiB, length=24 * MiB, seed=7)
    with held_in_its_copy(guest.vm, vmkeep) as process:
        _assert_saved(guest)
    _assert_ended(process)
    _assert_guest_met_no_error(guest, vmkeep, small_scratch)


def _assert_ended(process: Started) -> None:
    """Fail unless a process that stood still reports the end of the job, or was killed because it was in the way."""
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, 32)


def _assert_saved(guest: WritingGuest) -> None:
    # Most of it is the emulated guest, which has the scratch to fill first: on a busy machine 20 s were not enough.
    wait_until(lambda: not has_backup_job(guest.vm), "the guardian does not end the job", 90)
    wait_until(lambda: guest.vm.state() is VmState.RUNNING, "the guardian does not resume the VM", 40)


def test_guest_that_full_scratch_would_not_stop_gets_a_point_only_as_long_as_there_is_room(
    host: Host, vmkeep: Vmkeep, small_scratch: Path
) -> None:
    guest = WritingGuest(host, "writer", policies=("report", "ignore"))
    refused = vmkeep.fails("backup", "writer")
    assert (refused.code, refused.status) == ("no-space", 34)
    for word in ("vda", "report", "vdb", "ignore"):
        assert word in refused.error["message"]
    assert_left_alone(guest.vm)

    host.run(["mount", "-o", "remount,size=24m", small_scratch], check=True)
    with held_in_its_copy(guest.vm, vmkeep) as process:
        guest.wait_written(1 * MiB)
        assert has_backup_job(guest.vm)  # with room for both disks the guest may overwrite what it likes
        host.run(["fallocate", "-l", "16M", small_scratch / "filler"], check=True)
        wait_until(lambda: not has_backup_job(guest.vm), "the guardian does not end the job", 40)
    _assert_ended(process)
    _assert_guest_met_no_error(guest, vmkeep, small_scratch)
