"""State files put back without any point: the newest that was kept, over nothing, a torn or an older file."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator

import pytest

from tests.crash.bed import Trap, Zygote
from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep
from tests.turns import sampled

pytestmark = pytest.mark.system

_STORED = b"seals the guest's disks"
_STEPS = ("stage", "publish", "place_states", "release")


@pytest.fixture(scope="module")
def session_host() -> Iterator[Host]:
    with Host("returned", idle_firmware=True) as host:
        yield host


@pytest.fixture
def vm(host: Host, vmkeep: Vmkeep) -> Iterator[Vm]:
    """A VM of which no point was ever taken; two versions of its state are kept."""
    made = host.define("guest", disks=[Disk("vda", MiB)])
    made.start(paused=True)
    made.destroy()
    vmkeep.json("state", "capture", "guest")
    made.store_in_tpm(_STORED)
    made.change_nvram()
    vmkeep.json("state", "capture", "guest")
    yield made
    host.clear()


def versions(vmkeep: Vmkeep) -> dict[tuple[str, int], dict[str, object]]:
    listed = vmkeep.json("state", "versions", "guest")["versions"]
    return {(each["kind"], each["version"]): each for each in listed}


def test_lost_state_comes_back_though_no_point_was_ever_taken(vm: Vm, vmkeep: Vmkeep) -> None:
    newest = vm.tpm_state(), vm.nvram()
    definition = vm.domain.XMLDesc(2)
    shutil.rmtree(vm.tpm_directory)
    vm.nvram_path.unlink()
    told = {state["kind"]: state for state in vmkeep.json("state", "list", "guest")["states"]}
    assert {kind: state["remedy"] for kind, state in told.items()} == {
        kind: f"vmkeep state restore guest --kind {kind}" for kind in ("tpm", "nvram")
    }
    restored = vmkeep.json("state", "restore", "guest", "--yes")["restored"]
    assert {(each["kind"], each["version"]) for each in restored["versions"]} == {("tpm", 2), ("nvram", 2)}
    assert restored["way_back"] == []
    assert (vm.tpm_state(), vm.nvram()) == newest
    assert vm.domain.XMLDesc(2) == definition
    assert vmkeep.json("points")["points"] == []  # no disk was read for it
    vm.start(paused=True)
    assert vmkeep.fails("tpm", "restore", "guest", "--yes").code == "vm-running"
    vm.destroy()
    assert vm.load_from_tpm(len(_STORED)) == _STORED
    assert vmkeep.fails("tpm", "restore", "guest").code == "invalid-request"  # nobody was asked


def test_torn_state_is_kept_as_what_does_not_count_and_the_good_one_comes_back(vm: Vm, vmkeep: Vmkeep) -> None:
    good = vm.tpm_state()
    permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    torn = good[: len(good) // 2]
    permall.write_bytes(torn)
    assert vmkeep.fails("state", "capture", "guest").code == "state-torn"
    assert "state-not-captured" in vmkeep.run("--json", "doctor", "guest").stdout
    restored = vmkeep.json("tpm", "restore", "guest", "--yes")["restored"]
    assert vm.tpm_state() == good
    digest = hashlib.sha256(torn).hexdigest()
    assert restored["way_back"] == [f"vmkeep state restore guest --kind tpm --version {digest[:16]}"]
    (kept,) = [each for each in versions(vmkeep).values() if each["sha256"] == digest]
    assert (kept["conflict"], kept["current"], kept["kept"]) == (True, False, True)
    assert "state-not-captured" not in vmkeep.run("--json", "doctor", "guest").stdout
    # What does not load goes back only when the trial is off.
    assert vmkeep.fails("tpm", "restore", "guest", "--version", digest[:16], "--yes").code == "state-torn"
    assert vm.tpm_state() == good
    assert [each.name for each in vm.tpm_directory.parent.iterdir()] == [vm.uuid]


def test_variables_that_are_no_store_any_more_are_not_kept_as_the_newest(vm: Vm, vmkeep: Vmkeep) -> None:
    good = vm.nvram()
    vm.nvram_path.write_bytes(b"\0" * 100 + good[100:])
    refused = vmkeep.fails("state", "capture", "guest")
    assert (refused.code, refused.error["path"]) == ("state-torn", "/var/lib/libvirt/qemu/nvram/guest_VARS.fd")
    assert "no firmware volume" in refused.error["message"]
    vmkeep.json("nvram", "restore", "guest", "--yes")
    assert vm.nvram() == good
    assert [each["conflict"] for each in versions(vmkeep).values() if each["kind"] == "nvram"] == [True, False, False]


def test_what_counts_goes_back_and_not_what_is_newest(vm: Vm, vmkeep: Vmkeep) -> None:
    vmkeep.json("tpm", "restore", "guest", "--version", "1", "--yes")
    meant = vm.tpm_state()
    shutil.rmtree(vm.tpm_directory)
    vmkeep.json("tpm", "restore", "guest", "--yes")
    assert vm.tpm_state() == meant
    back = vmkeep.json("tpm", "restore", "guest", "--version", "2", "--yes")["restored"]["way_back"]
    assert vm.load_from_tpm(len(_STORED)) == _STORED
    assert back == [f"vmkeep state restore guest --kind tpm --version {hashlib.sha256(meant).hexdigest()[:16]}"]
    vmkeep.json("tpm", "remove", "guest", "--yes")
    refused = vmkeep.fails("tpm", "restore", "guest", "--yes")
    assert refused.code == "invalid-request"
    assert "vmkeep tpm add guest --from" in refused.error["hint"]


def test_failure_or_death_at_any_step_leaves_the_old_state_or_the_new_one(vm: Vm, zygote: Zygote) -> None:
    vmkeep = Vmkeep(vm.host)
    before, definition = (vm.tpm_state(), vm.nvram()), vm.domain.XMLDesc(2)
    cases = [(step, when, how) for step in _STEPS for when in ("before", "after") for how in ("fail", "kill")]
    for step, when, how in sampled(cases, 2):
        trap = Trap(when, f"vmkeep.flows.restore_states:{step}", how)
        outcome = zygote.run(["state_restore", "guest", None, None], traps=[trap])
        if how == "kill":
            vmkeep.json("doctor", "--fix", "guest")
        elif (step, when) != ("release", "after"):
            assert outcome.error["code"] == "no-space", (step, when)
        assert (vm.tpm_state(), vm.nvram(), vm.domain.XMLDesc(2)) == (*before, definition), (step, when, how)
    for step, when, how in sampled(cases, 3):
        trap = Trap(when, f"vmkeep.flows.restore_states:{step}", how)
        zygote.run(["state_restore", "guest", "tpm", "1"], traps=[trap])
        if how == "kill":
            vmkeep.json("doctor", "--fix", "guest")
        digest = hashlib.sha256(vm.tpm_state()).hexdigest()
        known = {each["version"]: each["sha256"] for each in versions(vmkeep).values() if each["kind"] == "tpm"}
        finished = how == "kill" or (step, when) == ("release", "after")
        assert digest == known[1 if finished else 2], (step, when, how)
        assert vmkeep.json("state", "list", "guest")["states"][1]["standing"] == "current", (step, when, how)
        assert vm.domain.XMLDesc(2) == definition
        assert [each.name for each in vm.tpm_directory.parent.iterdir()] == [vm.uuid]
        assert vmkeep.json("log")["operations"][0]["state"] in ("done", "failed")
        zygote.run(["state_restore", "guest", "tpm", "2"]).acts  # noqa: B018  raises when it failed
    vm.start(paused=True)
    vm.destroy()
    assert vm.load_from_tpm(len(_STORED)) == _STORED
