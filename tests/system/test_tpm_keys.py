"""`vmkeep tpm reset` and `tpm rekey`: a new TPM, and a new key for the same one, with the real libvirt and swtpm."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from tests.crash.bed import Trap, Zygote
from tests.rig import Host, NvIndexMissingError, Vm
from tests.rig.cli import Vmkeep
from tests.system.test_tpm_device import _STORED, _VALUE, encrypted, inactive, run_once
from tests.turns import sampled

pytestmark = pytest.mark.system

_RESETTING = (
    "give_key",
    "take_out",
    "clear_place",
    "note_reset",
    "put_in",
    "judge_secret",
    "drop_secret",
    "note_removal",
)
_REKEYING = ("reencrypt", "clear_place", "install_state", "note_rekeyed", "put_in", "drop_secret", "note_removal")


@pytest.fixture
def sealed(host: Host) -> tuple[Vm, str]:
    """A VM that is off, whose guest sealed something to its encrypted TPM, and the secret of that."""
    secret = host.define_secret(_VALUE)
    vm = run_once(host, backend=encrypted(secret))
    vm.store_in_tpm(_STORED, key=_VALUE)
    return vm, secret


def key_in(host: Host, vm: Vm) -> tuple[str, bytes]:
    """Return the secret that the definition names, and the value that libvirt has for it."""
    found = re.search(r"<encryption secret='([^']*)'", inactive(vm))
    assert found is not None
    return found[1], host.secrets()[found[1]]


def proof_of(vmkeep: Vmkeep, removal: str, content: bytes) -> dict[str, Any]:
    """Return the proof of a state's deletion, which the repository has, signed."""
    proof: dict[str, Any]
    (proof,) = vmkeep.json("tpm", "removal", "show", removal)["removals"]
    assert (proof["stored"], proof["trust"], proof["tombstones"], proof["facts"]) == (True, "own", [], [])
    deleted = {each["sha256"]: each["outcome"] for each in proof["files"] if each["path"].endswith("permall")}
    assert deleted == {hashlib.sha256(content).hexdigest(): "deleted"}
    return proof


def start_once(vm: Vm) -> None:
    vm.start(paused=True)
    vm.destroy()


def test_reset_gives_a_new_tpm_with_a_new_key_and_the_old_one_comes_back(
    host: Host, vmkeep: Vmkeep, sealed: tuple[Vm, str]
) -> None:
    vm, secret = sealed
    before, content = inactive(vm), vm.tpm_state()
    assert vmkeep.fails("tpm", "reset", "guest").code == "invalid-request"  # nobody was asked
    vmkeep.json("hook", "install")
    try:
        reset = vmkeep.json("tpm", "reset", "guest", "--yes")["reset"]
        assert reset["kept"] == {"version": 1, "sha256": hashlib.sha256(content).hexdigest()}
        assert (reset["old_secret"]["uuid"], reset["old_secret"]["undefined"]) == (secret, True)
        proof = proof_of(vmkeep, reset["removal"], content)
        assert (proof["renewal"], proof["secret"]["outcome"], proof["kept_until"]) == ("reset", "undefined", None)
        assert [(each["generation"], each["until"]) for each in proof["versions"]] == [(1, None)]
        new, value = key_in(host, vm)
        assert (new, list(host.secrets()), len(value)) == (reset["secret"], [new], 32)
        (listed,) = [each for each in vmkeep.json("state", "list", "guest")["states"] if each["kind"] == "tpm"]
        assert (listed["standing"], listed["sha256"]) == ("blank", None)
        assert inactive(vm) == before.replace(secret, new)
        assert not vm.tpm_directory.exists()
        start_once(vm)
    finally:
        vmkeep.json("hook", "remove")
    with pytest.raises(NvIndexMissingError):
        vm.load_from_tpm(len(_STORED), key=value)
    # Nothing but the device that names its key takes the old state.
    refused = vmkeep.fails("tpm", "restore", "guest", "--version", "1", "--yes")
    assert refused.code in ("state-unsupported", "point-not-found")
    vmkeep.backup("guest")
    assert vmkeep.fails("tpm", "restore", "guest", "--version", "1", "--yes").code == "state-unsupported"
    assert reset["way_back"] == ["vmkeep tpm remove guest", "vmkeep tpm add guest --from 1"]
    for command in reset["way_back"]:
        vmkeep.json(*command.split()[1:], *(["--yes"] if "remove" in command else []))
    assert (inactive(vm), host.secrets()) == (before, {secret: _VALUE})
    start_once(vm)
    assert vm.load_from_tpm(len(_STORED), key=_VALUE) == _STORED
    versions = vmkeep.json("state", "versions", "guest", "--kind", "tpm")["versions"]
    assert {each["version"]: each["secret"] for each in versions} == {1: secret, 2: new}
    assert "tpm-key-not-kept" not in vmkeep.run("--json", "doctor", "guest").stdout
    assert not vmkeep.json("verify", "--all")["findings"]


