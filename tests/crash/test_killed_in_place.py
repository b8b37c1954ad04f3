"""A restore in place is killed everywhere: the VM cannot start on half of it, and the next start ends it, whole."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
import pytest

from tests.crash.bed import KILLED, Outcome, Trap, Zygote
from tests.crash.walk import SHARES, Death, deaths, need_effects
from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, random_bytes
from tests.system.offline import bitmaps, qemu_img, write_offline, zero_offline
from tests.system.truth import Truth, checkpoints
from tests.turns import sampled

pytestmark = [pytest.mark.system, pytest.mark.crash]

_INPLACE = "vmkeep.host.restores.in_place:"
_STEP = "vmkeep.flows.plan:Plan.step"
_DEFINE = "vmkeep.hypervisor.connection:Hypervisor.define"
_SAVE = "vmkeep.host.records.restore:RestoreJournal.save"

# From here on the VM is not what it was, or is kept from starting.
_FORWARD = [
    ("after", _SAVE),
    ("after", _DEFINE),
    ("before", _INPLACE + "stage_tpm"),
    ("before", f"{_SAVE}#2"),
    ("after", f"{_SAVE}#2"),
    ("after", f"{_STEP}#2"),
    ("after", "vmkeep.transfer.server:ImageConnection.write"),
    ("after", "vmkeep.transfer.server:ImageConnection.zero"),
    ("after", "vmkeep.transfer.server:ImageConnection.flush#2"),
    ("after", _INPLACE + "InPlace.write"),
    ("before", "vmkeep.host.restores.items:publish#2"),
    ("before", "vmkeep.statefiles.installation:_sync#4"),
    ("after", _INPLACE + "publish_items"),
    ("after", f"{_STEP}#4"),
    ("after", "vmkeep.host.checkpoints.rebinding:remove_bitmap"),
    ("after", "vmkeep.host.checkpoints.rebinding:add_bitmap"),
    ("after", "vmkeep.hypervisor.domain:Domain.redefine_checkpoint"),
    ("after", "vmkeep.hypervisor.domain:Domain.forget_checkpoint"),
    ("after", f"{_STEP}#6"),
    ("after", f"{_SAVE}#3"),
]
# The VM may start again by then; only the cleaning up is left.
_RELEASED = [
    ("after", f"{_DEFINE}#2"),
    ("before", "vmkeep.host.restores.unfinished:discard_replaced"),
    ("before", "vmkeep.host.records.restore:RestoreJournal.remove"),
    ("after", "vmkeep.host.records.restore:RestoreJournal.remove"),
    ("after", f"{_STEP}#7"),
]
_STARTABLE_BEFORE_PARKING = _FORWARD[:1]


def _name(place: tuple[str, str]) -> str:
    return f"{place[0]}-{place[1].rpartition(':')[2]}"


@dataclass(slots=True)
class Pair:
    """A VM that is off, at one of two points that differ in disks, UEFI variables and TPM; runs of vmkeep."""

    host: Host
    vm: Vm
    zygote: Zygote
    home: Path
    truths: dict[str, Truth]
    at: str
    definition: str
    packs: dict[str, Path]  # where the blocks lie that only this point has
    sound: bool = True
    effects: list[str] = field(default_factory=list)  # of an undisturbed restore

    @property
    def other(self) -> str:
        return next(point for point in self.truths if point != self.at)

    def restore(self, *traps: Trap) -> Outcome:
        """Restore the point that the VM is not at; the one that it is at serves as the safety point."""
        self.start_restore(*traps)
        return self.zygote.finish()

    def start_restore(self, *traps: Trap) -> None:
        self.zygote.start(["restore_in_place", self.other, self.vm.name, self.at], traps=traps)

    def walk(self, death: Death) -> Outcome:
        """Restore like ``restore``, with the effects counted."""
        return self.zygote.walk(["restore_in_place", self.other, self.vm.name, self.at], death=death)

    def look(self, *traps: Trap) -> Outcome:
        return self.zygote.run(["look"], traps=traps)

    def refuses_to_start(self) -> str:
        with pytest.raises(libvirt.libvirtError) as raised:
            self.vm.start()
        assert self.vm.state() is VmState.OFF
        return str(raised.value)

    def assert_cannot_start_unless_whole(self) -> None:
        """Fail unless the VM is kept from starting, or is wholly at one of the two points and may start."""
        if _definition(self.vm) != self.definition:
            assert "restore-of-guest-not-finished--run-vmkeep-doctor" in self.refuses_to_start()
            return
        now = Truth.of(self.vm)
        assert now in self.truths.values(), "the VM may start, and is at neither point"

    def assert_at(self, point: str) -> None:
        """Fail unless the VM is wholly at the point, is ready to start, and its next point builds on that one."""
        self.truths[point].assert_vm(self.vm)
        assert _definition(self.vm) == self.definition
        (checkpoint,) = [name for name in checkpoints(self.vm) if name.startswith("vmkeep-")]
        assert checkpoint.endswith(point)
        described = json.loads(qemu_img("info", "--output=json", self.vm.disk_path("vda")))
        found = {each["name"]: each["flags"] for each in described["format-specific"]["data"]["bitmaps"]}
        assert found[checkpoint] == ["auto"]
        assert [name for name in found if name.startswith("vmkeep-")] == [checkpoint]
        with closing(sqlite3.connect(self.home / "catalog.sqlite")) as catalog:
            assert catalog.execute("SELECT current_point FROM vms").fetchall() == [(point,)]
            unfinished = "SELECT id FROM operations WHERE state NOT IN ('done', 'failed')"
            assert catalog.execute(unfinished).fetchall() == []
        for name in ("owners", "guards", "locks", "restores"):
            assert [path.name for path in (self.home / name).iterdir()] == [], name
        places = [self.host.dir / "disks", self.vm.tpm_directory.parent, self.vm.nvram_path.parent]
        left = [path for place in places for path in place.rglob(".*") if path.name != ".lock"]
        assert left == []
        run = self.host.path("/run/vmkeep")
        assert not run.exists() or list(run.iterdir()) == []
        self.at = point
        self.sound = True


def _definition(vm: Vm) -> str:
    return vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)


def _make(host: Host) -> Pair:
    vm = host.define("guest", disks=[Disk("vda", 6 * MiB), Disk("vdb", 2 * MiB + 512, format="raw")])
    vm.start(paused=True)
    vm.destroy()
    home = host.dir / "home"
    zygote = Zygote(host, home)
    truths: dict[str, Truth] = {}
    packs: dict[str, Path] = {}
    for seed in (1, 2):
        # The points share no block of data, so that each can be damaged alone.
        for number, target in enumerate(("vda", "vdb")):
            write_offline(vm, target, random_bytes(10 * seed + number, 512 * KiB), start=256 * KiB)
        zero_offline(vm, "vda", start=seed * 256 * KiB, length=128 * KiB)
        vm.change_nvram()
        vm.change_tpm()
        point = zygote.run(["backup", vm.name]).acts[0]["point"]["id"]
        truths[point] = Truth.of(vm)
        new = set((home / "repository" / "packs").glob("*/*")) - set(packs.values())
        packs[point] = max(new, key=lambda path: path.stat().st_size)
    return Pair(host, vm, zygote, home, truths, at=list(truths)[-1], definition=_definition(vm), packs=packs)


@pytest.fixture(scope="module")
def pairs(crash_host: Host) -> Iterator[list[Pair]]:
    crash_host.clear()
    made: list[Pair] = []
    yield made
    for pair in made:
        pair.zygote.close()
    crash_host.clear()


@pytest.fixture
def pair(pairs: list[Pair], crash_host: Host) -> Pair:
    if pairs and not pairs[-1].sound:
        pairs.pop().zygote.close()
        crash_host.clear()
        for place in ("/run/vmkeep", "/var/lib/libvirt/swtpm", "/var/lib/libvirt/qemu/nvram"):
            for left in crash_host.path(place).glob("*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    if not pairs:
        pairs.append(_make(crash_host))
    pairs[-1].sound = False
    return pairs[-1]


@pytest.mark.parametrize("place", sampled(_FORWARD, 3), ids=_name)
def test_killed_restore_keeps_the_vm_off_and_is_finished_by_the_next_start(pair: Pair, place: tuple[str, str]) -> None:
    aim = pair.other
    outcome = pair.restore(Trap(*place))
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    if place not in _STARTABLE_BEFORE_PARKING:
        assert "restore-of-guest-not-finished--run-vmkeep-doctor" in pair.refuses_to_start()

    recovered = pair.look().recovered
    assert [told for told in recovered if "was finished" in told] == recovered
    assert len(recovered) == 1
    pair.assert_at(aim)


@pytest.mark.parametrize("share", range(SHARES))
def test_restore_killed_at_any_effect_is_finished_or_never_began(pair: Pair, share: int) -> None:
    need_effects()
    if not pair.effects:
        aim = pair.other
        assert pair.walk(Death(None)).status == 0
        pair.effects = pair.zygote.effects
        pair.assert_at(aim)
    for death in deaths(pair.effects, 4, daily=True)[share::SHARES]:
        aim, start = pair.other, pair.at
        pair.sound = False
        outcome = pair.walk(death)
        recovered: list[str] = []
        try:
            pair.assert_cannot_start_unless_whole()
            recovered = pair.look().recovered
            if outcome.status == KILLED and recovered == [] and Truth.of(pair.vm) == pair.truths[start]:
                pair.assert_at(start)
                assert pair.restore().status == 0
            pair.assert_at(aim)
        except Exception as error:
            error.add_note(f"killed at {death}: {pair.effects[(death.effect or 1) - 1]}; told: {recovered}")
            raise
    pair.sound = True


@pytest.mark.parametrize("place", sampled(_RELEASED, 1), ids=_name)
def test_restore_killed_while_it_cleans_up_leaves_nothing(pair: Pair, place: tuple[str, str]) -> None:
    aim = pair.other
    outcome = pair.restore(Trap(*place))
    assert outcome.status == KILLED, f"the place was not reached: {outcome}"
    pair.vm.start(paused=True)
    pair.vm.destroy()
    assert len(pair.look().recovered) == 1
    pair.assert_at(aim)


def test_next_point_after_a_finished_restore_is_incremental_and_holds_all(pair: Pair) -> None:
    aim = pair.other
    trap = Trap("after", "vmkeep.transfer.server:ImageConnection.write")
    assert pair.restore(trap).status == KILLED
    output = pair.host.dir / "work" / "all"
    output.mkdir()
    taken = pair.zygote.run(["backup", pair.vm.name], ["restore_all", str(output)]).acts[0]["point"]
    assert (taken["parent"], taken["kind"]) == (aim, "incremental")
    modes = {disk["target"]: (disk["mode"], disk["bytes_read"]) for disk in taken["disks"]}
    assert modes["vda"] == ("incremental", 0)
    pair.truths[aim].assert_files(output / taken["id"], "raw")


def test_killed_server_leaves_no_bitmap_that_lies(pair: Pair) -> None:
    """kill -9 of qemu-nbd marks every bitmap of the image as in use; ours are made anew, others' are told of."""
    aim = pair.other
    disk = pair.vm.disk_path("vda")
    qemu_img("bitmap", "--add", disk, "somebody-else")
    pair.start_restore(Trap("after", "vmkeep.transfer.server:ImageConnection.write", "hold"))
    pair.zygote.wait_reached()
    servers = [pid for pid in _processes(b"qemu-nbd") if disk.stat().st_ino in _open_files(pid)]
    assert len(servers) == 1
    os.kill(servers[0], signal.SIGKILL)
    pair.zygote.kill()
    pair.zygote.go.touch()
    assert pair.zygote.finish().status == KILLED
    _wait_for_the_end(servers[0])  # it has the image locked until then
    assert "in-use" in qemu_img("info", disk)
    pair.refuses_to_start()

    (told,) = pair.look().recovered
    assert "somebody-else" in told
    assert "in-use" in qemu_img("info", disk)  # it is not ours to remove
    qemu_img("bitmap", "--remove", disk, "somebody-else")
    pair.assert_at(aim)


