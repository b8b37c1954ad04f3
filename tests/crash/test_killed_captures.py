"""A capture of state files, and the making of the gate, are killed at their effects: no newest version is lost."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.crash.bed import KILLED, Zygote
from tests.crash.walk import NO_DEATH, deaths, need_effects
from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep

pytestmark = [pytest.mark.system, pytest.mark.crash]

_MOST = 6


@dataclass(frozen=True, slots=True)
class _Bed:
    host: Host
    vm: Vm
    vmkeep: Vmkeep
    zygote: Zygote

    def states(self) -> dict[str, dict[str, Any]]:
        return {state["kind"]: state for state in self.vmkeep.json("state", "list", self.vm.name)["states"]}

    def versions(self) -> list[dict[str, Any]]:
        versions = self.vmkeep.json("state", "versions", self.vm.name, "--kind", "tpm")["versions"]
        assert isinstance(versions, list)
        return versions


@pytest.fixture(scope="module")
def bed() -> Iterator[_Bed]:
    """A VM that is off, of which a point was taken, on a host with a gate."""
    need_effects()
    with Host("crash", idle_firmware=True) as host:
        vm = host.define("guest", disks=[Disk("vda", MiB)])
        vm.start(paused=True)
        vm.destroy()
        vmkeep = Vmkeep(host)
        vmkeep.backup("guest")
        vmkeep.json("hook", "install")
        zygote = Zygote(host, vmkeep.home)
        yield _Bed(host, vm, vmkeep, zygote)
        zygote.close()


def test_capture_killed_at_any_effect_is_done_by_the_next_one_and_the_newest_stays_the_newest(bed: _Bed) -> None:
    bed.vm.change_tpm()
    undisturbed = bed.zygote.command("--json", "state", "capture", "guest", death=NO_DEATH, env=bed.vmkeep.environment)
    assert undisturbed.status == 0, undisturbed
    killed = 0
    for death in deaths(bed.zygote.effects, _MOST, daily=True):
        before = bed.versions()
        bed.vm.change_tpm()
        now = hashlib.sha256(bed.vm.tpm_state()).hexdigest()
        ended = bed.zygote.command("--json", "state", "capture", "guest", death=death, env=bed.vmkeep.environment)
        killed += ended.status == KILLED
        assert ended.status in (KILLED, 0), (death, ended)
        after = bed.versions()
        assert [each["sha256"] for each in after] in (
            [each["sha256"] for each in before],
            [now, *(each["sha256"] for each in before)],
        ), death
        assert bed.states()["tpm"]["standing"] in ("changed", "current")
        bed.vm.start(paused=True)  # the gate lets it, whether it heard of the version or not
        bed.vm.destroy()
        bed.vmkeep.json("state", "capture", "guest")
        assert bed.states()["tpm"]["standing"] == "current"
        (newest,) = [each for each in bed.versions() if each["current"]]
        assert newest["sha256"] == hashlib.sha256(bed.vm.tpm_state()).hexdigest()
        assert newest["kept"], "it is pinned in the repository"
    assert killed > _MOST / 2


def test_gate_killed_at_any_effect_of_its_making_keeps_no_sound_vm_and_is_made_by_the_next_one(bed: _Bed) -> None:
    bed.vmkeep.json("state", "capture", "guest")
    bed.vmkeep.json("hook", "remove")
    undisturbed = bed.zygote.command("--json", "hook", "install", death=NO_DEATH, env=bed.vmkeep.environment)
    assert undisturbed.status == 0, undisturbed
    killed = 0
    for death in deaths(bed.zygote.effects, _MOST, daily=True):
        bed.vmkeep.json("hook", "remove")
        ended = bed.zygote.command("--json", "hook", "install", death=death, env=bed.vmkeep.environment)
        killed += ended.status == KILLED
        bed.vm.start(paused=True)
        bed.vm.destroy()
        bed.vmkeep.json("hook", "install")
        assert bed.vmkeep.json("hook", "status")["gate"]["problem"] is None
    assert killed > _MOST / 2
    assert not list((bed.vmkeep.home / "gate").rglob(".*"))
    assert [path.name for path in bed.host.path("/etc/libvirt/hooks/qemu.d").iterdir()] == ["vmkeep"]
    shutil.rmtree(bed.vm.tpm_directory)
    assert bed.states()["tpm"]["standing"] == "missing"
