"""vmkeep is killed at every place of a point of a VM that is off: no bitmap is left, and the VM can start at any time.

As for running VMs, the guardian alone puts things right, and the same command takes the next point, incremental.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from tests.crash.bed import KILLED, Bed, Content, Trap
from tests.crash.walk import SHARES, need_effects
from tests.rig import VmState
from tests.system.truth import checkpoints
from tests.turns import sampled

pytestmark = [pytest.mark.system, pytest.mark.crash]

_GUARDIAN = "vmkeep.host.guard.guardian:"
_STOPPED = "vmkeep.host.points.stopped:"
_DOMAIN = "vmkeep.hypervisor.domain:Domain."


@dataclass(frozen=True, slots=True)
class Place:
    """Where the kill comes, and whether the point is stored by then, so that its bitmaps stay."""

    when: str
    place: str
    delay_ms: float = 0.0
    kept: bool = False
    record: bool = False

    def __str__(self) -> str:
        delay = f"+{self.delay_ms:g}ms" if self.when == "during" else ""
        return f"{self.when}-{self.place.rpartition(':')[2]}{delay}"


_PLACES = [
    Place("before", "vmkeep.host.guard.standby:subprocess.Popen", record=True),
    Place("after", _GUARDIAN + "Guardian.wait_ready"),
    Place("after", "vmkeep.transfer.server:ImageServer._wait_until_ready"),
    Place("before", _STOPPED + "add_bitmap"),
    Place("during", _STOPPED + "add_bitmap", 3),
    Place("during", _STOPPED + "add_bitmap", 10),
    Place("after", _STOPPED + "add_bitmap"),
    Place("after", _STOPPED + "add_bitmap#2"),
    Place("after", "vmkeep.host.vm.states:capture"),
    Place("before", _GUARDIAN + "Guardian._say"),
    Place("after", _GUARDIAN + "Guardian._say"),
    Place("before", "vmkeep.host.points.point:capture_disk"),
    Place("before", "vmkeep.transfer.nbd:NbdConnection.read"),
    Place("after", "vmkeep.host.points.point:capture_disk"),
    Place("after", "vmkeep.repository.writer:PointWriter.commit"),
    Place("before", _GUARDIAN + "Guardian._say#2"),
    Place("after", _GUARDIAN + "Guardian._say#2", kept=True),
    Place("after", "vmkeep.catalog.sql:SqlCatalog.record_point", kept=True),
    Place("before", _DOMAIN + "redefine_checkpoint", kept=True),
    Place("after", _DOMAIN + "redefine_checkpoint", kept=True),
    Place("after", _DOMAIN + "forget_checkpoint", kept=True),
    Place("before", "vmkeep.host.checkpoints.changes:remove_bitmap", kept=True),
    Place("after", "vmkeep.host.checkpoints.changes:remove_bitmap", kept=True),
    Place("after", "vmkeep.host.checkpoints.changes:remove_bitmap#2", kept=True),
    Place("after", _STOPPED + "remove_leavings", kept=True),
]


@pytest.mark.parametrize("place", sampled(_PLACES, 3), ids=str)
def test_killed_point_of_a_vm_that_is_off_leaves_nothing_and_loses_nothing(stopped_bed: Bed, place: Place) -> None:
    bed = stopped_bed
    killed = _kill(bed, place)
    bed.next_backup_and_prove_all(killed=killed)
    assert bed.vm.state() is VmState.OFF


@pytest.mark.parametrize("share", range(SHARES))
def test_point_of_a_vm_that_is_off_killed_at_any_effect_leaves_nothing(stopped_bed: Bed, share: int) -> None:
    need_effects()
    stopped_bed.walk_points(share)


def test_vm_that_is_started_right_after_the_kill_is_freed_of_the_bitmaps_by_the_guardian(stopped_bed: Bed) -> None:
    bed = stopped_bed
    bed.change()
    before = checkpoints(bed.vm)
    outcome = bed.zygote.run(["backup", bed.vm.name], traps=[Trap("before", "vmkeep.host.points.point:capture_disk")])
    bed.start_when_free()
    assert outcome.status == KILLED
    bed.assert_safe(before, state=VmState.PAUSED, killed_at=time.monotonic() + 1)
    bed.next_backup_and_prove_all(killed=bed.content.copy())
    bed.vm.destroy()
    assert len(bed.bitmaps()) == 1


def _kill(bed: Bed, place: Place) -> Content:
    """Kill a point at a place, and return what it would have held."""
    bed.change()
    before, killed = checkpoints(bed.vm), bed.content.copy()
    trap = Trap(place.when, place.place, delay_ms=place.delay_ms)
    outcome = bed.zygote.run(["backup", bed.vm.name], traps=[trap])
    killed_at = time.monotonic()
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    bed.assert_safe(
        before,
        state=VmState.OFF,
        killed_at=killed_at,
        new_allowed=place.kept,
        old_gone_allowed=place.kept,
        record_allowed=place.record,
    )
    return killed
