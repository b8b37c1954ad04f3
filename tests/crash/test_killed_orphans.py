"""Orphans are kept and deleted, and killed at their effects: nothing but them goes, and the same command ends it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import libvirt
import pytest

from tests.crash.bed import KILLED, Trap, Zygote
from tests.crash.walk import NO_DEATH, Death, deaths, need_effects
from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep

pytestmark = [pytest.mark.system, pytest.mark.crash]

_MOST = 5


@dataclass(frozen=True, slots=True)
class _Bed:
    """``model`` is a copy of a TPM's directory; orphans are made of it, each of a VM of its own."""

    host: Host
    vm: Vm
    vmkeep: Vmkeep
    zygote: Zygote
    model: Path

    def orphan(self, vm_uuid: str, added: bytes = b"") -> Path:
        """Make an orphan of a VM; ``added`` makes its content another one."""
        directory = self.vm.tpm_directory.with_name(vm_uuid)
        shutil.copytree(self.model, directory)
        permall = directory / "tpm2" / "tpm2-00.permall"
        permall.write_bytes(permall.read_bytes() + added)
        return directory

    def run(self, *words: str, death: Death = NO_DEATH) -> int:
        return self.zygote.command("--json", "orphans", *words, death=death, env=self.vmkeep.environment).status

    def hashes(self, vm_uuid: str) -> list[tuple[str, bool]]:
        versions = self.vmkeep.json("state", "versions", vm_uuid, "--kind", "tpm")["versions"]
        return [(each["sha256"], each["current"]) for each in versions]


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Bed]:
    need_effects()
    with Host("crash", idle_firmware=True) as host:
        vm = host.define("guest", disks=[Disk("vda", MiB)])
        vm.start(paused=True)
        vm.destroy()
        vmkeep = Vmkeep(host)
        vmkeep.json("state", "capture", "guest")
        model = tmp_path_factory.mktemp("orphan") / "model"
        shutil.copytree(vm.tpm_directory, model)
        zygote = Zygote(host, vmkeep.home)
        yield _Bed(host, vm, vmkeep, zygote, model)
        zygote.close()


def test_deletion_killed_at_any_effect_leaves_what_the_next_one_deletes(bed: _Bed) -> None:
    bed.orphan(first := str(uuid4()))
    beside = bed.orphan(str(uuid4()))
    assert bed.run("delete", first, "--unkept", "--yes") == 0
    killed = 0
    for death in deaths(bed.zygote.effects, _MOST, daily=True):
        orphan = bed.orphan(str(uuid4()))
        status = bed.run("delete", orphan.name, "--unkept", "--yes", death=death)
        killed += status == KILLED
        assert status in (KILLED, 0), death
        if orphan.exists():
            bed.vmkeep.json("orphans", "delete", orphan.name, "--unkept", "--yes")
        assert not orphan.exists(), death
        assert (beside / "tpm2" / "tpm2-00.permall").exists(), death
        assert bed.vm.tpm_state(), death
    assert killed > _MOST / 2


def test_keeping_killed_at_any_effect_is_done_by_the_next_one_and_never_makes_it_the_newest(bed: _Bed) -> None:
    vm_uuid = str(uuid4())
    orphan = bed.orphan(vm_uuid)
    bed.vmkeep.json("orphans", "keep", vm_uuid)
    ((newest, _),) = bed.hashes(vm_uuid)
    shutil.rmtree(orphan)
    killed, known = 0, 1
    effects: list[str] = []
    for number in range(_MOST + 1):
        orphan = bed.orphan(vm_uuid, str(number).encode())
        wanted = hashlib.sha256((orphan / "tpm2" / "tpm2-00.permall").read_bytes()).hexdigest()
        death = deaths(effects, _MOST, daily=True)[number - 1] if number else NO_DEATH
        status = bed.run("keep", vm_uuid, death=death)
        effects = effects or bed.zygote.effects
        killed += status == KILLED
        assert status in (KILLED, 0), death
        bed.vmkeep.json("orphans", "keep", vm_uuid)
        known += 1
        found = bed.hashes(vm_uuid)
        assert (newest, True) in found, death
        assert [sha256 for sha256, current in found if current] == [newest], death
        assert len(found) == known, death
        assert wanted in {sha256 for sha256, _ in found}, death
        bed.vmkeep.json("orphans", "delete", vm_uuid, "--yes")
    assert killed > _MOST / 2
    assert bed.vmkeep.json("verify", "--all")["ok"]


def test_vm_that_is_defined_or_a_file_that_changes_between_look_and_deletion_loses_nothing(bed: _Bed) -> None:
    for change in ("defined", "written", "operation"):
        orphan = bed.orphan(uuid := str(uuid4()))
        permall = orphan / "tpm2" / "tpm2-00.permall"
        trap = Trap("before", "vmkeep.host.orphans.deletion:orphan_now", "hold")
        bed.zygote.start_command("--json", "orphans", "delete", uuid, "--unkept", "--yes", traps=[trap])
        bed.zygote.wait_reached()
        match change:
            case "defined":
                xml = bed.vm.domain.XMLDesc().replace(bed.vm.uuid, uuid).replace("<name>guest<", "<name>other<")
                made = bed.host.connection.defineXML(xml)
            case "written":
                permall.write_bytes(permall.read_bytes() + b"x")
            case _:
                orphan.with_name(f".{uuid}.0123456789ab.published").touch()
        content = permall.read_bytes()
        bed.zygote.go.touch()
        ended = bed.zygote.printed()
        assert json.loads(ended.err)["error"]["code"] == "invalid-request", (change, ended)
        assert permall.read_bytes() == content, change
        if change == "defined":
            made.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM)
