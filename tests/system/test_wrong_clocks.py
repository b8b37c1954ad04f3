"""A clock that is wrong for one backup, and a home that comes back as it was: what was made last stays the last."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.crash.bed import Zygote
from tests.rig import Disk, Host, KiB, MiB, Vm, VmState
from tests.rig.cli import Vmkeep, finished
from tests.rig.clock import clock_off_by
from tests.system.held import held_in_its_copy
from tests.system.history import Forking
from tests.system.truth import Truth, checkpoints

pytestmark = pytest.mark.system
HOUR = 3600


class Kept:
    """Points of a VM that keeps still, each with the truth, in the order in which they were made."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.made: list[tuple[dict[str, Any], Truth]] = []

    def make(self, vmkeep: Vmkeep, *, clock: int = 0) -> dict[str, Any]:
        """Let the guest write, and take a point with a clock that is ahead by so many seconds."""
        number = len(self.made) + 1
        self.vm.write_random("vda", start=number * MiB, length=256 * KiB, seed=number)
        if number > 1:
            self.vm.write_zeroes("vda", start=(number - 1) * MiB, length=64 * KiB)
        self.vm.change_nvram()
        # A process that has begun already keeps its clock.
        command = Vmkeep(vmkeep.host, home=vmkeep.home) if clock else vmkeep
        point: dict[str, Any] = command.json("backup", "guest", env=clock_off_by(clock) if clock else None)["point"]
        self.made.append((point, Truth.of(self.vm)))
        return point

    @property
    def ids(self) -> list[str]:
        return [point["id"] for point, _ in self.made]

    def assert_last_is_latest(self, vmkeep: Vmkeep, output: str) -> None:
        """Fail unless every way of asking gives what was made last, byte for byte."""
        last, truth = self.made[-1]
        assert [point["id"] for point in vmkeep.json("points", "guest")["points"]] == self.ids
        assert vmkeep.json("point", "show", "guest@latest")["point"]["id"] == last["id"]
        (vm,) = vmkeep.json("vm", "list")["vms"]
        assert vm["last_point"]["id"] == last["id"]
        directory = self.vm.host.dir / "work" / output
        assert vmkeep.json("restore", "guest@latest", "--output", directory)["restored"]["point"] == last["id"]
        truth.assert_files(directory)


@pytest.fixture
def kept(host: Host) -> Kept:
    vm = host.define("guest", disks=[Disk("vda", 16 * MiB)])
    vm.start(paused=True)
    return Kept(vm)


@pytest.fixture
def vmkeep(host: Host, zygote: Zygote) -> Vmkeep:
    """The command, forked from a process that has imported vmkeep: four times as fast."""
    return Forking(host, zygote)


def test_clock_that_was_ahead_for_one_backup_changes_neither_order_nor_bases(kept: Kept, vmkeep: Vmkeep) -> None:
    first = kept.make(vmkeep)
    ahead = kept.make(vmkeep, clock=2 * HOUR)
    last = kept.make(vmkeep, clock=HOUR)
    assert first["created"] < last["created"] < ahead["created"]
    assert [point["sequence"] for point, _ in kept.made] == [1, 2, 3]
    assert [point["parent"] for point, _ in kept.made] == [None, first["id"], ahead["id"]]
    (warning,) = (told for told in last["warnings"] if "clock" in told)
    assert ahead["id"] in warning
    assert not any("clock" in told for told in ahead["warnings"])
    kept.assert_last_is_latest(vmkeep, "out")

    # libvirt loses the checkpoint of the last one: it is still the base, and the next backup lists it again.
    vm = kept.vm
    assert checkpoints(vm) == [last["checkpoint"]]
    (judged,) = vmkeep.json("checkpoint", "health", "guest")["checkpoint_health"]["checkpoints"]
    assert (judged["checkpoint"], judged["standing"], judged["base_of"]) == (last["checkpoint"], "base", ["vda"])
    vm.domain.checkpointLookupByName(last["checkpoint"]).delete(2)  # VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
    told = vmkeep.run("checkpoint", "repair", "guest", "--dry-run").stdout
    assert last["checkpoint"] in told
    assert ahead["checkpoint"] not in told

    findings = {each["code"]: each for each in vmkeep.json("doctor", "guest")["doctor"]["findings"]}
    assert findings["point-ahead"]["remedy"] == "timedatectl"
    assert ahead["id"] in findings["point-ahead"]["message"]
    assert last["id"] in findings["clock-went-back"]["message"]

    behind = kept.make(vmkeep)
    assert (behind["kind"], behind["parent"], behind["sequence"]) == ("incremental", last["id"], 4)
    kept.assert_last_is_latest(vmkeep, "again")

    # A time means what the clocks say, and the command says that they are not in order.
    noted = vmkeep.run("point", "show", f"guest@{last['created']}")
    assert ahead["id"] in noted.stderr
    assert behind["id"] in noted.stderr

    vm.destroy()
    vmkeep.json("restore", first["id"], "--in-place", "--yes")
    kept.made[0][1].assert_vm(vm)
    branch = vmkeep.json("points", "guest")["points"]
    assert [point["id"] for point in branch[:4]] == kept.ids
    assert branch[4]["labels"] == {"vmkeep.safety": first["id"]}