def _processes(name: bytes) -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and name in _words(int(entry.name))
    ]


def _open_files(pid: int) -> set[int]:
    """Return the inodes of what a process has open: a server of images is handed them without a name."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(entry.stat().st_ino)
    return found


def _wait_for_the_end(pid: int) -> None:
    """Return when a process that was killed has closed its files."""
    until = time.monotonic() + 30
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while any(Path(f"/proc/{pid}/fd").iterdir()):
            assert time.monotonic() < until, f"process {pid} does not end"
            time.sleep(0.01)


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


_BACK = [
    ("after", f"{_SAVE}#3"),
    ("after", _INPLACE + "withdraw_items"),
    ("after", "vmkeep.host.restores.overwriting:overwrite#2"),
    ("after", "vmkeep.host.checkpoints.rebinding:remove_bitmap"),
    ("after", "vmkeep.host.checkpoints.rebinding:add_bitmap"),
    ("after", f"{_DEFINE}#2"),
    ("after", "vmkeep.host.records.restore:RestoreJournal.remove"),
    ("after", "vmkeep.flows.plan:Plan.undo_all"),
]


@pytest.mark.parametrize("place", sampled(_BACK, 1), ids=_name)
def test_rolling_back_that_is_killed_is_rolled_back_by_the_next_start(pair: Pair, place: tuple[str, str]) -> None:
    """The point's last block cannot be read; what is killed then is the undoing, and it must not turn round."""
    start = pair.at
    with _Damaged(pair, pair.other):
        outcome = pair.restore(Trap(*place))
        assert outcome.status == KILLED, f"the place was not reached: {outcome}"
        recovered = pair.look().recovered
        assert len(recovered) == 1
        assert "undone" in recovered[0]
    pair.assert_at(start)


