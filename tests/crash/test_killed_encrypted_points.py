"""vmkeep is killed in a point of an encrypted disk: no scratch, no bitmap and no secret of ours is left."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.crash.bed import KILLED, Bed, Content, Trap, Zygote
from tests.rig import Disk, Host, KiB, MiB, VmState, assert_images_equal, random_bytes
from tests.rig.cli import Vmkeep
from tests.system.offline import write_offline
from tests.system.truth import checkpoints

pytestmark = [pytest.mark.system, pytest.mark.crash]

_RUNNING = [
    Trap("after", "vmkeep.hypervisor.secrets:Secrets.keep_in_memory"),
    Trap("during", "vmkeep.host.points.scratch:create_image", delay_ms=500),
    Trap("after", "vmkeep.hypervisor.domain:Domain.begin_backup"),
    Trap("before", "vmkeep.host.points.point:capture_disk"),
]
_OFF = [Trap("after", "vmkeep.host.points.stopped:add_bitmap")]


@pytest.fixture(scope="module")
def bed(crash_host: Host) -> Iterator[Bed]:
    """A paused VM with an encrypted disk and one point."""
    secret = crash_host.secret()
    vm = crash_host.define("locked", disks=[Disk("vda", 4 * MiB, secret=secret)], firmware="bios", tpm=False)
    vm.start(paused=True)
    home = crash_host.dir / "home"
    bed = Bed(crash_host, vm, Zygote(crash_host, home), home, Content({"vda": bytearray(4 * MiB)}))
    bed.zygote.run(["backup", vm.name])
    yield bed
    bed.zygote.close()
    crash_host.clear()


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("trap", [*_RUNNING, *_OFF], ids=lambda trap: f"{trap.when}-{trap.place.rpartition(':')[2]}")
def test_killed_point_of_an_encrypted_disk_leaves_no_secret_and_no_scratch(bed: Bed, trap: Trap) -> None:
    if trap in _OFF:
        bed.vm.destroy()
    before, own = checkpoints(bed.vm), bed.host.secret_uuids()
    assert len(own) == 1
    outcome = bed.zygote.run(["backup", bed.vm.name], traps=[trap])
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    killed_at = time.monotonic()
    state = VmState.OFF if trap in _OFF else VmState.PAUSED
    bed.assert_safe(before, state=state, killed_at=killed_at)
    assert bed.host.secret_uuids() == own


def test_vm_that_is_paused_while_the_scratch_is_made_stays_paused(bed: Bed) -> None:
    bed.vm.destroy()
    bed.vm.start()
    before, own = checkpoints(bed.vm), bed.host.secret_uuids()
    for goes_on in (True, False):
        bed.zygote.start(
            ["backup", bed.vm.name], traps=[Trap("after", "vmkeep.host.points.scratch:create_image", "hold")]
        )
        bed.zygote.wait_reached()
        bed.vm.suspend()
        if goes_on:
            bed.zygote.go.touch()
            assert bed.zygote.finish().error["code"] == "vm-busy"
        else:
            bed.zygote.kill()
            assert bed.zygote.finish().status == KILLED
        bed.assert_safe(before, state=VmState.PAUSED, killed_at=time.monotonic())
        assert bed.host.secret_uuids() == own
        bed.vm.resume()


def test_next_point_after_all_of_them_is_incremental_and_whole_and_a_killed_return_to_it_is_finished(bed: Bed) -> None:
    bed.vm.destroy()
    bed.vm.start(paused=True)
    content = random_bytes(1, 64 * KiB)
    bed.vm.write_bytes("vda", start=1 * MiB, content=content)
    truth = bed.vm.read_image("vda")
    assert content in truth
    (taken,) = bed.zygote.run(["backup", bed.vm.name]).acts
    assert taken["point"]["kind"] == "incremental"
    output = Vmkeep(bed.host, home=bed.home).restore(
        taken["point"], bed.host.dir / "work" / "out", "--decrypt", "--format", "raw"
    )
    assert_images_equal((output / "vda.raw").read_bytes(), truth)

    bed.vm.destroy()
    write_offline(bed.vm, "vda", bytes([0x33]) * (128 * KiB), start=1 * MiB)
    place = Trap("after", "vmkeep.host.restores.overwriting:Overwriting._write_disk")
    restore = ["restore_in_place", taken["point"]["id"], bed.vm.name, None]
    assert bed.zygote.run(restore, traps=[place]).status == KILLED
    assert bed.zygote.run(["look"]).recovered
    assert_images_equal(bed.vm.read_image("vda"), truth)
    assert len(bed.host.secret_uuids()) == 1
