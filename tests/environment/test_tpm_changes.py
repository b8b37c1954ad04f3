"""A TPM is taken out while the home is full, its directory cannot be written, or libvirtd is restarted: all of it is
there afterwards, or nothing, or a person is told what to do and the next step is one command.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.crash.bed import Trap, Zygote
from tests.environment.test_captures_on_a_full_home import fill
from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep
from tests.turns import sampled

pytestmark = pytest.mark.system

_SWTPM = "/var/lib/libvirt/swtpm"
_REMOVE = ["tpm_remove", "guest"]


@pytest.fixture
def vmkeep(host: Host) -> Vmkeep:
    return Vmkeep(host)


@pytest.fixture
def vm(host: Host) -> Vm:
    made = host.define("guest", disks=[Disk("vda", MiB)], firmware="bios")
    made.start(paused=True)
    made.destroy()
    return made


@contextmanager
def read_only(host: Host) -> Iterator[None]:
    """Let nothing be written where swtpm's states lie."""
    host.run(["mount", "--bind", _SWTPM, _SWTPM], check=True)
    host.run(["mount", "-o", "remount,bind,ro", _SWTPM], check=True)
    try:
        yield
    finally:
        host.run(["umount", "--lazy", _SWTPM], check=True)


def inactive(vm: Vm) -> str:
    return vm.domain.XMLDesc(2)


def test_full_home_changes_nothing(host: Host, vmkeep: Vmkeep, vm: Vm) -> None:
    before, content = inactive(vm), vm.tpm_state()
    vmkeep.json("init", "--repository", host.dir / "work" / "repository")
    host.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", vmkeep.home], check=True)
    try:
        fill(host, vmkeep)
        assert vmkeep.fails("tpm", "remove", "guest", "--yes").code == "no-space"
        assert vmkeep.fails("tpm", "add", "guest").code == "no-space"
    finally:
        host.run(["umount", "--lazy", vmkeep.home], check=True)
    assert (inactive(vm), vm.tpm_state()) == (before, content)


def test_directory_that_cannot_be_written_is_told_and_nothing_is_put_into_it(
    host: Host, vmkeep: Vmkeep, vm: Vm
) -> None:
    before, content = inactive(vm), vm.tpm_state()
    with read_only(host):
        left = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
    assert any("Read-only" in each for each in left["left"])
    assert len(left["tombstones"]) == 1
    assert vm.tpm_state() == content
    assert "<tpm" not in inactive(vm)
    vmkeep.json("tpm", "add", "guest", "--from", "1")  # it is the state that lies there
    assert (inactive(vm), vm.tpm_state()) == (before, content)
    vmkeep.json("tpm", "remove", "guest", "--yes")
    with read_only(host):
        assert "read-only" in vmkeep.fails("tpm", "add", "guest", "--from", "1").error["message"]
    assert "<tpm" not in inactive(vm)
    assert list(vm.tpm_directory.parent.iterdir()) == []
    vmkeep.json("tpm", "add", "guest", "--from", "1")
    assert (inactive(vm), vm.tpm_state()) == (before, content)


def test_state_that_cannot_be_put_back_waits_for_a_person_with_no_device(
    host: Host, vmkeep: Vmkeep, vm: Vm, zygote: Zygote
) -> None:
    before, content = inactive(vm), vm.tpm_state()
    traps = [Trap("before", "vmkeep.flows.remove_tpm:judge_secret", "hold")]
    traps.append(Trap("before", "vmkeep.flows.remove_tpm:note_removed", "fail"))
    zygote.start(_REMOVE, traps=traps)
    zygote.wait_reached()
    assert not vm.tpm_directory.exists()
    with read_only(host):
        zygote.go.touch()
        outcome = zygote.finish()
        assert outcome.error["code"] == "needs-operator", outcome.error
        assert "<tpm" not in inactive(vm)
        (waiting,) = vmkeep.json("ops", "list")["operations"]
        assert (waiting["state"], waiting["error"]["left"][0]) == ("needs-operator", "look_at_remains")
        assert vmkeep.fails("tpm", "add", "guest").code == "needs-operator"
        assert vmkeep.fails("ops", "resume", waiting["id"]).code == "needs-operator"
        vmkeep.backup("guest")  # it harms nothing
    ended = vmkeep.json("ops", "resume", waiting["id"])["operation"]
    assert (ended["state"], ended["error"]["code"]) == ("failed", "no-space")
    assert (inactive(vm), vm.tpm_state()) == (before, content)
    assert vmkeep.json("ops", "list")["operations"] == []
    vm.start(paused=True)
    vm.destroy()


@pytest.mark.parametrize("step", sampled(["take_out", "delete_state", "drop_secret"], 1))
def test_libvirtd_that_is_restarted_in_the_middle_leaves_all_of_it_or_nothing(
    host: Host, vmkeep: Vmkeep, vm: Vm, zygote: Zygote, step: str
) -> None:
    before, content = inactive(vm), vm.tpm_state()
    zygote.start(_REMOVE, traps=[Trap("before", f"vmkeep.flows.remove_tpm:{step}", "hold")])
    zygote.wait_reached()
    host.restart_libvirtd()
    zygote.go.touch()
    zygote.finish()
    vmkeep.json("doctor", "--fix", "guest")
    assert vmkeep.json("ops", "list")["operations"] == []
    found = host.vm("guest")
    if "<tpm" not in inactive(found):
        assert not found.tpm_directory.exists()
        vmkeep.json("tpm", "add", "guest", "--from", "1")
    assert (inactive(found), found.tpm_state()) == (before, content)
