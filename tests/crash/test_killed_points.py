"""vmkeep is killed with SIGKILL at every place of a point: the guest is safe in 3 s, and nothing is lost.

Nothing of vmkeep runs between the kill and the first look: what makes the guest safe is the guardian alone. Then
the same command must take the next point, incremental, and every point must come back byte for byte.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from tests.crash.bed import KILLED, Bed, Trap
from tests.crash.walk import SHARES, need_effects
from tests.rig import VmState
from tests.system.truth import checkpoints
from tests.turns import sampled

pytestmark = [pytest.mark.system, pytest.mark.crash]

_DOMAIN = "vmkeep.hypervisor.domain:Domain."
_GUARDIAN = "vmkeep.host.guard.guardian:"
_STORE = "vmkeep.repository.store:"
_FLOW = "vmkeep.flows.take_point:"
_CATALOG = "vmkeep.catalog.sql:SqlCatalog."


@dataclass(frozen=True, slots=True)
class Place:
    """Where the kill comes, and what may be there afterwards until the next command."""

    when: str
    place: str
    delay_ms: float = 0.0
    kept: bool = False  # the point is stored: its checkpoint stays
    old_gone: bool = False  # the older checkpoint is being deleted
    record: bool = False  # killed before a guardian was there: its record may stay, the guest was not touched

    def __str__(self) -> str:
        delay = f"+{self.delay_ms:g}ms" if self.when == "during" else ""
        return f"{self.when}-{self.place.rpartition(':')[2]}{delay}"

    @property
    def trap(self) -> Trap:
        return Trap(self.when, self.place, delay_ms=self.delay_ms)


def _around(place: str, *delays_ms: float, kept: bool = False, old_gone: bool = False) -> list[Place]:
    return [
        Place("before", place, kept=kept),
        *(Place("during", place, delay, kept=kept, old_gone=old_gone) for delay in delays_ms),
        Place("after", place, kept=kept, old_gone=old_gone),
    ]


_BEFORE_THE_INSTANT = [
    *_around("vmkeep.locks:FileLock.try_acquire"),  # of the process
    *_around(_CATALOG + "begin_operation", 1),
    Place("before", "vmkeep.flows.plan:Plan.step"),
    Place("before", "vmkeep.host.points.desk:carry_out"),
    *_around("vmkeep.locks:FileLock.try_acquire#2"),  # of the VM
    *_around(_STORE + "ObjectStore.put"),  # the intent
    Place("before", _GUARDIAN + "Guardian.__init__"),
    Place("before", "vmkeep.host.guard.rescue:JobRecord.save", record=True),
    Place("after", "vmkeep.host.guard.rescue:JobRecord.save", record=True),
    Place("before", "vmkeep.host.guard.standby:subprocess.Popen", record=True),
    Place("after", "vmkeep.host.guard.standby:subprocess.Popen", record=True),
    Place("after", "vmkeep.host.guard.standby:Standby.hand_over"),
    Place("during", _GUARDIAN + "Guardian.wait_ready", 50),
    Place("during", _GUARDIAN + "Guardian.wait_ready", 150),
    Place("after", _GUARDIAN + "Guardian.wait_ready"),
]
_AT_THE_INSTANT = [
    Place("after", "vmkeep.host.points.running:make_scratch"),
    *_around(_GUARDIAN + "Guardian._say"),  # the stage of the instant
    *_around(_DOMAIN + "suspend", 0, 2),
    *_around(_DOMAIN + "begin_backup", 2, 15, 30, 45),
    *_around("vmkeep.host.vm.states:capture"),
    Place("after", "vmkeep.host.vm.states:capture#2"),
    *_around(_DOMAIN + "resume", 0, 2),
    *_around(_GUARDIAN + "Guardian._say#2", 0, 1),
]
_IN_THE_COPY = [
    Place("after", _FLOW + "open_point"),
    Place("after", "vmkeep.flows.plan:Plan.step"),
    Place("before", "vmkeep.host.points.point:capture_disk"),
    *_around("vmkeep.transfer.nbd:NbdConnection.read"),
    Place("after", "vmkeep.repository.writer:DiskWriter.record#2"),
    Place("after", "vmkeep.host.points.point:capture_disk"),
    Place("after", "vmkeep.host.points.point:capture_disk#2"),
    *_around("vmkeep.repository.writer:PointWriter.put_state"),
    *(
        place
        for number in range(2, 7)
        for place in (
            Place("after", f"{_STORE}Directory.put#{number}"),  # there, and not durable yet
            Place("after", f"{_STORE}ObjectStore.put#{number}"),
        )
    ),
    Place("before", _STORE + "ObjectStore.put#6"),  # of the point
    Place("after", "vmkeep.repository.known:KnownBlocks.add"),
    Place("before", _STORE + "ObjectStore.delete"),  # of the intent
    Place("after", "vmkeep.repository.writer:PointWriter.commit"),
    Place("after", _FLOW + "copy_point"),
    Place("after", "vmkeep.flows.plan:Plan.step#2"),
]
_WHEN_STORED = [
    Place("before", _GUARDIAN + "Guardian._say#3"),
    Place("during", _GUARDIAN + "Guardian._say#3", 0, kept=True),
    Place("after", _GUARDIAN + "Guardian._say#3", kept=True),
    Place("after", _FLOW + "keep_checkpoint", kept=True),
    Place("after", "vmkeep.flows.plan:Plan.step#3", kept=True),
    *_around(_CATALOG + "record_point", 1, kept=True),
    Place("after", "vmkeep.flows.plan:Plan.step#4", kept=True),
    *_around(_DOMAIN + "abort_backup", 0, 3, kept=True),
    *_around(_DOMAIN + "delete_checkpoint", 0, 5, kept=True, old_gone=True),
    *(
        Place(when, place, kept=True, old_gone=True)
        for when, place in (
            ("before", "vmkeep.host.points.running:remove_leavings"),
            ("after", "vmkeep.host.points.running:remove_leavings"),
            ("during", _GUARDIAN + "Guardian._say#4"),
            ("after", _GUARDIAN + "Guardian._say#4"),
            ("after", _FLOW + "close_point"),
            ("after", "vmkeep.flows.plan:Plan.step#5"),
            ("before", _CATALOG + "move_operation"),
            ("after", _CATALOG + "move_operation"),
        )
    ),
]


@pytest.mark.parametrize(
    "place",
    [
        *sampled(_BEFORE_THE_INSTANT, 2),
        *sampled(_AT_THE_INSTANT, 4),
        *sampled(_IN_THE_COPY, 2),
        *sampled(_WHEN_STORED, 2),
    ],
    ids=str,
)
def test_killed_point_leaves_a_running_guest_and_all_points(bed: Bed, place: Place) -> None:
    _kill_and_prove(bed, place, VmState.RUNNING)


_OF_A_PAUSED_VM = [
    Place("before", _DOMAIN + "begin_backup"),
    Place("during", _DOMAIN + "begin_backup", 15),
    Place("after", _DOMAIN + "begin_backup"),
    Place("before", _GUARDIAN + "Guardian._say#2"),
    Place("after", "vmkeep.host.points.point:capture_disk"),
    Place("after", _CATALOG + "record_point", kept=True),
    Place("before", _DOMAIN + "delete_checkpoint", kept=True),
]


@pytest.mark.parametrize("place", sampled(_OF_A_PAUSED_VM, 1), ids=str)
def test_vm_that_was_paused_stays_paused_when_its_point_is_killed(bed: Bed, place: Place) -> None:
    bed.vm.suspend()
    try:
        _kill_and_prove(bed, place, VmState.PAUSED)
    finally:
        bed.vm.resume()


def _kill_and_prove(bed: Bed, place: Place, state: VmState) -> None:
    bed.change()
    before, killed_content = checkpoints(bed.vm), bed.content.copy()
    outcome = bed.zygote.run(["backup", bed.vm.name], traps=[place.trap])
    killed_at = time.monotonic()
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    bed.assert_safe(
        before,
        state=state,
        killed_at=killed_at,
        new_allowed=place.kept,
        old_gone_allowed=place.old_gone,
        record_allowed=place.record,
    )
    bed.next_backup_and_prove_all(killed=killed_content)
    assert bed.vm.state() is state


@pytest.mark.parametrize("share", range(SHARES))
def test_point_killed_at_any_effect_leaves_a_running_guest_and_all_points(bed: Bed, share: int) -> None:
    need_effects()
    bed.walk_points(share)
