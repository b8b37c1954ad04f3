"""`vmkeep tpm remove`, `add` and `show`: the device, its state and its secret, with the real libvirt and swtpm."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.crash.bed import Trap, Zygote
from tests.rig import Disk, Host, MiB, NvIndexMissingError, Vm
from tests.rig.cli import Vmkeep
from tests.turns import sampled

pytestmark = pytest.mark.system

_REMOVING = ("take_out", "look_at_remains", "delete_state", "judge_secret", "drop_secret", "note_removed")
_ADDING = ("install_state", "give_secret", "note_added", "put_in")
_STORED = b"seals the guest's disks"
_VALUE = b"opens the state of the TPM"


def run_once(host: Host, name: str = "guest", backend: str | None = None) -> Vm:
    vm = host.define(name, disks=[Disk("vda", MiB)], firmware="bios", tpm_backend=backend)
    vm.start(paused=True)
    vm.destroy()
    return vm


def encrypted(secret: str) -> str:
    return f"<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"


def inactive(vm: Vm) -> str:
    return vm.domain.XMLDesc(2)


@pytest.fixture
def vm(host: Host) -> Iterator[Vm]:
    made = run_once(host)
    made.store_in_tpm(_STORED)
    yield made
    host.clear()


def test_tpm_goes_with_its_state_and_comes_back_with_what_the_guest_sealed(vm: Vm, vmkeep: Vmkeep) -> None:
    before, content, state = inactive(vm), vm.tpm_state(), str(vm.tpm_directory)
    removed = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
    assert (removed["had_tpm"], removed["left"], removed["secret"]) == (True, [], None)
    assert removed["kept"] == {"version": 1, "sha256": hashlib.sha256(content).hexdigest()}
    assert removed["way_back"] == "vmkeep tpm add guest --from 1"
    assert f"/var/lib/libvirt/swtpm/{vm.uuid}/tpm2/tpm2-00.permall" in removed["deleted"]
    assert not vm.tpm_directory.exists(), state
    assert "<tpm" not in inactive(vm)
    shown = vmkeep.json("tpm", "show", "guest")["tpm"]
    assert (shown["device"], shown["state"]["versions"]) == (None, 1)
    assert vmkeep.backup("guest")["warnings"] == []
    doctor = vmkeep.run("--json", "doctor", "guest").stdout
    assert "tpm-" not in doctor
    vm.start(paused=True)
    refused = vmkeep.fails("tpm", "add", "guest")
    assert refused.code == "vm-running"
    vm.destroy()
    assert not vm.tpm_directory.exists()

    again = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
    assert (again["had_tpm"], again["deleted"], again["left"], again["kept"]) == (False, [], [], None)

    added = vmkeep.json("tpm", "add", "guest", "--from", "1")["added"]
    assert (added["model"], added["version"], added["sha256"]) == ("tpm-crb", "2.0", removed["kept"]["sha256"])
    assert vm.tpm_state() == content
    assert inactive(vm) == before
    assert vmkeep.json("state", "list", "guest")["states"][0]["standing"] == "current"
    vm.start(paused=True)
    vm.destroy()
    assert vm.load_from_tpm(len(_STORED)) == _STORED
    assert vmkeep.fails("tpm", "add", "guest").code == "invalid-request"


def test_blank_tpm_is_made_at_the_next_start_and_the_gate_lets_it(vm: Vm, vmkeep: Vmkeep) -> None:
    vmkeep.json("hook", "install")
    try:
        vmkeep.json("tpm", "remove", "guest", "--yes")
        added = vmkeep.json("tpm", "add", "guest", "--model", "tis")["added"]
        assert (added["model"], added["sha256"]) == ("tpm-tis", None)
        vm.start(paused=True)
        vm.destroy()
    finally:
        vmkeep.json("hook", "remove")
    with pytest.raises(NvIndexMissingError):
        vm.load_from_tpm(len(_STORED))
    assert vmkeep.json("state", "capture", "guest")["captured"][0]["new"][0]["version"] == 2


def test_what_runs_is_refused_and_what_no_version_has_stays_and_is_told(vm: Vm, vmkeep: Vmkeep) -> None:
    vm.start(paused=True)
    assert vmkeep.fails("tpm", "remove", "guest", "--yes").code == "vm-running"
    vm.destroy()
    assert vmkeep.fails("tpm", "remove", "guest").code == "invalid-request"  # nobody was asked
    other = vm.tpm_directory / "tpm2" / "tpm2-00.permall.bak"
    other.write_bytes(vm.tpm_state() + b"x")
    (vm.tpm_directory / "tpm2" / "way-out").symlink_to("/etc/passwd")
    removed = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
    left, link = removed["left"]
    assert f"{other.name} on host " in left
    assert "not encrypted" in left
    assert "way-out is a link" in link
    assert other.exists()
    assert not (vm.tpm_directory / "tpm2" / "tpm2-00.permall").exists()
    refused = vmkeep.fails("tpm", "add", "guest", "--from", "1")
    assert (refused.code, refused.error["path"]) == ("target-exists", f"/var/lib/libvirt/swtpm/{vm.uuid}")
    assert "<tpm" not in inactive(vm)


def test_secret_is_kept_with_the_version_goes_then_and_comes_back_with_it(host: Host, vmkeep: Vmkeep) -> None:
    secret = host.define_secret(_VALUE)
    vm = run_once(host, backend=encrypted(secret))
    vm.store_in_tpm(_STORED, key=_VALUE)
    before = inactive(vm)
    vmkeep.json("state", "capture", "guest")
    shown = vmkeep.json("tpm", "show", "guest")["tpm"]
    assert shown["state"]["secret"] == {"uuid": secret, "point": None, "pin": shown["device"]["secret_kept_in"]}
    snapshot = vm.domain.snapshotCreateXML("<domainsnapshot><name>before</name></domainsnapshot>")
    named = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
    assert "a snapshot, names it" in named["secret"]["stays"]
    assert host.secrets() == {secret: _VALUE}
    snapshot.delete()
    assert vmkeep.fails("tpm", "add", "guest", "--from", "1", "--secret", "of mine").code == "invalid-request"
    assert vmkeep.fails("tpm", "add", "guest", "--from", "1", "--secret", str(uuid4())).code == "secret-missing"
    vmkeep.json("tpm", "add", "guest", "--from", "1")
    assert inactive(vm) == before

    other = host.define("other", disks=[Disk("vda", MiB)], firmware="bios", tpm_backend=encrypted(secret))
    assert "another VM" in vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]["secret"]["stays"]
    other.delete()
    vmkeep.json("tpm", "add", "guest", "--from", "1")
    kept = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
    assert (kept["secret"]["undefined"], kept["secret"]["point"]) == (True, None)
    assert kept["way_back"] == "vmkeep tpm add guest --from 1"
    assert host.secrets() == {}
    vmkeep.json("tpm", "add", "guest", "--from", "1")
    assert (inactive(vm), host.secrets()) == (before, {secret: _VALUE})

    point = vmkeep.backup("guest")
    gone = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
    assert (gone["secret"]["undefined"], gone["secret"]["point"]) == (True, point["id"])
    assert host.secrets() == {}
    refused = vmkeep.fails("tpm", "restore", "guest", "--yes")
    assert (refused.code, len(vmkeep.json("points", "guest")["points"])) == ("invalid-request", 1)
    assert "vmkeep tpm add guest --from" in refused.error["hint"]
    vmkeep.json("point", "delete", point["id"], "--yes")
    vmkeep.json("tpm", "add", "guest", "--from", "1")
    assert (inactive(vm), host.secrets()) == (before, {secret: _VALUE})
    vm.start(paused=True)
    vm.destroy()
    assert vm.load_from_tpm(len(_STORED), key=_VALUE) == _STORED
    assert vmkeep.json("state", "try", "guest", "--version", "1")["loads"] is True


def test_secret_that_libvirt_keeps_to_itself_stays_and_the_version_is_kept_without(host: Host, vmkeep: Vmkeep) -> None:
    secret = host.define_secret(_VALUE, private=True)
    vm = run_once(host, backend=encrypted(secret))
    (captured,) = vmkeep.json("state", "capture", "guest")["captured"]
    assert [each["version"] for each in captured["new"]] == [1]
    assert "is private" in captured["older"][0]
    assert vmkeep.json("tpm", "show", "guest")["tpm"]["state"]["secret"] is None
    before = inactive(vm), vm.tpm_state()
    assert vmkeep.fails("tpm", "rekey", "guest", "--yes").code == "secret-private"
    assert (inactive(vm), vm.tpm_state()) == before
    assert "tpm-key-not-kept" in vmkeep.run("--json", "doctor", "guest").stdout
    removed = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
    assert removed["secret"]["undefined"] is False
    assert removed["way_back"] == f"vmkeep tpm add guest --from 1 --secret {secret}"
    assert vmkeep.fails("tpm", "add", "guest", "--from", "1").code == "invalid-request"
    vmkeep.json("tpm", "add", "guest", "--from", "1", "--secret", secret)
    vm.start(paused=True)
    vm.destroy()


def test_failure_of_any_later_step_leaves_definition_state_and_secret_as_they_were(host: Host, zygote: Zygote) -> None:
    vmkeep = Vmkeep(host)
    secret = host.define_secret(_VALUE)
    vm = run_once(host, backend=encrypted(secret))
    point = vmkeep.backup("guest")
    before, content = inactive(vm), vm.tpm_state()
    for step, when in sampled([(step, when) for step in _REMOVING for when in ("before", "after")], 4):
        outcome = zygote.run(["tpm_remove", "guest"], traps=[Trap(when, f"vmkeep.flows.remove_tpm:{step}", "fail")])
        assert outcome.error["code"] == "no-space", (step, when)
        assert (inactive(vm), vm.tpm_state(), host.secrets()) == (before, content, {secret: _VALUE}), (step, when)
        assert len(list(vm.tpm_directory.parent.iterdir())) == 1, (step, when)
    zygote.run(["tpm_remove", "guest"]).acts  # noqa: B018  raises when it failed
    without = inactive(vm)
    for step, when in sampled([(step, when) for step in _ADDING for when in ("before", "after")], 3):
        trap = Trap(when, f"vmkeep.flows.add_tpm:{step}", "fail")
        outcome = zygote.run(["tpm_add", "guest", point["id"]], traps=[trap])
        assert outcome.error["code"] == "no-space", (step, when)
        assert (inactive(vm), host.secrets()) == (without, {}), (step, when)
        assert list(vm.tpm_directory.parent.iterdir()) == [], (step, when)
    zygote.run(["tpm_add", "guest", point["id"]]).acts  # noqa: B018
    assert (inactive(vm), vm.tpm_state(), host.secrets()) == (before, content, {secret: _VALUE})


def test_tpm_of_no_kind_that_is_emulated_and_names_of_nothing_are_refused(host: Host, vmkeep: Vmkeep) -> None:
    host.define(
        "guest",
        disks=[Disk("vda", MiB)],
        firmware="bios",
        tpm_backend="<backend type='passthrough'><device path='/dev/tpm0'/></backend>",
    )
    assert vmkeep.fails("tpm", "remove", "guest", "--yes").code == "state-unsupported"
    host.define("bare", disks=[Disk("vda", MiB)], firmware="bios", tpm=False)
    assert vmkeep.fails("tpm", "add", "bare", "--from", "7").code == "invalid-request"
    assert vmkeep.fails("tpm", "add", "bare", "--from", "bare@latest").code == "point-not-found"
    assert vmkeep.fails("tpm", "add", "bare", "--secret", str(uuid4())).code == "invalid-request"
    assert vmkeep.fails("tpm", "remove", "nobody", "--yes").code == "vm-not-found"
    assert vmkeep.json("tpm", "remove", "bare", "--yes")["removed"]["had_tpm"] is False


@pytest.mark.parametrize(("step", "code"), [("take_out", "vm-running"), ("delete_state", "invalid-request")])
def test_vm_that_somebody_starts_with_its_tpm_meanwhile_keeps_all_of_it(
    vm: Vm, zygote: Zygote, step: str, code: str
) -> None:
    before, content = inactive(vm), vm.tpm_state()
    zygote.start(["tpm_remove", "guest"], traps=[Trap("before", f"vmkeep.flows.remove_tpm:{step}", "hold")])
    zygote.wait_reached()
    vm.host.connection.defineXML(before)
    vm.start(paused=True)
    zygote.go.touch()
    outcome = zygote.finish()
    assert outcome.error["code"] == code
    assert outcome.result["notes"] == []
    assert (inactive(vm), vm.tpm_state()) == (before, content)
    assert "<tpm" in vm.domain.XMLDesc(0)
