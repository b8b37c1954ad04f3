"""The clock is set by an hour in the middle of a copy: the point is right, nothing times out, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.environment.faketime import Clock
from tests.rig import Disk, Host, KiB, MiB, VmState
from tests.rig.cli import Vmkeep, finished
from tests.system.held import held_in_its_copy
from tests.system.truth import Truth, assert_left_alone

pytestmark = pytest.mark.system


class _Clocked(Vmkeep):
    """The command line, whose processes live by a clock of their own."""

    def __init__(self, host: Host, clock: Clock) -> None:
        super().__init__(host)
        self._clock = clock

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self._clock.environment}


def test_clock_that_is_set_forwards_and_back_in_the_middle_of_a_copy_changes_nothing(host: Host) -> None:
    clock = Clock.at(host.dir / "work" / "clock")
    vmkeep = _Clocked(host, clock)
    vm = host.define("guest", disks=[Disk("vda", 32 * MiB)], firmware="bios", tpm=False)
    vm.start()
    vm.write_random("vda", start=0, length=24 * MiB, seed=1)
    vmkeep.json("init")
    # All that waits for something may wait for less than the clock is set by.
    (vmkeep.home / "vmkeep.toml").write_text("stalled_after_seconds = 60\nlongest_pause_seconds = 30\n")
    points, truths = [], []
    for number, jump in enumerate(("+1h", "-1h")):
        truths.append(Truth.of(vm, uefi=False, tpm=False))
        with held_in_its_copy(vm, vmkeep) as process:
            clock.set(jump)
        status, document = finished(process)
        assert status == 0, document
        assert 0 < document["point"]["seconds"] < 60
        points.append(document["point"])
        vm.write_random("vda", start=number * MiB, length=64 * KiB, seed=number)
    assert [point["kind"] for point in points] == ["full", "incremental"]
    assert all(0 < entry["seconds"] < 60 for entry in vmkeep.json("log")["operations"])
    assert_left_alone(vm, state=VmState.RUNNING, checkpoints_before=[points[-1]["checkpoint"]])
    assert not list(Path(vmkeep.home / "repository" / "intents").iterdir())
    outputs = vmkeep.restore_all(points, host.dir / "work")
    for truth, output in zip(truths, outputs, strict=True):
        truth.assert_files(output)
