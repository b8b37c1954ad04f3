"""vmkeep is killed with SIGKILL at every place of a snapshot: the guest runs within 3 s, and nothing is half.

What is left is a snapshot that is recorded with the state files of its instant, or none. Nothing is taken back: what
the guest writes after the kill, to whatever image, is in the disks and in the next point, which is incremental.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.bed import KILLED, Bed, Content, Trap
from tests.rig import VmState, assert_images_equal, read_offline_image
from tests.system.snapshots import snapshots
from tests.system.truth import checkpoints
from tests.turns import sampled

pytestmark = [pytest.mark.system, pytest.mark.crash]

_DOMAIN = "vmkeep.hypervisor.domain:Domain."
_SNAPSHOTS = "vmkeep.hypervisor.snapshots:DomainSnapshots."
_HOST = "vmkeep.host.snapshots.snapshot:"
_GUARDIAN = "vmkeep.host.guard.guardian:Guardian."
_FLOW = "vmkeep.flows.take_snapshot:"
_CATALOG = "vmkeep.catalog.sql:SqlCatalog."
_names = iter(f"s{number}" for number in range(1000))


@dataclass(frozen=True, slots=True)
class Place:
    """Where the kill comes. ``made``: whether the snapshot must be there afterwards; None where it may."""

    when: str
    place: str
    delay_ms: float = 0.0
    made: bool | None = None
    record: bool = False  # killed before a guardian was there: its record may stay, the guest was not touched

    def __str__(self) -> str:
        delay = f"+{self.delay_ms:g}ms" if self.when == "during" else ""
        return f"{self.when}-{self.place.rpartition(':')[2]}{delay}"

    @property
    def trap(self) -> Trap:
        return Trap(self.when, self.place, delay_ms=self.delay_ms)


_BEFORE = [
    Place("before", "vmkeep.host.records.snapshot:SnapshotRecord.save", made=False),
    Place("after", "vmkeep.host.records.snapshot:SnapshotRecord.save", made=False),
    Place("after", "vmkeep.host.guard.rescue:JobRecord.save", made=False, record=True),
    Place("after", "vmkeep.host.guard.standby:Standby.hand_over", made=False),
    Place("after", _GUARDIAN + "wait_ready", made=False),
]
_STORED = [
    Place("after", _GUARDIAN + "done", made=True),
    Place("after", _FLOW + "make_snapshot", made=True),
    Place("before", "vmkeep.repository.repository:Repository.put_state", made=True),
    Place("after", "vmkeep.repository.repository:Repository.put_state", made=True),
    Place("after", _FLOW + "store_snapshot", made=True),
    Place("before", _CATALOG + "record_snapshot", made=True),
    Place("after", _CATALOG + "record_snapshot", made=True),
    Place("after", "vmkeep.host.records.snapshot:Path.unlink#3", made=True),  # one of the state files is gone
    Place("after", _HOST + "remove_keepsake", made=True),
    Place("after", _FLOW + "close_snapshot", made=True),
]
_RUNNING = [
    *_BEFORE,
    Place("before", _DOMAIN + "suspend", made=False),
    Place("during", _DOMAIN + "suspend", 1, made=False),
    Place("after", _DOMAIN + "suspend", made=False),
    *(Place("during", _SNAPSHOTS + "create", delay) for delay in (0, 4, 9, 14, 19, 24)),
    Place("after", _SNAPSHOTS + "create", made=True),
    Place("after", _HOST + "read_state#3", made=True),  # two were read before, to see whether they can be
    Place("before", _HOST + "keep_states", made=True),
    Place("after", "vmkeep.host.records.snapshot:_write#2", made=True),
    Place("after", _HOST + "keep_states", made=True),
    Place("during", _DOMAIN + "resume", 0, made=True),
    Place("after", _DOMAIN + "resume", made=True),
    Place("before", _HOST + "make_states_durable", made=True),
    Place("before", _GUARDIAN + "done", made=True),
    *_STORED,
]
_STOPPED = [
    *_BEFORE,
    Place("after", _DOMAIN + "redefine_checkpoint", made=False),  # to see that libvirt takes it
    Place("before", _DOMAIN + "forget_checkpoint", made=False),
    Place("after", _DOMAIN + "forget_checkpoint", made=False),
    *(Place("during", _SNAPSHOTS + "create", delay) for delay in (0, 5, 10, 15)),
    Place("after", _SNAPSHOTS + "create", made=True),
    Place("after", _DOMAIN + "redefine_checkpoint#2", made=True),
    Place("before", "vmkeep.host.guard.snapshot_rescue:add_bitmap", made=True),
    Place("during", "vmkeep.host.guard.snapshot_rescue:add_bitmap", 3, made=True),
    Place("after", "vmkeep.host.guard.snapshot_rescue:add_bitmap", made=True),
    Place("before", _GUARDIAN + "done", made=True),
    *_STORED,
]


@pytest.mark.parametrize("place", sampled(_RUNNING, 2), ids=str)
def test_killed_snapshot_of_a_running_vm_is_whole_or_not_there(bed: Bed, place: Place) -> None:
    _kill_and_prove(bed, place, VmState.RUNNING)


@pytest.mark.parametrize(
    "place",
    sampled([Place("after", _SNAPSHOTS + "create", made=True), Place("during", _SNAPSHOTS + "create", 12)], 1),
    ids=str,
)
def test_vm_that_was_paused_stays_paused_when_its_snapshot_is_killed(bed: Bed, place: Place) -> None:
    bed.vm.suspend()
    try:
        _kill_and_prove(bed, place, VmState.PAUSED)
    finally:
        bed.vm.resume()


@pytest.mark.parametrize("place", sampled(_STOPPED, 2), ids=str)
def test_killed_snapshot_of_a_vm_that_is_off_is_whole_or_not_there(stopped_bed: Bed, place: Place) -> None:
    _kill_and_prove(stopped_bed, place, VmState.OFF)


@pytest.mark.parametrize(
    "place", sampled([Place("during", _SNAPSHOTS + "create", delay) for delay in (5, 40, 70)], 1), ids=str
)
def test_guest_runs_again_when_a_snapshot_with_its_memory_is_killed(bed: Bed, place: Place) -> None:
    memory = bed.host.dir / "disks" / f"memory-{place.delay_ms}"
    _kill_and_prove(bed, place, VmState.RUNNING, f"<memory snapshot='external' file='{memory}'/>")


def _kill_and_prove(bed: Bed, place: Place, state: VmState, memory: str = "") -> None:
    bed.change()
    name = next(_names)
    before, instant = checkpoints(bed.vm), bed.content.copy()
    bases = {target: bed.vm.disk_path(target) for target in instant.disks}
    outcome = bed.zygote.run(["snapshot", bed.vm.name, name, memory], traps=[place.trap])
    killed_at = time.monotonic()
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    bed.assert_safe(before, state=state, killed_at=killed_at, record_allowed=place.record)
    bed.change()  # what the guest writes before anybody puts anything right
    recovered = bed.zygote.run(["kept", bed.vm.uuid])
    assert not any("not kept" in sentence for sentence in recovered.recovered), recovered.recovered
    _assert_whole_or_not_there(bed, place, name, recovered.acts[0], instant, bases)
    assert list((bed.home / "snapshots").glob("*")) == []
    bed.next_backup_and_prove_all(killed=instant)
    assert bed.vm.state() is state


def _assert_whole_or_not_there(
    bed: Bed, place: Place, name: str, kept: dict[str, dict[str, str]], instant: Content, bases: dict[str, Path]
) -> None:
    listed = set(snapshots(bed.vm))
    assert (name in listed) is (name in kept), f"libvirt lists {listed}, kept is {sorted(kept)}"
    if place.made is not None:
        assert (name in listed) is place.made
    if name in listed:
        assert {kind: bytes.fromhex(content) for kind, content in kept[name].items()} == {
            "tpm": instant.tpm,
            "nvram": instant.nvram,
        }
        for target, image in instant.disks.items():
            assert_images_equal(read_offline_image(bases[target], "qcow2"), bytes(image), target)


_BETWEEN = [
    Trap("before", "vmkeep.flows.change_moments:forget_deleted_snapshots"),
    Trap("after", "vmkeep.host.moments.desk:LocalMoments.change_moments"),
    Trap("after", _CATALOG + "forget_snapshot"),
]


@pytest.mark.parametrize("trap", sampled(_BETWEEN, 1), ids=lambda trap: trap.place.rpartition(":")[2])
def test_deletion_killed_before_the_catalogue_follows_is_settled_by_the_next_command(bed: Bed, trap: Trap) -> None:
    name = next(_names)
    assert bed.zygote.run(["snapshot", bed.vm.name, name, ""]).status == 0
    bed.zygote.start_command("snapshot", "delete", bed.vm.name, name, "--metadata", traps=[trap])
    assert bed.zygote.printed().status == KILLED
    assert name not in snapshots(bed.vm)
    kept = bed.zygote.run(["kept", bed.vm.uuid])
    assert name not in kept.acts[0]
