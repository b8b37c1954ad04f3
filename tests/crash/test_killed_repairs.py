"""A repair of checkpoints killed at its effects: nothing of others is touched, and the same command ends it.

The base of the next point is there at each moment, or can be listed again: the point after it is incremental.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crash.bed import KILLED, Zygote, wait_until
from tests.crash.walk import NO_DEATH, deaths, need_effects
from tests.rig import Disk, Host, KiB, MiB, Vm, VmState
from tests.system.history import INCREMENTAL, Forked, modes
from tests.system.offline import bitmaps, qemu_img
from tests.system.truth import checkpoints

pytestmark = pytest.mark.crash
TARGETS = ("vda", "vdb")


@dataclass(slots=True)
class Mess:
    """A VM with a lost checkpoint, one that is left over and broken in a disk, an orphan, and one of somebody else."""

    vm: Vm
    vmkeep: Forked
    zygote: Zygote
    kept: dict[Path, Path]
    records: dict[str, str]
    base: str
    ours: tuple[str, ...]

    @classmethod
    def make(cls, host: Host, zygote: Zygote) -> Mess:
        vmkeep = Forked(host, zygote)
        vm = host.define("guest", disks=[Disk("vda", 4 * MiB), Disk("vdb", 2 * MiB)], tpm=False)
        vm.start(paused=True)
        vm.write_random("vda", start=0, length=1 * MiB, seed=1)
        vm.domain.checkpointCreateXML("<domaincheckpoint><name>theirs</name></domaincheckpoint>")
        base = vmkeep.backup("guest")["checkpoint"]
        left, orphan = (base[:-32] + uuid.uuid4().hex for _ in range(2))
        vm.domain.checkpointCreateXML(f"<domaincheckpoint><name>{left}</name></domaincheckpoint>")
        vm.write_random("vda", start=64 * KiB, length=64 * KiB, seed=2)
        vm.destroy()
        qemu_img("bitmap", "--remove", vm.disk_path("vdb"), left)
        qemu_img("bitmap", "--add", vm.disk_path("vda"), orphan)
        kept = {path: path.with_suffix(".kept") for path in map(vm.disk_path, TARGETS)}
        for path, copy in kept.items():
            shutil.copyfile(path, copy)
        vm.domain.checkpointLookupByName(base).delete(2)  # its record
        records = {name: vm.domain.checkpointLookupByName(name).getXMLDesc() for name in ("theirs", left)}
        return cls(vm, vmkeep, zygote, kept, records, base, (base, left, orphan))

    def put_back(self, state: VmState) -> None:
        self.vm.destroy()
        for path, copy in self.kept.items():
            shutil.copyfile(copy, path)
        for checkpoint in self.vm.domain.listAllCheckpoints():
            checkpoint.delete(2)
        for record in self.records.values():
            self.vm.domain.checkpointCreateXML(record, 1)
        if state is VmState.PAUSED:
            self.vm.start(paused=True)

    def repair(self) -> dict[str, Any]:
        document: dict[str, Any] = self.vmkeep.json("checkpoint", "repair", "guest")["repair"]
        return document

    def theirs(self) -> tuple[list[str], str]:
        """Return in which images their bitmap is, and their record."""
        held = [target for target in TARGETS if "theirs" in bitmaps(self.vm.disk_path(target))]
        return held, self.vm.domain.checkpointLookupByName("theirs").getXMLDesc()

    def assert_repaired(self) -> None:
        assert checkpoints(self.vm) == sorted(["theirs", self.base])
        held = {target: set(bitmaps(self.vm.disk_path(target))) for target in TARGETS}
        assert held == {target: {"theirs", self.base} for target in TARGETS}


@pytest.fixture(scope="module")
def mess(crash_host: Host) -> Iterator[Mess]:
    need_effects()
    crash_host.clear()
    zygote = Zygote(crash_host, crash_host.dir / "home")
    yield Mess.make(crash_host, zygote)
    zygote.close()
    crash_host.clear()


@pytest.mark.parametrize(("state", "most"), [(VmState.OFF, 6), (VmState.PAUSED, 5)])
def test_repair_killed_anywhere_is_ended_by_the_same_command(mess: Mess, state: VmState, most: int) -> None:
    mess.put_back(state)
    theirs = mess.theirs()
    command = ("--json", "checkpoint", "repair", "guest")
    undisturbed = mess.zygote.command(*command, death=NO_DEATH)
    assert undisturbed.status == 0, undisturbed
    done = json.loads(undisturbed.out)["repair"]["done"]
    assert {step["checkpoint"] for step in done} == set(mess.ours)
    mess.assert_repaired()
    effects = mess.zygote.effects
    killed = 0
    for death in deaths(effects, most):
        mess.put_back(state)
        outcome = mess.zygote.command(*command, death=death)
        killed += outcome.status == KILLED
        try:
            # A qemu-img that the dead one started goes on, and meanwhile its image shows no bitmap at all.
            wait_until(lambda: mess.theirs() == theirs, "the bitmaps of somebody else changed", 30)
            assert mess.repair()["complete"]
            mess.assert_repaired()
            assert mess.theirs() == theirs
        except AssertionError as error:
            error.add_note(f"killed at effect {death}: {effects[(death.effect or 1) - 1]}")
            raise
    assert killed > 0
    point = mess.vmkeep.backup("guest")
    assert set(modes(point).values()) == {INCREMENTAL}
    assert [disk["bytes_read"] for disk in point["disks"]] == [64 * KiB, 0]
    mess.vmkeep.assert_all_kept()
    mess.vmkeep.delete(point)
