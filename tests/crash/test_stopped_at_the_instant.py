"""vmkeep stands still while its guest does: the guest goes on by itself, and nothing torn is kept.

What stands still is not dead: it goes on later, in the middle of an instant that is over.
"""

from __future__ import annotations

import time

import pytest

from tests.crash.bed import Bed, Trap, wait_until
from tests.rig import VmState
from tests.system.truth import checkpoints
from tests.turns import sampled

pytestmark = [pytest.mark.system, pytest.mark.crash]

_DOMAIN = "vmkeep.hypervisor.domain:Domain."
# A process that was stopped is seen at once; the guest then waits for at most this long.
_STOPPED_SECONDS = 6.0


_PLACES = [
    ("before", _DOMAIN + "suspend", False),
    ("after", _DOMAIN + "suspend", True),
    ("after", _DOMAIN + "begin_backup", True),
    ("before", "vmkeep.host.vm.states:capture#2", True),  # between the UEFI variables and the TPM
    ("before", _DOMAIN + "resume", True),
]


@pytest.mark.parametrize(("when", "place", "stands"), sampled(_PLACES, 1))
def test_guest_goes_on_when_vmkeep_is_stopped_at_the_instant(bed: Bed, when: str, place: str, stands: bool) -> None:
    bed.change()
    before, points = checkpoints(bed.vm), bed.zygote.run(["look"]).acts[0][1]
    bed.zygote.start(["backup", bed.vm.name], traps=[Trap(when, place, "hold")])
    bed.zygote.wait_reached()
    bed.zygote.stop()
    stopped_at = time.monotonic()
    if stands:
        assert bed.vm.state() is VmState.PAUSED
        wait_until(lambda: bed.vm.state() is VmState.RUNNING, "the guest still stands", _STOPPED_SECONDS)
        assert time.monotonic() - stopped_at < _STOPPED_SECONDS
    else:  # QEMU 7.2 may die when a rescue resumes the guest while libvirt has it make an image
        scratch = list(bed.vm.disk_path("vda").parent.glob(".*.scratch"))
        assert len(scratch) == 2
        assert all(path.read_bytes().startswith(b"QFI") for path in scratch)
    bed.change()
    bed.zygote.go.touch()
    time.sleep(0 if stands else 3)
    bed.zygote.go_on()
    outcome = bed.zygote.finish()
    ended_at = time.monotonic()

    if stands:
        assert outcome.error["code"] == "job-aborted"
        assert "stood still" in outcome.error["message"]
        assert bed.zygote.run(["look"]).acts[0][1] == points
    else:  # it came to stand still before its guest did, so nothing was lost
        bed.truths[outcome.acts[0]["point"]["id"]] = bed.content.copy()
    bed.assert_safe(before, killed_at=ended_at, old_gone_allowed=not stands, new_allowed=not stands)
    bed.next_backup_and_prove_all(killed=bed.content.copy())


def test_guest_goes_on_when_the_instant_takes_longer_than_allowed(bed: Bed) -> None:
    (bed.home / "vmkeep.toml").write_text("longest_pause_seconds = 2\n")
    try:
        bed.change()
        before = checkpoints(bed.vm)
        bed.zygote.start(["backup", bed.vm.name], traps=[Trap("after", _DOMAIN + "begin_backup", "hold")])
        bed.zygote.wait_reached()
        wait_until(lambda: bed.vm.state() is VmState.RUNNING, "the guest still stands", _STOPPED_SECONDS)
        bed.vm.suspend()  # somebody's own pause, which is not ended
        time.sleep(4)
        assert bed.vm.state() is VmState.PAUSED
        bed.vm.resume()
        bed.zygote.go.touch()
        error = bed.zygote.finish().error
        ended_at = time.monotonic()
    finally:
        (bed.home / "vmkeep.toml").unlink()

    assert error["code"] == "job-aborted"
    assert "2 s" in error["message"]
    bed.assert_safe(before, killed_at=ended_at)
    bed.next_backup_and_prove_all(killed=bed.content.copy())


def test_stopped_and_killed_vmkeep_leaves_nothing(bed: Bed) -> None:
    bed.change()
    before = checkpoints(bed.vm)
    bed.zygote.start(["backup", bed.vm.name], traps=[Trap("after", _DOMAIN + "begin_backup", "hold")])
    bed.zygote.wait_reached()
    bed.zygote.stop()
    wait_until(lambda: bed.vm.state() is VmState.RUNNING, "the guest still stands", _STOPPED_SECONDS)
    bed.zygote.kill()
    bed.zygote.finish()
    bed.assert_safe(before, killed_at=time.monotonic())
    bed.next_backup_and_prove_all(killed=bed.content.copy())


_SNAPSHOTS = "vmkeep.hypervisor.snapshots:DomainSnapshots."
_MEMORY = "<memory snapshot='external' file='{}'/>"
_IN_IMAGES = "<memory snapshot='internal'/>"


@pytest.mark.parametrize(
    ("when", "place", "whole"),
    sampled(
        [
            ("after", _DOMAIN + "suspend", False),
            ("after", _SNAPSHOTS + "create", True),
            ("after", "vmkeep.host.snapshots.snapshot:read_state#3", True),
        ],
        1,
    ),
)
@pytest.mark.parametrize("memory", ["", _MEMORY], ids=["disks", "memory"])
def test_guest_goes_on_when_vmkeep_is_stopped_in_a_snapshot(
    bed: Bed, memory: str, when: str, place: str, whole: bool
) -> None:
    """``whole``: libvirt had made it, so what it lacked was kept before the guest went on."""
    bed.change()
    name = f"{'memory' if memory else 'disks'}{'-whole' if whole else ''}-{place.rpartition('.')[2].strip('#3')}"
    states = {"tpm": bed.vm.tpm_state().hex(), "nvram": bed.vm.nvram().hex()}
    bed.zygote.start(
        ["snapshot", bed.vm.name, name, memory.format(bed.host.dir / "disks" / f"{name}.save")],
        traps=[Trap(when, place, "hold")],
    )
    bed.zygote.wait_reached()
    bed.zygote.stop()
    wait_until(lambda: bed.vm.state() is VmState.RUNNING, "the guest still stands", _STOPPED_SECONDS)
    bed.change()
    later = {"tpm": bed.vm.tpm_state().hex(), "nvram": bed.vm.nvram().hex()}
    bed.zygote.go.touch()
    bed.zygote.go_on()
    error = bed.zygote.finish().error
    wait_until(lambda: bed.guardians() == [], "the guardian does not end")

    # A memory that vmkeep has saved when it wakes is broken off, if the guardian still looks after the guest then.
    broken_off = {"job-aborted", "hypervisor-error"} if memory else set()
    assert error["code"] in ({"job-aborted"} if whole else {"snapshot-incomplete", *broken_off}), error
    assert bed.vm.state() is VmState.RUNNING
    kept = bed.zygote.run(["look"], ["kept", bed.vm.uuid]).acts[1]
    # One that was made too late is of its own instant, if the guardian could keep the states of that.
    assert kept.get(name) in ([states] if whole else [None, *([later] if memory else [])])
    bed.sound = True
