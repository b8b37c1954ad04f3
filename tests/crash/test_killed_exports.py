"""Export and import of state are killed at their effects: a file is whole or not there, a version kept or not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.bed import KILLED, Zygote
from tests.crash.walk import NO_DEATH, deaths, need_effects
from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep

pytestmark = [pytest.mark.system, pytest.mark.crash]

_MOST = 5


@dataclass(frozen=True, slots=True)
class _Bed:
    host: Host
    vm: Vm
    vmkeep: Vmkeep
    zygote: Zygote
    key: Path

    def versions(self, vm: Vm) -> set[tuple[str, int, str]]:
        known = self.vmkeep.run("--json", "state", "versions", vm.name)
        if known.returncode != 0:
            return set()
        versions = self.vmkeep.json("state", "versions", vm.name)["versions"]
        return {(each["kind"], each["version"], each["sha256"]) for each in versions}


@pytest.fixture(scope="module")
def bed() -> Iterator[_Bed]:
    need_effects()
    with Host("crash", idle_firmware=True) as host:
        vm = host.define("guest", disks=[Disk("vda", MiB)])
        vm.start(paused=True)
        vm.destroy()
        vmkeep = Vmkeep(host)
        vmkeep.backup("guest")
        (key,) = (vmkeep.home / "keys").glob("*.key")
        zygote = Zygote(host, vmkeep.home)
        yield _Bed(host, vm, vmkeep, zygote, key)
        zygote.close()


def test_export_killed_at_any_effect_leaves_a_whole_file_or_none(bed: _Bed) -> None:
    work = bed.host.dir / "work" / "exported"
    work.mkdir()
    words = ["--json", "state", "export", "guest", "--key", str(bed.key), "--to"]
    undisturbed = bed.zygote.command(*words, str(work / "state"), death=NO_DEATH, env=bed.vmkeep.environment)
    assert undisturbed.status == 0, undisturbed
    (work / "state").unlink()
    killed = 0
    for death in deaths(bed.zygote.effects, _MOST, daily=True):
        ended = bed.zygote.command(*words, str(work / "state"), death=death, env=bed.vmkeep.environment)
        killed += ended.status == KILLED
        assert ended.status in (KILLED, 0), (death, ended)
        left = list(work.iterdir())
        assert left in ([], [work / "state"]), death
        for path in left:
            assert path.stat().st_mode & 0o777 == 0o600
            imported = bed.vmkeep.json("state", "import", path)["imported"]
            assert (imported["new"], len(imported["known"])) == ([], 2), death
            path.unlink()
    assert killed > _MOST / 2


def test_import_killed_at_any_effect_keeps_all_or_nothing_and_the_next_one_does_it(bed: _Bed) -> None:
    file = bed.host.dir / "work" / "kept"
    bed.vmkeep.json("state", "export", "guest", "--key", bed.key, "--to", file)
    contents = {("tpm", bed.vm.tpm_state()), ("nvram", bed.vm.nvram())}
    kept = {(kind, 1, hashlib.sha256(content).hexdigest()) for kind, content in contents}

    def a_vm(name: str) -> Vm:
        return bed.host.define(name, disks=[Disk("vda", MiB)], firmware="bios", tpm=False)

    def command(vm: Vm) -> list[str]:
        return ["--json", "state", "import", str(file), "--vm", vm.uuid]

    undisturbed = bed.zygote.command(*command(a_vm("first")), death=NO_DEATH, env=bed.vmkeep.environment)
    assert undisturbed.status == 0, undisturbed
    killed = 0
    for number, death in enumerate(deaths(bed.zygote.effects, _MOST, daily=True)):
        vm = a_vm(f"other{number}")
        ended = bed.zygote.command(*command(vm), death=death, env=bed.vmkeep.environment)
        killed += ended.status == KILLED
        assert ended.status in (KILLED, 0), (death, ended)
        assert bed.versions(vm) in (set(), kept), death
        bed.vmkeep.json(*command(vm)[1:])
        assert bed.versions(vm) == kept
    assert killed > _MOST / 2
    assert bed.vmkeep.json("verify", "--all")["ok"] is True
