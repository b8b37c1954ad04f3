"""TPMs are removed and added, and killed at effects: each is there with its state or not at all, and none is lost."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.crash.bed import KILLED, Trap, Zygote
from tests.crash.walk import NO_DEATH, Death, deaths, need_effects
from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep

pytestmark = [pytest.mark.system, pytest.mark.crash]

_MOST, _FEW = 5, 2
_VALUE = b"opens the state of the TPM"
_STORED = b"seals the guest's disks"


@dataclass(frozen=True, slots=True)
class _Bed:
    host: Host
    vm: Vm
    vmkeep: Vmkeep
    zygote: Zygote
    secret: str
    point: str
    content: bytes
    definition: str

    def run(self, *words: str, death: Death = NO_DEATH) -> int:
        return self.zygote.command("--json", "tpm", *words, death=death, env=self.vmkeep.environment).status

    def remove(self, death: Death = NO_DEATH) -> int:
        return self.run("remove", "guest", "--yes", death=death)

    def add(self, death: Death = NO_DEATH) -> int:
        return self.run("add", "guest", "--from", self.point, death=death)

    def has_tpm(self) -> bool:
        """Return whether the VM has its TPM; fail unless all of it is there, or nothing."""
        definition = self.vm.domain.XMLDesc(2)
        if "<tpm" in definition:
            assert definition == self.definition
            assert self.vm.tpm_state() == self.content
            assert self.host.secrets() == {self.secret: _VALUE}
            beside = [path.name for path in self.vm.tpm_directory.parent.iterdir()]
            assert beside == [self.vm.uuid]
            return True
        assert list(self.vm.tpm_directory.parent.iterdir()) == []
        assert self.host.secrets() == {}
        return False

    def settled(self) -> bool:
        """Let the next command put right what a dead one left; return whether the VM has its TPM then."""
        self.vmkeep.json("doctor", "--fix", "guest")
        assert self.vmkeep.json("log")["operations"][0]["state"] in ("done", "failed")
        wanted = hashlib.sha256(self.content).hexdigest()
        versions = self.vmkeep.json("state", "versions", "guest", "--kind", "tpm")["versions"]
        assert [each["sha256"] for each in versions] == [wanted]
        return self.has_tpm()


@pytest.fixture(scope="module")
def bed() -> Iterator[_Bed]:
    need_effects()
    with Host("crash", idle_firmware=True) as host:
        secret = host.define_secret(_VALUE)
        backend = f"<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"
        vm = host.define("guest", disks=[Disk("vda", MiB)], firmware="bios", tpm_backend=backend)
        vm.start(paused=True)
        vm.destroy()
        vm.store_in_tpm(_STORED, key=_VALUE)
        (vm.tpm_directory / "tpm2" / ".lock").touch()
        vmkeep = Vmkeep(host)
        point = vmkeep.backup("guest")
        zygote = Zygote(host, vmkeep.home)
        yield _Bed(host, vm, vmkeep, zygote, secret, point["id"], vm.tpm_state(), vm.domain.XMLDesc(2))
        zygote.close()


@pytest.mark.in_turn(2, among="tpms")
def test_removal_killed_at_any_effect_is_finished_by_the_next_command(bed: _Bed) -> None:
    assert bed.remove() == 0
    effects = bed.zygote.effects
    assert bed.add() == 0
    killed = 0
    for death in deaths(effects, _MOST, daily=True):
        status = bed.remove(death)
        killed += status == KILLED
        assert status in (KILLED, 0), death
        if not bed.settled():
            assert bed.add() == 0, death
        assert bed.has_tpm(), death
    assert killed > _MOST / 2
    assert {each["outcome"] for each in _proofs(bed, "remove")} == {"has a TPM again"}


@pytest.mark.in_turn(2, among="tpms")
def test_addition_killed_at_any_effect_is_finished_by_the_next_command(bed: _Bed) -> None:
    assert bed.remove() == 0
    assert bed.add() == 0
    effects = bed.zygote.effects
    killed = 0
    for death in deaths(effects, _MOST, daily=True):
        assert bed.remove() == 0
        status = bed.add(death)
        killed += status == KILLED
        assert status in (KILLED, 0), death
        if not bed.settled():
            assert bed.add() == 0, death
        assert bed.has_tpm(), death
    assert killed > _MOST / 2
    bed.vm.start(paused=True)
    bed.vm.destroy()
    assert bed.vm.load_from_tpm(len(_STORED), key=_VALUE) == _STORED
    assert bed.vmkeep.json("verify", "--all")["ok"]


@pytest.mark.in_turn(2, among="tpms")
@pytest.mark.parametrize("verb", ["reset", "rekey"])
def test_new_key_killed_at_any_effect_is_whole_or_not_there_after_the_next_command(bed: _Bed, verb: str) -> None:
    assert bed.run(verb, "guest", "--yes") == 0
    effects = bed.zygote.effects
    _is_renewed(bed, verb)
    _have_old_one_back(bed)
    killed = 0
    for death in deaths(effects, _FEW):
        status = bed.run(verb, "guest", "--yes", death=death)
        killed += status == KILLED
        assert status in (KILLED, 0), death
        bed.vmkeep.json("doctor", "--fix", "guest")
        assert bed.vmkeep.json("log")["operations"][0]["state"] in ("done", "failed")
        renewed = bed.vm.domain.XMLDesc(2) != bed.definition
        standing = "blank" if verb == "reset" and renewed else "current"
        assert bed.vmkeep.json("state", "list", "guest")["states"][0]["standing"] == standing, death
        if not renewed:
            assert bed.has_tpm(), death
        else:
            _is_renewed(bed, verb)
            _have_old_one_back(bed)
    assert killed
    assert {each["outcome"] for each in _proofs(bed, verb)} == {"deleted"}
    assert bed.vmkeep.json("verify", "--all")["ok"]


def _proofs(bed: _Bed, verb: str) -> list[dict[str, Any]]:
    """Return those of a verb: each operation that was done has one, whoever was killed before it was stored."""
    log = bed.vmkeep.json("log")["operations"]
    done = {each["id"] for each in log if each["kind"] == f"tpm.{verb}" and each["state"] == "done"}
    renewal = None if verb == "remove" else verb
    proofs = [each for each in bed.vmkeep.json("tpm", "removal", "list")["removals"] if each["renewal"] == renewal]
    assert {each["id"] for each in proofs} == done
    assert all(each["stored"] for each in proofs)
    return proofs


def _is_renewed(bed: _Bed, verb: str) -> None:
    """Fail unless the VM has the new key alone, with the same TPM after a rekey and none yet after a reset."""
    ((secret, value),) = bed.host.secrets().items()
    assert bed.vm.domain.XMLDesc(2) == bed.definition.replace(bed.secret, secret)
    assert secret != bed.secret
    if verb == "reset":
        assert list(bed.vm.tpm_directory.parent.iterdir()) == []
    else:
        assert [path.name for path in bed.vm.tpm_directory.parent.iterdir()] == [bed.vm.uuid]
        assert bed.vm.load_from_tpm(len(_STORED), key=value) == _STORED


def _have_old_one_back(bed: _Bed) -> None:
    assert bed.remove() == 0
    assert bed.add() == 0
    assert bed.has_tpm()


def test_libvirtd_that_is_restarted_meanwhile_is_no_matter_for_a_person(bed: _Bed) -> None:
    """The connection of a change that fails is dead by then; its undo has one to the libvirtd that is there."""
    place = Trap("before", "vmkeep.flows.rekey_tpm:give_key", "hold")
    bed.zygote.start_command("--json", "tpm", "rekey", "guest", "--yes", traps=[place], env=bed.vmkeep.environment)
    bed.zygote.wait_reached()
    bed.host.restart_libvirtd(signal.SIGKILL)
    bed.zygote.go.touch()
    printed = bed.zygote.printed()
    assert '"code": "hypervisor-unavailable"' in printed.err, printed
    assert bed.vmkeep.json("log")["operations"][0]["state"] in ("done", "failed")
    assert bed.vmkeep.json("ops", "list")["operations"] == []
    bed.vmkeep.json("doctor", "--fix", "guest")
