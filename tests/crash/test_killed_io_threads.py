"""vmkeep is killed while it has connections to disks in I/O threads, on both buses: QEMU 7.2 would die of their end."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.crash.bed import KILLED, Bed, Content, Trap, Zygote
from tests.rig import Disk, Host, KiB, MiB, assert_images_equal
from tests.rig.cli import Vmkeep
from tests.system.busy_guest import wait_until_in_io_thread
from tests.system.truth import checkpoints

pytestmark = [pytest.mark.system, pytest.mark.crash]

_CONNECTION = "vmkeep.transfer.connections:NbdConnection"
_IN_THE_COPY = [
    Trap("after", "vmkeep.host.guard.clients:Channel.take"),
    # In the handshake, and when it is over and the guardian does not know.
    *(Trap("during", _CONNECTION, delay_ms=delay) for delay in (0, 0.2, 0.5)),
    Trap("after", _CONNECTION),
    Trap("after", f"{_CONNECTION}#3"),
    Trap("during", "vmkeep.transfer.nbd:NbdConnection.status"),
    Trap("before", "vmkeep.transfer.nbd:NbdConnection.read"),
    *(Trap("during", "vmkeep.transfer.nbd:NbdConnection.read", delay_ms=delay) for delay in (0, 0.2)),
    Trap("after", "vmkeep.host.points.point:capture_disk#2"),
]
_WHEN_STORED = [
    Trap("after", "vmkeep.flows.take_point:record_point"),
    Trap("during", "vmkeep.hypervisor.domain:Domain.abort_backup"),
    Trap("after", "vmkeep.hypervisor.domain:Domain.abort_backup"),
    Trap("before", "vmkeep.host.points.running:remove_leavings"),
]
_TRAPS = [*_IN_THE_COPY, *_WHEN_STORED]


@pytest.fixture(scope="module")
def threaded_bed() -> Iterator[Bed]:
    """A running VM with two disks in I/O threads and a point."""
    with Host("crash") as host:
        disks = [Disk("vda", 6 * MiB, iothread=True), Disk("sda", 2 * MiB + 512, bus="scsi", iothread=True)]
        vm = host.define("guest", disks=disks, firmware="bios", tpm=False)
        vm.start()
        wait_until_in_io_thread(vm)
        home = host.dir / "home"
        bed = Bed(host, vm, Zygote(host, home), home, Content({disk.target: bytearray() for disk in disks}))
        bed.zygote.run(["backup", vm.name])
        yield bed
        bed.zygote.close()


def _name(trap: Trap) -> str:
    return f"{trap.when}-{trap.place.rpartition(':')[2]}+{trap.delay_ms:g}ms"


@pytest.mark.in_turn(5)
@pytest.mark.parametrize("trap", _TRAPS, ids=_name)
def test_guest_lives_when_vmkeep_is_killed_among_its_connections(threaded_bed: Bed, trap: Trap) -> None:
    bed = threaded_bed
    for target in bed.content.disks:
        bed.vm.write(target, start=_TRAPS.index(trap) * 64 * KiB, length=160 * KiB, pattern=_TRAPS.index(trap) + 1)
    before = checkpoints(bed.vm)
    outcome = bed.zygote.run(["backup", bed.vm.name], traps=[trap])
    killed_at = time.monotonic()
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    stored = trap in _WHEN_STORED
    bed.assert_safe(before, killed_at=killed_at, new_allowed=stored, old_gone_allowed=stored)


def test_point_after_all_of_them_is_incremental_and_whole(threaded_bed: Bed) -> None:
    bed = threaded_bed
    (taken,) = bed.zygote.run(["backup", bed.vm.name]).acts
    assert taken["point"]["kind"] == "incremental"
    output = bed.host.dir / "work" / "out"
    Vmkeep(bed.host, home=bed.home).restore(taken["point"], output, "--format", "raw")
    for target in bed.content.disks:
        assert_images_equal((output / f"{target}.raw").read_bytes(), bed.vm.read_image(target), target)
