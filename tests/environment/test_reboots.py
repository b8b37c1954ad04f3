"""The host loses its power in the middle of a command: all processes die at one moment, and /run is empty afterwards.

No guardian is there to make anything safe, and no daemon to be asked. The next command settles what was begun, every
point is what it was, and the VM is what it was before the command or what the command makes of it, whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.crash.bed import Trap, Zygote
from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, assert_images_equal
from tests.system.truth import Truth, checkpoints
from tests.turns import EVERY, sampled

pytestmark = pytest.mark.system
_TARGETS = ("vda", "vdb")
_CHEAP = ("open_point-running", "copy_point-off", "write", "bind", "apply", "make_snapshot")


@pytest.fixture(autouse=True)
def _sampled(request: pytest.FixtureRequest) -> None:
    """Each place costs a reboot of the host: some are tried each time, all with VMKEEP_CRASH_ALL."""
    if not EVERY and request.node.callspec.id not in sampled(_CHEAP, 2):
        pytest.skip("one of a sample (VMKEEP_CRASH_ALL=1 for all)")


@dataclass(slots=True)
class Plant:
    """A VM with points and a snapshot, each with the truth of it, on a host whose power fails."""

    host: Host
    vm: Vm
    zygote: Zygote
    points: dict[str, Truth] = field(default_factory=dict)
    seed: int = 100
    early: Truth = field(init=False)

    @classmethod
    def make(cls, host: Host) -> Plant:
        vm = host.define("guest", disks=[Disk("vda", 4 * MiB), Disk("vdb", 1 * MiB + 512)])
        plant = cls(host, vm, Zygote(host, host.dir / "home"))
        plant.write()
        plant.keep_point()
        vm.start(paused=True)
        plant.early = Truth.of(vm)
        plant.command("--json", "snapshot", "create", "guest", "early")
        vm.destroy()
        plant.write()
        plant.keep_point()
        return plant

    def write(self) -> None:
        """Let the guest write, as far as its disks have it when the power fails: flushed."""
        off = self.vm.state() is VmState.OFF
        if off:
            self.vm.start(paused=True)
        for target in _TARGETS:
            self.seed += 1
            self.vm.write_random(target, start=(self.seed % 8) * 64 * KiB, length=64 * KiB, seed=self.seed)
            device = f"/machine/peripheral/{self.vm.disk(target).alias}/virtio-backend"
            assert self.vm.monitor(f'qemu-io -d {device} "flush"') == ""
        if off:
            self.vm.destroy()
            self.vm.change_nvram()

    def command(self, *words: str | Path) -> dict[str, Any]:
        return self.zygote.command(*words).document()

    def keep_point(self) -> None:
        truth = Truth.of(self.vm)
        self.points[self.command("--json", "backup", "guest")["point"]["id"]] = truth

    def lose_power(self, act: list[Any], place: tuple[str, str]) -> None:
        """Begin an act, and end every process of the host when it comes to the place."""
        self.zygote.start(act, traps=[Trap(*place, "hold")])
        self.zygote.wait_reached()
        self.host.lose_power()
        self.zygote.close()
        self.host.boot_again()
        self.zygote = Zygote(self.host, self.host.dir / "home")

    def settle(self) -> str:
        """Run the next command that runs operations, and return what it says of the one that was broken off."""
        told = self.zygote.command("--json", "doctor", "--fix")
        findings = json.loads(told.out)["doctor"]
        assert findings["failed"] == [], findings
        assert [each for each in findings["findings"] if each["severity"] == "problem"] == []
        return "; ".join(findings["recovered"])

    def assert_points(self) -> None:
        listed = [point["id"] for point in self.command("--json", "points", "guest")["points"]]
        assert set(self.points) <= set(listed)
        for point, truth in self.points.items():
            output = self.host.dir / "work" / f"proof-{point}-{self.seed}"
            self.command("--json", "restore", point, "--output", output)
            truth.assert_files(output)

    def assert_nothing_left(self) -> None:
        for name in ("guards", "restores", "snapshots", "owners", "locks"):
            directory = self.host.dir / "home" / name
            assert not directory.exists() or list(directory.iterdir()) == [], name
        left = [
            path for path in (self.host.dir / "disks").iterdir() if path.name.startswith(".") or "scratch" in path.name
        ]
        assert left == []

    def go_on(self) -> None:
        """The next point is right, and what it is read against is listed by libvirt: one checkpoint of ours."""
        self.write()
        self.keep_point()
        self.assert_points()
        self.assert_nothing_left()
        assert len([name for name in checkpoints(self.vm) if name.startswith("vmkeep-")]) == 1


@pytest.fixture(scope="module")
def plant() -> Iterator[Plant]:
    with Host("plant", idle_firmware=True) as host:
        plant = Plant.make(host)
        yield plant
        plant.zygote.close()


_TAKE = "vmkeep.flows.take_point:"


@pytest.mark.parametrize("off", [False, True], ids=["running", "off"])
@pytest.mark.parametrize(
    "place",
    [
        ("after", _TAKE + "open_point"),
        ("after", _TAKE + "copy_point"),
        ("after", _TAKE + "keep_checkpoint"),
        ("after", _TAKE + "record_point"),
    ],
    ids=lambda place: str(place[1]).partition(":")[2],
)
def test_power_fails_in_a_backup(plant: Plant, place: tuple[str, str], *, off: bool) -> None:
    plant.write()
    if not off:
        plant.vm.start(paused=True)
        plant.write()
    truth = Truth.of(plant.vm)
    before = {point["id"] for point in plant.command("--json", "points", "guest")["points"]}
    plant.lose_power(["backup", "guest"], place)
    assert plant.vm.state() is VmState.OFF
    plant.settle()
    for target in _TARGETS:
        assert_images_equal(plant.vm.read_image(target), truth.images[target], target)
    made = {point["id"] for point in plant.command("--json", "points", "guest")["points"]} - before
    assert len(made) == (0 if place[1].endswith("open_point") else 1)
    plant.points |= dict.fromkeys(made, truth)
    plant.go_on()


_RESTORE = "vmkeep.flows.restore_in_place:"


@pytest.mark.parametrize("step", ["park", "stage", "write", "publish", "bind", "release"])
def test_power_fails_in_a_restore_in_place(plant: Plant, step: str) -> None:
    plant.write()
    truth = Truth.of(plant.vm)
    aim, wanted = next(iter(plant.points.items()))
    plant.lose_power(["restore_in_place", aim, "guest", None], ("after", _RESTORE + step))
    told = plant.settle()
    assert told
    wanted.assert_vm(plant.vm)
    plant.points |= dict.fromkeys(_safety_points(plant), truth)
    plant.go_on()


def _safety_points(plant: Plant) -> set[str]:
    listed = plant.command("--json", "points", "guest")["points"]
    return {point["id"] for point in listed if "vmkeep.safety" in point["labels"]} - set(plant.points)


@pytest.mark.parametrize("step", ["park", "stage", "apply", "release"])
def test_power_fails_in_a_revert(plant: Plant, step: str) -> None:
    plant.write()
    plant.lose_power(["revert", "guest", "early", {"discard": True}], ("after", f"vmkeep.flows.revert_snapshot:{step}"))
    assert plant.settle()
    plant.early.assert_vm(plant.vm)
    plant.go_on()


@pytest.mark.parametrize("step", ["make_snapshot", "store_snapshot", "record_snapshot"])
def test_power_fails_in_a_snapshot_of_a_running_vm(plant: Plant, step: str) -> None:
    plant.write()
    plant.vm.start(paused=True)
    truth = Truth.of(plant.vm)
    name = f"broken-off-{step}"
    plant.lose_power(["snapshot", "guest", name], ("after", f"vmkeep.flows.take_snapshot:{step}"))
    assert plant.settle()
    truth.assert_vm(plant.vm)
    plant.write()
    plant.command("--json", "snapshot", "revert", "guest", name, "--yes", "--no-safety")
    truth.assert_vm(plant.vm)
    plant.go_on()
