"""A user whom libvirt lets in and who is not root: what works, and that the rest is refused before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import Host, Vm
from tests.rig.cli import Vmkeep

pytestmark = pytest.mark.system
USER = 65534


@pytest.fixture
def home(host: Host) -> Path:
    """The user's own VMKEEP_HOME."""
    place = host.dir / "work/user"
    place.mkdir(mode=0o700)
    shutil.chown(place, USER, USER)
    return place


@pytest.fixture
def user(host: Host, home: Path) -> Iterator[Vmkeep]:
    """The command as the user runs it. The socket of libvirt is as open as it is for the group libvirt."""
    socket = host.path("/run/libvirt/libvirt-sock")
    mode = socket.stat().st_mode & 0o777
    socket.chmod(0o777)
    yield Vmkeep(host, home=home, user=USER)
    socket.chmod(mode)


@pytest.fixture
def off(host: Host) -> Vm:
    """A VM that has run and is off: the directory of its TPM state may not be looked into."""
    vm = host.define("has run")
    vm.start()
    vm.destroy()
    return closed(vm)


@pytest.fixture
def vm(vm: Vm) -> Vm:
    return closed(vm)


def closed(vm: Vm) -> Vm:
    """Give the VM's images the mode that those have which virt-install and `virsh vol-create` make."""
    for image in (vm.host.dir / "disks").iterdir():
        image.chmod(0o600)
    return vm


def nothing_was_made(home: Path) -> bool:
    return not (home / "repository").exists() and not any((home / "keys").glob("*"))


def test_vms_are_listed_with_what_the_user_may_not_read(vm: Vm, off: Vm, user: Vmkeep) -> None:
    listed = {each["name"]: each for each in user.json("vm", "list")["vms"]}
    for name in (vm.name, off.name):
        problems = listed[name]["problems"]
        assert not listed[name]["complete"]
        for what in ("read the image of disk vda", "read its TPM state", "read its UEFI variables"):
            assert any(f"this user may not {what}" in problem for problem in problems), problems
    assert any("socket" in problem for problem in listed[vm.name]["problems"])
    assert listed[off.name]["disks"][0]["size_bytes"] == 64 << 20
    assert user.json("vm", "show", off.name)["vm"] == listed[off.name]
    told = user.run("vm", "list")
    assert (told.returncode, told.stderr) == (0, "")


def test_what_needs_root_is_refused_before_anything_is_made(
    vm: Vm, off: Vm, user: Vmkeep, home: Path, vmkeep: Vmkeep
) -> None:
    vmkeep.json("snapshot", "create", off.name, "s1")
    for command in (
        ("backup", vm.name),
        ("backup", off.name),
        ("backup", "--all"),
        ("backup", off.name, vm.name),
        ("snapshot", "create", vm.name, "s2"),
        ("snapshot", "revert", off.name, "s1", "--yes"),
        ("snapshot", "delete", off.name, "s1"),
    ):
        failure = user.fails(*command)
        assert (failure.code, failure.status) == ("permission-denied", 14), command
        assert "this user may not" in failure.error["message"], command
        assert "root" in failure.error["hint"]
        assert nothing_was_made(home), command
    assert [snapshot.getName() for snapshot in off.domain.listAllSnapshots()] == ["s1"]
    assert not vm.domain.listAllSnapshots()
    assert not vm.domain.listAllCheckpoints()
    assert vm.domain.isActive()


def test_what_libvirt_does_for_its_users_works(vm: Vm, user: Vmkeep, vmkeep: Vmkeep) -> None:
    vmkeep.json("snapshot", "create", vm.name, "s1")
    assert [each["name"] for each in user.json("snapshot", "list", vm.name)["snapshots"]] == ["s1"]
    assert "<domainsnapshot>" in user.run("snapshot", "dumpxml", vm.name, "s1").stdout
    assert user.run("snapshot", "tree", vm.name).stdout.strip() == "s1"
    assert user.json("snapshot", "info", vm.name, "s1")["snapshot"]["name"] == "s1"
    assert user.json("snapshot", "export", vm.name, vm.host.dir / "work/user/s1.xml")["exported"]["snapshots"] == ["s1"]
    user.json("checkpoint", "create", vm.name, "c1")
    assert [each["name"] for each in user.json("checkpoint", "list", vm.name)["checkpoints"]] == ["c1"]
    assert user.run("checkpoint", "dumpxml", vm.name, "c1").returncode == 0
    assert user.json("checkpoint", "health", vm.name)["checkpoint_health"]["ok"]
    user.json("checkpoint", "delete", vm.name, "c1")
    user.json("snapshot", "delete", vm.name, "s1", "--metadata")
    assert not vm.domain.listAllSnapshots()


def test_doctor_says_what_the_user_may_not_do_and_calls_nothing_missing(
    vm: Vm, off: Vm, user: Vmkeep, home: Path, vmkeep: Vmkeep
) -> None:
    point = vmkeep.backup(off.name)
    taken_along = vmkeep.home / "repository"
    shutil.copytree(taken_along, home / "repository")
    shutil.copytree(vmkeep.home / "keys", home / "keys")
    for path in (home, *home.rglob("*")):
        shutil.chown(path, USER, USER)
    user.json("init", "--adopt")
    doctor = user.json("doctor")["doctor"]
    assert doctor["ok"], doctor
    lacking = {each["vm"]: each["message"] for each in doctor["findings"] if each["code"] == "rights-lacking"}
    assert set(lacking) == {vm.name, off.name}
    assert "the image of disk vda" in lacking[off.name]
    codes = {each["code"] for each in doctor["findings"] if each["vm"] == off.name}
    assert codes == {"rights-lacking"}
    # A copy of the repository is the user's: it is read, proven and restored from without root.
    assert user.json("verify", off.name)["ok"]
    restored = user.json("restore", point["id"], "--output", home / "restored")["restored"]
    assert {Path(path).name for path in restored["files"]} >= {"vda.qcow2", "domain.xml"}
    failure = user.fails("restore", point["id"], "--in-place", "--yes")
    assert failure.code == "permission-denied"
    assert "this user may not" in failure.error["message"]
