"""UEFI variables are replaced, and killed at effects: they are those from before or the new ones, and none are lost."""

from __future__ import annotations

import hashlib

import pytest

from tests.crash.bed import KILLED, Zygote
from tests.crash.walk import NO_DEATH, Death, deaths, need_effects
from tests.rig import Disk, Host, MiB
from tests.rig.cli import Vmkeep

pytestmark = [pytest.mark.system, pytest.mark.crash]

_MOST = 3


def test_enrolment_killed_at_any_effect_is_finished_by_the_next_command() -> None:
    need_effects()
    with Host("crash", idle_firmware=True) as host:
        vm = host.define("guest", disks=[Disk("vda", MiB)], tpm=False)
        vm.start(paused=True)
        vm.destroy()
        vmkeep = Vmkeep(host)
        zygote = Zygote(host, vmkeep.home)
        before = vm.nvram()

        def run(*words: str, death: Death = NO_DEATH) -> int:
            status: int = zygote.command("--json", "nvram", *words, death=death, env=vmkeep.environment).status
            return status

        def back() -> None:
            assert run("restore", "guest", "--version", hashlib.sha256(before).hexdigest(), "--yes") == 0
            assert vm.nvram() == before

        assert run("enroll", "guest", "--yes") == 0
        after = vm.nvram()
        back()
        # The first one keeps what lies there for the first time, and has effects that those which are killed have not.
        assert run("enroll", "guest", "--yes") == 0
        effects = zygote.effects
        killed = 0
        for death in deaths(effects, _MOST):
            back()
            status = run("enroll", "guest", "--yes", death=death)
            killed += status == KILLED
            assert status in (KILLED, 0), death
            assert not vm.nvram_path.exists() or vm.nvram() in (before, after), death
            vmkeep.json("doctor", "--fix", "guest")
            assert vmkeep.json("log")["operations"][0]["state"] in ("done", "failed"), death
            assert vm.nvram() in (before, after), death
            assert [path.name for path in vm.nvram_path.parent.iterdir()] == [vm.nvram_path.name], death
            (state,) = vmkeep.json("state", "list", "guest")["states"]
            assert state["standing"] == "current", death
            assert vmkeep.json("nvram", "enroll", "guest", "--yes")["replaced"]["now"]["sha256"], death
            assert vm.nvram() == after, death
        assert killed > _MOST / 2
        assert vmkeep.json("verify", "--all")["ok"]
        zygote.close()