def test_rekey_keeps_the_tpm_and_changes_its_key(host: Host, vmkeep: Vmkeep, sealed: tuple[Vm, str]) -> None:
    vm, secret = sealed
    before, content = inactive(vm), vm.tpm_state()
    rekeyed = vmkeep.json("tpm", "rekey", "guest", "--yes")["rekeyed"]
    new, value = key_in(host, vm)
    assert (rekeyed["kept"]["version"], rekeyed["version"], rekeyed["secret"]) == (1, 2, new)
    assert rekeyed["old_secret"]["undefined"] is True
    proof = proof_of(vmkeep, rekeyed["removal"], content)
    assert (proof["renewal"], proof["secret"]["outcome"]) == ("rekey", "undefined")
    assert [each["generation"] for each in proof["versions"]] == [2, 1]
    assert list(host.secrets()) == [new]
    assert inactive(vm) == before.replace(secret, new)
    assert vmkeep.json("state", "list", "guest")["states"][0]["standing"] == "current"
    start_once(vm)
    assert vm.load_from_tpm(len(_STORED), key=value) == _STORED
    for version in ("1", "2"):
        assert vmkeep.json("state", "try", "guest", "--version", version)["loads"] is True

    plain = vmkeep.json("tpm", "rekey", "guest", "--plain", "--yes")["rekeyed"]
    assert (plain["secret"], host.secrets(), "<encryption" in inactive(vm)) == (None, {}, False)
    start_once(vm)
    assert vm.load_from_tpm(len(_STORED)) == _STORED
    assert vmkeep.fails("tpm", "rekey", "guest", "--plain", "--yes").code == "invalid-request"
    again = vmkeep.json("tpm", "rekey", "guest", "--yes")["rekeyed"]
    third, value = key_in(host, vm)
    assert (again["old_secret"], again["secret"]) == (None, third)
    start_once(vm)
    assert vm.load_from_tpm(len(_STORED), key=value) == _STORED

    vmkeep.json("tpm", "remove", "guest", "--yes")
    vmkeep.json("tpm", "add", "guest", "--from", "1")
    assert (inactive(vm), host.secrets()) == (before, {secret: _VALUE})
    assert vm.load_from_tpm(len(_STORED), key=_VALUE) == _STORED


def test_tpm_is_made_with_a_key_that_is_kept_before_it_was_ever_started(host: Host, vmkeep: Vmkeep) -> None:
    vm = run_once(host)
    vmkeep.json("tpm", "remove", "guest", "--yes")
    added = vmkeep.json("tpm", "add", "guest", "--encrypt")["added"]
    made = key_in(host, vm)
    assert added["secret"] == made[0]
    assert vmkeep.fails("tpm", "rekey", "guest", "--yes").code == "invalid-request"  # there is no state yet
    host.connection.secretLookupByUUIDString(made[0]).undefine()
    vmkeep.run("doctor", "--fix")
    assert key_in(host, vm) == made
    start_once(vm)
    vm.store_in_tpm(_STORED, key=made[1])
    vmkeep.json("snapshot", "create", "guest", "before", "--internal")
    (kept,) = vmkeep.json("state", "versions", "guest", "--kind", "tpm")["versions"][:1]
    assert (kept["secret"], len(kept["held_by"]), kept["kept"]) == (made[0], 1, False)
    vmkeep.json("snapshot", "delete", "guest", "before", "--yes")
    removed = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
    assert (removed["secret"]["undefined"], host.secrets()) == (True, {})


def test_failure_of_any_later_step_leaves_all_as_it_was(host: Host, zygote: Zygote, sealed: tuple[Vm, str]) -> None:
    vmkeep = Vmkeep(host)
    vm, secret = sealed
    vmkeep.json("state", "capture", "guest")
    before, content = inactive(vm), vm.tpm_state()
    places = [("reset", step, when) for step in _RESETTING for when in ("before", "after")]
    places += [("rekey", step, when) for step in _REKEYING for when in ("before", "after")]
    for verb, step, when in sampled(places, 4):
        trap = Trap(when, f"vmkeep.flows.{verb}_tpm:{step}", "fail")
        outcome = zygote.run([f"tpm_{verb}", "guest"], traps=[trap])
        assert outcome.error["code"] == "no-space", (verb, step, when)
        assert (inactive(vm), vm.tpm_state(), host.secrets()) == (before, content, {secret: _VALUE}), (verb, step, when)
        assert len(list(vm.tpm_directory.parent.iterdir())) == 1, (verb, step, when)
        standing = vmkeep.json("state", "list", "guest")["states"][0]["standing"]
        assert standing == "current", (verb, step, when)
        assert vmkeep.json("tpm", "removal", "list")["removals"] == [], (verb, step, when)
    zygote.run(["tpm_rekey", "guest"]).acts  # noqa: B018  raises when it failed
    _, value = key_in(host, vm)
    assert vm.load_from_tpm(len(_STORED), key=value) == _STORED
