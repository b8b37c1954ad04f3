"""libvirtd falls silent in the middle: the command says so and can be ended, and nothing is lost.

The clock of each case is that of libvirtd: what the guardian has to do is done as soon as it answers again.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.bed import Bed, Printed, Trap, wait_until
from tests.rig import VmState
from tests.system.truth import checkpoints

pytestmark = [pytest.mark.system, pytest.mark.crash]

_DOMAIN = "vmkeep.hypervisor.domain:Domain."
_AT_ONCE_SECONDS = 4.0  # after half a second of silence a question, two seconds for its answer, and a slow machine


@contextmanager
def settings(bed: Bed, text: str) -> Iterator[None]:
    (bed.home / "vmkeep.toml").write_text(text)
    try:
        yield
    finally:
        (bed.home / "vmkeep.toml").unlink()


def come_to(bed: Bed, when: str, place: str, *words: str | Path) -> None:
    """Begin a command and let it come to a place, before which libvirtd still answers."""
    bed.zygote.start_command("--json", *words, traps=[Trap(when, place, "hold")])
    bed.zygote.wait_reached()


def ended_by(bed: Bed, number: signal.Signals, *, silent_seconds: float) -> Printed:
    """Let the command go on into the silence for so long, and end it; it must end at once."""
    bed.zygote.go.touch()
    time.sleep(silent_seconds)
    sent = time.monotonic()
    bed.zygote.signal(number)
    ended = bed.zygote.printed()
    assert time.monotonic() - sent < _AT_ONCE_SECONDS
    return ended


def record(bed: Bed) -> str:
    """Return the record of the point that is taken."""
    return "".join(path.read_text() for path in (bed.home / "guards").glob("*.json"))


@pytest.mark.parametrize(
    ("when", "place", "asked"),
    [
        ("after", _DOMAIN + "suspend", "begin the backup job"),
        ("before", _DOMAIN + "resume", "resume the VM 'guest'"),
    ],
)
def test_backup_that_is_ended_while_libvirtd_hangs_leaves_nothing(bed: Bed, when: str, place: str, asked: str) -> None:
    bed.change()
    before, points = checkpoints(bed.vm), bed.zygote.run(["look"]).acts[0][1]
    with settings(bed, "longest_pause_seconds = 2\n"):
        come_to(bed, when, place, "backup", bed.vm.name)
        with bed.host.hung_libvirtd():
            ended = ended_by(bed, signal.SIGINT, silent_seconds=3)
        answered_at = time.monotonic()
    assert ended.status == 130, ended
    said = json.loads(ended.err)
    assert (said["error"]["code"], said["error"]["vm"]) == ("interrupted", "guest")
    assert "libvirt has answered nothing" in said["notes"][0]
    assert asked in said["notes"][0]
    assert "guardian" in said["error"]["hint"]

    wait_until(lambda: bed.vm.state() is VmState.RUNNING, "the guest still stands", 3)
    bed.assert_safe(before, killed_at=answered_at)
    assert bed.zygote.run(["look"]).acts[0][1] == points
    bed.take_point()
    bed.sound = True


def test_point_that_was_stored_when_libvirtd_fell_silent_stays_and_is_told(bed: Bed) -> None:
    bed.change()
    before = checkpoints(bed.vm)
    come_to(bed, "before", _DOMAIN + "abort_backup", "backup", bed.vm.name)
    with bed.host.hung_libvirtd():
        ended = ended_by(bed, signal.SIGTERM, silent_seconds=3)
    answered_at = time.monotonic()
    said = json.loads(ended.err)
    assert (ended.status, said["error"]["code"]) == (143, "terminated")
    (told,) = (note for note in said["notes"] if "stored and whole" in note)
    point = told.split()[1]
    bed.assert_safe(before, killed_at=answered_at, old_gone_allowed=True, new_allowed=True)
    bed.truths[point] = bed.content.copy()
    bed.sound = True


def test_backup_whose_copy_goes_on_beside_a_silent_libvirtd_ends_when_that_answers(bed: Bed) -> None:
    bed.change()
    come_to(bed, "before", "vmkeep.host.points.point:capture_disk", "backup", bed.vm.name)
    with bed.host.hung_libvirtd():
        bed.zygote.go.touch()
        # The guardian, which looks at the VM all the time, still hears what vmkeep says.
        wait_until(lambda: '"keep"' in record(bed), "the copy does not end", 20)
        time.sleep(1)
    bed.truths[bed.zygote.printed().document()["point"]["id"]] = bed.content.copy()
    bed.sound = True


def test_libvirtd_that_stays_silent_is_given_up(bed: Bed) -> None:
    bed.change()
    before = checkpoints(bed.vm)
    with settings(bed, "stalled_after_seconds = 3\n"):
        come_to(bed, "after", _DOMAIN + "suspend", "backup", bed.vm.name)
        with bed.host.hung_libvirtd():
            bed.zygote.go.touch()
            ended = bed.zygote.printed()
        answered_at = time.monotonic()
    assert (ended.status, json.loads(ended.err)["error"]["code"]) == (31, "hypervisor-hangs")
    bed.assert_safe(before, killed_at=answered_at)
    bed.sound = True


def test_lists_are_ended_too_and_a_snapshot_is_settled(bed: Bed) -> None:
    bed.change()
    come_to(bed, "before", "vmkeep.hypervisor.connection:Hypervisor.domains", "vm", "list")
    with bed.host.hung_libvirtd():
        ended = ended_by(bed, signal.SIGINT, silent_seconds=3)
    assert ended.status == 130
    assert "list the VMs" in json.loads(ended.err)["notes"][0]

    come_to(bed, "after", _DOMAIN + "suspend", "snapshot", "create", bed.vm.name, "hung")
    with bed.host.hung_libvirtd():
        ended = ended_by(bed, signal.SIGINT, silent_seconds=3)
    assert ended.status == 130, ended
    wait_until(lambda: bed.vm.state() is VmState.RUNNING, "the guest still stands", 5)
    wait_until(lambda: bed.guardians() == [], "the guardian does not end", 20)
    told = bed.zygote.run(["look"]).recovered
    assert any("snapshot" in sentence for sentence in told), told
    bed.next_backup_and_prove_all(killed=bed.content.copy())
