"""A revert to a snapshot is killed everywhere: the VM cannot start half reverted, and the next start ends it, whole."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
import pytest

from tests.crash.bed import KILLED, Outcome, Trap, Zygote
from tests.crash.walk import SHARES, Death, deaths, need_effects
from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, random_bytes
from tests.rig.cli import Vmkeep
from tests.system.kept_snapshots import Taken, current, take
from tests.system.offline import bitmaps, qemu_img, write_offline
from tests.system.truth import Truth, checkpoints
from tests.turns import sampled

pytestmark = [pytest.mark.system, pytest.mark.crash]

_REVERT = "vmkeep.host.reverts.revert:"
_DEFINE = "vmkeep.hypervisor.connection:Hypervisor.define"
_SAVE = "vmkeep.host.records.restore:RestoreJournal.save"
_MEMORY = "vmkeep.hypervisor.connection:Hypervisor.restore_memory"
_PARKED = "restore-of-guest-not-finished--run-vmkeep-doctor"

_FORWARD = [
    ("after", _SAVE),
    ("after", _DEFINE),
    ("before", _REVERT + "stage_tpm"),
    ("after", _REVERT + "add_bitmap"),
    ("after", f"{_SAVE}#2"),
    ("before", "vmkeep.host.restores.items:publish#2"),
    ("after", "vmkeep.hypervisor.domain:Domain.forget_checkpoint"),
    ("after", "vmkeep.hypervisor.moments:DomainMoments.redefine"),
    ("after", f"{_SAVE}#3"),
]
_STARTABLE_BEFORE_PARKING = _FORWARD[:1]
# The VM may start by then.
_RELEASED = [
    ("after", f"{_DEFINE}#2"),
    ("before", _REVERT + "discard_replaced"),
    ("after", "vmkeep.host.records.restore:RestoreJournal.remove"),
]
_BACK = [
    ("after", f"{_SAVE}#3"),
    ("before", f"{_SAVE}#4"),
    ("after", f"{_DEFINE}#2"),
    ("after", "vmkeep.flows.plan:Plan.undo_all"),
]


def _name(place: tuple[str, str]) -> str:
    return f"{place[0]}-{place[1].rpartition(':')[2]}"


@dataclass(slots=True)
class Bench:
    """A VM that is off, at another state than the snapshot that its runs of vmkeep take it back to."""

    host: Host
    vm: Vm
    zygote: Zygote
    home: Path
    snapshots: dict[str, Taken]
    point: str
    seed: int = 10
    sound: bool = True
    effects: list[str] = field(default_factory=list)  # of an undisturbed revert

    def change(self) -> Truth:
        """Make the VM another than it was at any time before; return what it is."""
        self.seed += 1
        write_offline(self.vm, "vda", random_bytes(self.seed, 64 * KiB), start=512 * KiB)
        self.vm.change_nvram()
        self.vm.store_in_tpm(b"of this run", index=self.seed)
        return Truth.of(self.vm)

    def revert(self, name: str, *traps: Trap, run: str = "then") -> Outcome:
        self.zygote.start(["revert", self.vm.name, name, {"run": run}], traps=traps)
        return self.zygote.finish()

    def look(self) -> Outcome:
        return self.zygote.run(["look"])

    def refuses_to_start(self) -> str:
        with pytest.raises(libvirt.libvirtError) as raised:
            self.vm.start()
        assert self.vm.state() is VmState.OFF
        return str(raised.value)

    def assert_at_snapshot(self, name: str) -> None:
        """Fail unless the VM is wholly at the snapshot, and its next point builds on the one before that."""
        taken = self.snapshots[name]
        taken.truth.assert_vm(self.vm)
        assert current(self.vm) == name
        (checkpoint,) = checkpoints(self.vm)
        assert checkpoint.endswith(self.point)
        assert bitmaps(self.vm.disk_path("vda")) == [checkpoint]
        assert self.vm.disk_path("vda") not in [kept.images["vda"] for kept in self.snapshots.values()]
        with closing(sqlite3.connect(self.home / "catalog.sqlite")) as catalog:
            assert catalog.execute("SELECT current_point FROM vms").fetchall() == [(self.point,)]
        self.assert_nothing_left()

    def assert_as_before(self, truth: Truth, definition: str, checkpoints_before: list[str]) -> None:
        truth.assert_vm(self.vm)
        assert _definition(self.vm) == definition
        assert checkpoints(self.vm) == checkpoints_before
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        assert _PARKED not in _definition(self.vm)
        with closing(sqlite3.connect(self.home / "catalog.sqlite")) as catalog:
            unfinished = "SELECT id FROM operations WHERE state NOT IN ('done', 'failed')"
            assert catalog.execute(unfinished).fetchall() == []
        for name in ("owners", "locks", "restores"):
            assert [path.name for path in (self.home / name).iterdir()] == [], name
        places = [self.host.dir / "disks", self.vm.tpm_directory.parent, self.vm.nvram_path.parent]
        assert [path for place in places for path in place.rglob(".*") if path.name != ".lock"] == []
        self.sound = True
        # What the VM was on before stays by default; here nobody returns to it.
        kept = {path for taken in self.snapshots.values() for path in taken.images.values()}
        for path in (self.host.dir / "disks").glob("guest-*"):
            if path not in kept and path not in (self.vm.disk_path("vda"), self.vm.disk_path("vdb")):
                path.unlink()


def _definition(vm: Vm) -> str:
    return vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)


def _make(host: Host) -> Bench:
    vm = host.define("guest", disks=[Disk("vda", 6 * MiB), Disk("vdb", 2 * MiB + 512, format="raw")])
    vm.start(paused=True)
    vm.destroy()
    write_offline(vm, "vda", random_bytes(1, 512 * KiB), start=256 * KiB)
    write_offline(vm, "vdb", random_bytes(2, 512 * KiB), start=256 * KiB)
    vm.change_nvram()
    vm.store_in_tpm(b"of the snapshot", index=1)
    home = host.dir / "home"
    zygote = Zygote(host, home)
    point = str(zygote.run(["backup", vm.name]).acts[0]["point"]["id"])
    vm.start(paused=True)
    vm.write_random("vda", start=3 * MiB, length=64 * KiB, seed=3)
    vmkeep = Vmkeep(host, home=home)
    disks = take(vm, vmkeep, "disks")
    memory = take(vm, vmkeep, "memory", memory=True)
    vm.destroy()
    return Bench(host, vm, zygote, home, {"disks": disks, "memory": memory}, point)


@pytest.fixture(scope="module")
def benches(crash_host: Host) -> Iterator[list[Bench]]:
    crash_host.clear()
    made: list[Bench] = []
    yield made
    for bench in made:
        bench.zygote.close()
    crash_host.clear()


@pytest.fixture
def bench(benches: list[Bench], crash_host: Host) -> Bench:
    if benches and not benches[-1].sound:
        benches.pop().zygote.close()
        crash_host.clear()
        for place in ("/run/vmkeep", "/var/lib/libvirt/swtpm", "/var/lib/libvirt/qemu/nvram"):
            for left in crash_host.path(place).glob("*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    if not benches:
        benches.append(_make(crash_host))
    benches[-1].sound = False
    return benches[-1]


@pytest.mark.parametrize("place", sampled(_FORWARD, 2), ids=_name)
def test_killed_revert_keeps_the_vm_off_and_is_finished_by_the_next_start(bench: Bench, place: tuple[str, str]) -> None:
    bench.change()
    outcome = bench.revert("disks", Trap(*place))
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    if place not in _STARTABLE_BEFORE_PARKING:
        assert _PARKED in bench.refuses_to_start()
    (told,) = bench.look().recovered
    assert "was finished" in told
    bench.assert_at_snapshot("disks")


@pytest.mark.parametrize("place", sampled(_RELEASED, 1), ids=_name)
def test_revert_killed_while_it_cleans_up_leaves_nothing(bench: Bench, place: tuple[str, str]) -> None:
    bench.change()
    outcome = bench.revert("disks", Trap(*place))
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    bench.vm.start(paused=True)
    bench.vm.destroy()
    assert len(bench.look().recovered) == 1
    bench.assert_at_snapshot("disks")


@pytest.mark.parametrize("place", [("before", _MEMORY), ("after", _MEMORY), ("after", f"{_SAVE}#3")], ids=_name)
def test_revert_killed_around_its_memory_comes_to_that_memory(bench: Bench, place: tuple[str, str]) -> None:
    bench.change()
    outcome = bench.revert("memory", Trap(*place), run="paused")
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    (told,) = bench.look().recovered
    assert "was finished" in told
    assert bench.vm.state() is VmState.PAUSED
    bench.snapshots["memory"].truth.assert_vm(bench.vm)
    bench.vm.destroy()
    bench.assert_at_snapshot("memory")


@pytest.mark.parametrize(
    "place", [None, *sampled(_BACK, 1)], ids=lambda place: _name(place) if place else "undisturbed"
)
def test_revert_that_fails_and_is_killed_when_it_is_taken_back_leaves_the_vm_as_it_was(
    bench: Bench, place: tuple[str, str] | None
) -> None:
    """The file with the memory goes away when the state files are in place already."""
    before, definition, listed = bench.change(), _definition(bench.vm), checkpoints(bench.vm)
    memory = bench.snapshots["memory"].memory
    assert memory is not None
    aside = memory.with_name("aside")
    traps = [Trap("before", _MEMORY, "hold"), *([Trap(*place)] if place else [])]
    bench.zygote.start(["revert", bench.vm.name, "memory", {}], traps=traps)
    bench.zygote.wait_reached()
    memory.rename(aside)
    bench.zygote.go.touch()
    outcome = bench.zygote.finish()
    if place is None:
        assert outcome.error["code"] == "hypervisor-error"
    else:
        assert outcome.status == KILLED, f"the place was not reached: {outcome}"
        (told,) = bench.look().recovered
        assert "undone" in told
    aside.rename(memory)
    bench.assert_as_before(before, definition, listed)


def test_revert_whose_flow_is_lost_is_taken_back_from_its_journal(bench: Bench) -> None:
    before, definition, listed = bench.change(), _definition(bench.vm), checkpoints(bench.vm)
    assert bench.revert("disks", Trap("after", _REVERT + "Revert.apply")).status == KILLED
    for path in bench.home.glob("flows.sqlite*"):
        path.unlink()
    assert ["taken back" in told for told in bench.look().recovered] == [True]
    bench.assert_as_before(before, definition, listed)


@pytest.mark.parametrize("share", range(SHARES))
def test_revert_killed_at_any_effect_is_finished_or_never_began(bench: Bench, share: int) -> None:
    need_effects()
    act = ["revert", bench.vm.name, "disks", {}]
    if not bench.effects:
        bench.change()
        assert bench.zygote.walk(act, death=Death(None)).status == 0
        bench.effects = bench.zygote.effects
        bench.assert_at_snapshot("disks")
    for death in deaths(bench.effects, 4)[share::SHARES]:
        before, definition = bench.change(), _definition(bench.vm)
        bench.sound = False
        outcome = bench.zygote.walk(act, death=death)
        recovered: list[str] = []
        try:
            if _definition(bench.vm) == definition:
                before.assert_vm(bench.vm)
            elif _PARKED in _definition(bench.vm):
                bench.refuses_to_start()
            else:
                bench.snapshots["disks"].truth.assert_vm(bench.vm)
            recovered = bench.look().recovered
            if outcome.status == KILLED and Truth.of(bench.vm) == before:
                assert recovered == []
                assert bench.revert("disks").status == 0
            bench.assert_at_snapshot("disks")
        except Exception as error:
            error.add_note(f"killed at {death}: {bench.effects[(death.effect or 1) - 1]}; told: {recovered}")
            raise
    bench.sound = True


# -- internal snapshots: libvirt's own revert, which writes over the images ----------------------------------------

_LIBVIRT = "vmkeep.hypervisor.snapshots:DomainSnapshots.revert"


@dataclass(slots=True)
class Inside:
    """A VM with BIOS that is off, whose images hold a snapshot; its runs of vmkeep take it back to that."""

    vm: Vm
    zygote: Zygote
    home: Path
    truth: Truth
    seed: int = 10

    def change(self) -> Truth:
        self.seed += 1
        for target in ("vda", "vdb"):
            write_offline(self.vm, target, random_bytes(self.seed, 64 * KiB), start=512 * KiB)
        self.vm.store_in_tpm(b"of this run", index=self.seed)
        self.zygote.run(["backup", self.vm.name]).acts  # noqa: B018  so that there are bitmaps to be removed
        return Truth.of(self.vm, uefi=False)

    def start(self, *traps: Trap) -> None:
        self.zygote.start(["revert", self.vm.name, "inside", {}], traps=traps)

    def assert_whole(self, truth: Truth) -> None:
        truth.assert_vm(self.vm)
        assert _PARKED not in _definition(self.vm)
        assert current(self.vm) == "inside"
        for target in ("vda", "vdb"):
            assert "vmkeep-" not in qemu_img("snapshot", "-l", self.vm.disk_path(target))
        assert list((self.home / "restores").iterdir()) == []
        self.vm.start(paused=True)
        self.vm.destroy()


@pytest.fixture(scope="module")
def inside(crash_host: Host, benches: list[Bench]) -> Iterator[Inside]:
    while benches:
        benches.pop().zygote.close()
    crash_host.clear()
    vm = crash_host.define("guest", disks=[Disk("vda", 4 * MiB), Disk("vdb", 2 * MiB)], firmware="bios")
    vm.start(paused=True)
    vm.destroy()
    vm.store_in_tpm(b"of the snapshot", index=1)
    home = crash_host.dir / "home"
    taken = take(vm, Vmkeep(crash_host, home=home), "inside", internal=True, uefi=False)
    zygote = Zygote(crash_host, home)
    yield Inside(vm, zygote, home, taken.truth)
    zygote.close()
    crash_host.clear()


@pytest.mark.parametrize(
    "place",
    [
        ("after", _REVERT + "change_internal_snapshot"),
        ("after", _REVERT + "remove_bitmap"),
        ("after", _LIBVIRT),
        ("after", f"{_SAVE}#3"),
    ],
    ids=_name,
)
def test_killed_revert_to_an_internal_snapshot_is_finished(inside: Inside, place: tuple[str, str]) -> None:
    inside.change()
    inside.start(Trap(*place))
    outcome = inside.zygote.finish()
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    (told,) = inside.zygote.run(["look"]).recovered
    assert "was finished" in told
    inside.assert_whole(inside.truth)


@pytest.mark.parametrize("place", [None, ("after", f"{_SAVE}#3"), ("after", f"{_DEFINE}#2")])
def test_internal_revert_that_libvirt_refuses_is_taken_back(inside: Inside, place: tuple[str, str] | None) -> None:
    """A bitmap appears in the second disk when the first may have been reverted already."""
    before = inside.change()
    inside.start(Trap("before", _LIBVIRT, "hold"), *([Trap(*place)] if place else []))
    inside.zygote.wait_reached()
    qemu_img("bitmap", "--add", inside.vm.disk_path("vdb"), "in-the-way")
    inside.zygote.go.touch()
    outcome = inside.zygote.finish()
    qemu_img("bitmap", "--remove", inside.vm.disk_path("vdb"), "in-the-way")
    if outcome.status != KILLED:
        assert outcome.error["code"] == "restore-pending"
        assert _PARKED in _definition(inside.vm)
    (told,) = inside.zygote.run(["look"]).recovered
    assert "taken back" in told or "undone" in told
    inside.assert_whole(before)