def test_home_that_comes_back_as_it_was_restores_and_builds_on_what_was_made_since(
    kept: Kept, host: Host, vmkeep: Vmkeep
) -> None:
    home, aside = host.dir / "home", host.dir / "work" / "aside"
    vmkeep.json("init", "--repository", host.dir / "work" / "repository")
    kept.make(vmkeep)
    shutil.copytree(home, aside)
    kept.make(vmkeep, clock=HOUR)
    last = kept.make(vmkeep)
    shutil.rmtree(home)
    shutil.copytree(aside, home)

    said = vmkeep.run("backup", "guest", "--json")
    assert said.returncode == 0
    assert all(point_id in said.stderr for point_id in kept.ids[1:])
    assert "alpha" in said.stderr
    point = vmkeep.json("point", "show", "guest@latest")["point"]
    assert (point["kind"], point["parent"], point["sequence"]) == ("incremental", last["id"], 4)
    assert [disk["bytes_read"] for disk in point["disks"]] == [0]
    kept.made.append((point, Truth.of(kept.vm)))
    kept.assert_last_is_latest(vmkeep, "out")

    # Another copy of the old home, beside this one: it knows neither this point nor the two before.
    twin = Vmkeep(host, home=aside)
    kept.vm.destroy()
    assert kept.vm.state() is VmState.OFF
    restored = twin.json("restore", "guest@latest", "--in-place", "--yes")["restored"]
    assert restored["point"] == point["id"]
    kept.made[-1][1].assert_vm(kept.vm)
    assert twin.json("init", "--adopt")["init"]["warnings"] == []
    twin.json("restore", kept.ids[0], "--in-place", "--yes")
    kept.made[0][1].assert_vm(kept.vm)
    # This home did not do that, and finds out: by the bitmaps, and by the safety points.
    branch = vmkeep.json("backup", "guest")["point"]
    assert (branch["kind"], branch["parent"]) == ("incremental", kept.ids[0])
    assert vmkeep.json("point", "show", "guest@latest")["point"]["id"] == branch["id"]
    assert vmkeep.json("verify", "--all")["ok"]


def test_home_that_was_copied_in_the_middle_of_a_backup_does_not_undo_it_when_it_comes_back(
    kept: Kept, host: Host, vmkeep: Vmkeep
) -> None:
    home, aside = host.dir / "home", host.dir / "work" / "aside"
    vmkeep.json("init", "--repository", host.dir / "work" / "repository")
    kept.make(vmkeep)
    kept.vm.write_random("vda", start=4 * MiB, length=8 * MiB, seed=9)
    with held_in_its_copy(kept.vm, vmkeep) as process:
        shutil.copytree(home, aside)
    status, document = finished(process)
    assert status == 0
    kept.made.append((document["point"], Truth.of(kept.vm)))
    shutil.rmtree(home)
    shutil.copytree(aside, home)

    third = kept.make(vmkeep)
    assert (third["parent"], third["sequence"]) == (kept.ids[1], 3)
    kept.assert_last_is_latest(vmkeep, "out")
    outputs = vmkeep.restore_all([point for point, _ in kept.made], host.dir / "work")
    for (_, truth), output in zip(kept.made, outputs, strict=True):
        truth.assert_files(output)
