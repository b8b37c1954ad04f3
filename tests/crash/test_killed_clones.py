"""VMs are cloned and renamed, and killed at effects: a clone is whole or nothing of it stays, and a VM has one name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.bed import KILLED, Zygote
from tests.crash.walk import NO_DEATH, Death, deaths, need_effects
from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep

pytestmark = [pytest.mark.system, pytest.mark.crash]

_MOST = 3
_VALUE = b"opens the state of the TPM"


@dataclass(frozen=True, slots=True)
class _Bed:
    host: Host
    vm: Vm
    vmkeep: Vmkeep
    zygote: Zygote
    files: dict[str, str]
    definition: str

    def run(self, *words: str, death: Death = NO_DEATH) -> int:
        return self.zygote.command("--json", "vm", *words, death=death, env=self.vmkeep.environment).status

    def everything(self) -> set[str]:
        found = {str(path) for path in self.host.path("/var/lib/libvirt/swtpm").rglob("*") if path.name != ".lock"}
        found |= {str(path) for path in (self.host.dir / "disks").iterdir()}
        return found | {each.UUIDString() for each in self.host.connection.listAllDomains()} | set(self.host.secrets())

    def names(self) -> set[str]:
        return {each.name() for each in self.host.connection.listAllDomains()}

    def settle(self) -> None:
        self.vmkeep.run("doctor", "--fix")
        assert self.vmkeep.json("log")["operations"][0]["state"] in ("done", "failed")
        assert files_of(self.vm) == self.files


def files_of(vm: Vm) -> dict[str, str]:
    paths = [vm.disk("vda").path, vm.tpm_directory / "tpm2" / "tpm2-00.permall"]
    return {str(path): hashlib.sha256(Path(str(path)).read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def bed() -> Iterator[_Bed]:
    need_effects()
    with Host("crash") as host:
        secret = host.define_secret(_VALUE)
        backend = f"<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"
        vm = host.define("guest", disks=[Disk("vda", MiB)], firmware="bios", tpm_backend=backend)
        vm.start(paused=True)
        vm.write("vda", start=0, length=64 << 10)
        vm.destroy()
        vmkeep = Vmkeep(host)
        vmkeep.backup("guest")
        zygote = Zygote(host, vmkeep.home)
        yield _Bed(host, vm, vmkeep, zygote, files_of(vm), vm.domain.XMLDesc(2))
        zygote.close()


def _remove(bed: _Bed, before: set[str]) -> None:
    """Remove the clone, which must be whole, and all that is of it."""
    clone = bed.host.vm("other")
    if clone.tpm_directory.exists():
        # What was copied; by then it may have a key of its own, with which it must open.
        first = bed.vmkeep.json("state", "versions", clone.uuid, "--kind", "tpm")["versions"][-1]
        assert first["sha256"] == hashlib.sha256(bed.vm.tpm_state()).hexdigest()
    else:
        assert bed.vmkeep.json("tpm", "show", clone.uuid)["tpm"]["device"]["secret_kept_in"] is not None
    clone.start(paused=True)
    clone.delete()
    for secret in set(bed.host.secrets()) - before:
        bed.host.connection.secretLookupByUUIDString(secret).undefine()
    assert bed.everything() == before


@pytest.mark.in_turn(1, among="clones")
@pytest.mark.parametrize("tpm", ["copy", "new"])
def test_clone_killed_at_any_effect_is_whole_or_gone(bed: _Bed, tpm: str) -> None:
    words = ("clone", "guest", "other", "--tpm", tpm, "--yes")
    before = bed.everything()
    assert bed.run(*words) == 0
    effects = bed.zygote.effects
    _remove(bed, before)
    killed = 0
    for death in deaths(effects, _MOST, daily=True):
        status = bed.run(*words, death=death)
        killed += status == KILLED
        assert status in (KILLED, 0), death
        bed.settle()
        if "other" in bed.names():
            _remove(bed, before)
        assert bed.everything() == before, death
    assert killed > _MOST / 2
    assert bed.vm.domain.XMLDesc(2) == bed.definition


@pytest.mark.in_turn(1, among="clones")
def test_name_changed_and_killed_at_any_effect_is_one_name_with_all_that_is_by_it(bed: _Bed) -> None:
    checkpoints = [each.getName() for each in bed.vm.domain.listAllCheckpoints()]
    assert checkpoints
    assert bed.run("rename", "guest", "after") == 0
    effects = bed.zygote.effects
    assert bed.run("rename", "after", "guest") == 0
    killed = 0
    for death in deaths(effects, _MOST, daily=True):
        status = bed.run("rename", "guest", "after", death=death)
        killed += status == KILLED
        assert status in (KILLED, 0), death
        bed.settle()
        assert [each.getName() for each in bed.vm.domain.listAllCheckpoints()] == checkpoints, death
        if bed.names() == {"after"}:
            assert bed.run("rename", "after", "guest") == 0, death
        assert bed.names() == {"guest"}, death
    assert killed > _MOST / 2