class _Damaged:
    """Flips a byte of the blocks that only one point has, towards their end, for the block."""

    def __init__(self, pair: Pair, point: str) -> None:
        self._pack = pair.packs[point]

    def __enter__(self) -> None:
        self._flip()

    def __exit__(self, *_: object) -> None:
        self._flip()

    def _flip(self) -> None:
        with self._pack.open("r+b") as stream:
            stream.seek(self._pack.stat().st_size * 9 // 10)
            byte = stream.read(1)
            stream.seek(-1, 1)
            stream.write(bytes([byte[0] ^ 1]))


def test_restore_that_can_neither_go_on_nor_back_stays_parked_until_it_can(pair: Pair) -> None:
    start = pair.at
    with _Damaged(pair, pair.other), _Damaged(pair, start):
        outcome = pair.restore()
        assert outcome.error["code"] == "restore-pending"
        assert "doctor --fix" in outcome.error["hint"]
        assert any("failed first" in note for note in outcome.result["notes"])
        pair.refuses_to_start()
        refused = pair.zygote.run(["backup", pair.vm.name])
        assert refused.error["code"] == "restore-pending"
        for needed in (start, pair.other):
            assert pair.zygote.run(["delete", needed]).error["code"] == "vm-busy"
        again = pair.zygote.run(["restore_in_place", start, pair.vm.name, None])
        assert again.error["code"] == "restore-pending"
        pair.refuses_to_start()
    assert ["rolled back" in told for told in pair.look().recovered] == [True]
    pair.assert_at(start)


def test_restore_whose_flow_is_lost_is_rolled_back_from_its_journal(pair: Pair) -> None:
    start = pair.at
    assert pair.restore(Trap("after", _INPLACE + "InPlace.write")).status == KILLED
    for path in pair.home.glob("flows.sqlite*"):
        path.unlink()
    assert ["rolled back" in told for told in pair.look().recovered] == [True]
    pair.assert_at(start)


def test_definition_put_right_by_hand_is_not_written_under(pair: Pair) -> None:
    """Whoever made the VM start again may have written to it: vmkeep stops, and says how to go on."""
    assert pair.restore(Trap("after", _INPLACE + "InPlace.write")).status == KILLED
    pair.host.connection.defineXML(pair.definition)
    before = pair.vm.read_image("vda")
    recovered = pair.look().recovered
    assert any("by hand" in told for told in recovered)
    assert pair.vm.read_image("vda") == before
    (journal,) = (pair.home / "restores").glob("*.json")
    journal.unlink()
    # The safety point is the way back, and the command takes it.
    start = pair.at
    pair.zygote.run(["restore_in_place", start, pair.vm.name, None]).acts  # noqa: B018  raises when it failed
    pair.truths[start].assert_vm(pair.vm)


@pytest.mark.parametrize("running", [False, True])
def test_vm_that_ran_after_its_safety_point_is_not_written_over(pair: Pair, running: bool) -> None:
    pair.start_restore(Trap("before", "vmkeep.flows.restore_in_place:park", "hold"))
    pair.zygote.wait_reached()
    pair.vm.start(paused=True)
    pair.vm.write("vda", start=3 * MiB, length=64 * KiB, pattern=0x77)
    if not running:
        pair.vm.destroy()
    pair.zygote.go.touch()
    outcome = pair.zygote.finish()
    assert outcome.error["code"] == ("vm-running" if running else "vm-busy")
    assert _definition(pair.vm) == pair.definition
    pair.vm.destroy()
    assert pair.vm.read_image("vda")[3 * MiB : 3 * MiB + 64 * KiB] == b"\x77" * (64 * KiB)
    assert bitmaps(pair.vm.disk_path("vda")) != []
    pair.vm.start(paused=True)
    pair.vm.destroy()


def test_raw_image_written_after_the_safety_point_is_not_written_over_whatever_the_clock_said(pair: Pair) -> None:
    """It has no bitmap, so what its file tells is compared with what that told before, and never with a clock."""
    image = pair.vm.disk_path("vdb")
    ahead = time.time() + 86400
    os.utime(image, (ahead, ahead))  # last written while the clock was ahead
    pair.zygote.start(
        ["restore_in_place", pair.other, pair.vm.name, None],
        traps=[Trap("before", "vmkeep.flows.restore_in_place:park", "hold")],
    )
    pair.zygote.wait_reached()
    write_offline(pair.vm, "vdb", b"\x5a" * (64 * KiB), start=64 * KiB)
    back = time.time() - 86400
    os.utime(image, (back, back))  # it was put back, and further
    written = Truth.of(pair.vm)
    pair.zygote.go.touch()
    outcome = pair.zygote.finish()
    assert outcome.error["code"] == "vm-busy"
    assert str(image) in outcome.error["message"]
    written.assert_vm(pair.vm)
    aim = pair.other
    os.utime(image, (ahead, ahead))
    pair.zygote.run(["restore_in_place", aim, pair.vm.name, None]).acts  # noqa: B018  raises when it failed
    pair.truths[aim].assert_vm(pair.vm)


def test_safety_point_is_taken_first_and_survives_a_kill(pair: Pair) -> None:
    aim = pair.other
    write_offline(pair.vm, "vda", random_bytes(77, 64 * KiB), start=4 * MiB)
    truth = Truth.of(pair.vm)
    trap = Trap("after", "vmkeep.transfer.server:ImageConnection.write")
    outcome = pair.zygote.run(["restore_in_place", aim, pair.vm.name, None], traps=[trap])
    assert outcome.status == KILLED
    _, points, stored = pair.look().acts[0]
    assert points == stored
    (safety,) = set(points) - set(pair.truths)
    pair.truths[aim].assert_vm(pair.vm)
    pair.zygote.run(["restore_in_place", safety, pair.vm.name, None]).acts  # noqa: B018  raises when it failed
    truth.assert_vm(pair.vm)


def test_image_in_use_elsewhere_is_refused_before_the_first_write(pair: Pair) -> None:
    start = pair.at
    thief = pair.host.define(
        "thief", disks=[Disk("vda", format="raw", path=pair.vm.disk_path("vdb"))], firmware="bios", tpm=False
    )
    thief.start(paused=True)
    outcome = pair.restore()
    thief.destroy()
    thief.undefine()
    assert outcome.error["code"] == "vm-busy"
    pair.assert_at(start)
