"""What is wrong or missing is said clearly, and neither the VM nor what is stored suffers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.rig import Disk, Host, MiB, Vm, VmState
from tests.rig.cli import COMMAND, NO_LIBVIRT, Vmkeep
from tests.system.truth import Truth, assert_left_alone, files_below

pytestmark = pytest.mark.system


def _vm(host: Host) -> Vm:
    vm = host.define("guest", disks=[Disk("vda", 16 * MiB)], tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=8 * MiB, seed=1)
    return vm


def test_names_that_nothing_has_are_told(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host)
    unknown = vmkeep.fails("backup", "gast")
    assert (unknown.code, unknown.status, unknown.error["vm"]) == ("vm-not-found", 3, "gast")
    assert vmkeep.fails("vm", "show", "gast").code == "vm-not-found"
    vmkeep.backup(vm.uuid)
    for command in (
        ["restore", "gast@latest", "--output", str(host.dir / "work" / "out")],
        ["point", "show", "0123456789"],
        ["point", "delete", "0123456789", "--yes"],
        ["verify", "gast"],
    ):
        failure = vmkeep.fails(*command)
        assert (failure.code, failure.status) in {("point-not-found", 4), ("vm-not-found", 3)}, command
    for wrong in (["backup"], ["backup", "--all", "guest"], ["verify"], ["backup", "guest", "--label", "nothing"]):
        assert (vmkeep.fails(*wrong).code, vmkeep.fails(*wrong).status) == ("invalid-request", 2)
    assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[vmkeep.json("points")["points"][0]["checkpoint"]])


def test_libvirt_out_of_reach_is_told(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host)
    for arguments, environment in (
        (["-c", NO_LIBVIRT["LIBVIRT_DEFAULT_URI"], "backup", "guest"], {}),
        (["vm", "list"], NO_LIBVIRT),
    ):
        failure = vmkeep.fails(*arguments, env=environment)
        assert (failure.code, failure.status) == ("hypervisor-unavailable", 31)
    assert vmkeep.json("points", env=NO_LIBVIRT)["points"] == []
    assert_left_alone(vm, state=VmState.PAUSED)


def test_repository_that_is_gone_or_another_is_never_replaced(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host)
    point = vmkeep.backup("guest")
    repository, away = host.dir / "home" / "repository", host.dir / "work" / "away"
    repository.rename(away)
    gone = vmkeep.fails("backup", "guest")
    assert (gone.code, gone.status) == ("repository-not-found", 5)
    assert gone.error["path"] == str(repository)
    assert not repository.exists()
    repository.mkdir()  # as an unmounted mount point is
    assert vmkeep.fails("backup", "guest").code == "repository-not-found"
    assert vmkeep.fails("verify", "--all").code == "repository-not-found"
    (repository / "holiday.jpg").write_bytes(b"precious")
    assert vmkeep.fails("backup", "guest").code in {"repository-not-found", "repository-foreign"}
    assert files_below(repository) == {"holiday.jpg": b"precious"}
    shutil.rmtree(repository)
    other = Vmkeep(host, home=host.dir / "work" / "other home")
    other.json("init")
    shutil.copytree(other.home / "repository", repository)
    assert vmkeep.fails("backup", "guest").status in {22, 40, 41}  # another repository, and no key for it
    shutil.rmtree(repository)
    away.rename(repository)
    assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[point["checkpoint"]])
    assert vmkeep.backup("guest")["kind"] == "incremental"


def test_directory_with_other_things_does_not_become_a_repository(host: Host, vmkeep: Vmkeep) -> None:
    photos = host.dir / "work" / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"precious")
    failure = vmkeep.fails("init", "--repository", photos)

    assert (failure.code, failure.status) == ("repository-foreign", 22)
    assert files_below(photos) == {"holiday.jpg": b"precious"}
    adopt = vmkeep.fails("init", "--repository", host.dir / "work" / "nothing", "--adopt")
    assert adopt.code == "repository-not-found"
    assert not (host.dir / "work" / "nothing").exists()


def test_without_its_key_nothing_is_read_or_written(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host)
    point = vmkeep.backup("guest")
    (key,) = (host.dir / "home" / "keys").iterdir()
    content = key.read_bytes()
    key.rename(host.dir / "work" / "key")
    before = files_below(host.dir / "home" / "repository")
    for command in (
        ["backup", "guest"],
        ["verify", "--all"],
        ["restore", point["id"], "--output", str(host.dir / "work" / "out")],
    ):
        failure = vmkeep.fails(*command)
        assert (failure.code, failure.status) == ("key-missing", 40), command
    other = Vmkeep(host, home=host.dir / "work" / "other home")
    other.json("init")
    (foreign,) = (other.home / "keys").iterdir()
    key.write_bytes(foreign.read_bytes())
    key.chmod(0o600)
    assert vmkeep.fails("backup", "guest").status in {40, 41}
    assert files_below(host.dir / "home" / "repository") == before
    assert files_below(host.dir / "work" / "out") == {}
    assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[point["checkpoint"]])
    key.write_bytes(content)
    assert vmkeep.json("verify", "--all")["ok"] is True


def test_user_who_may_not_is_refused(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host)
    vmkeep.json("init")
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(COMMAND), "--json", "backup", "guest"]
    result = host.run(command)

    assert result.returncode == 14, result.stdout + result.stderr
    assert '"code": "permission-denied"' in result.stderr
    assert result.stdout == ""
    assert_left_alone(vm, state=VmState.PAUSED)


def test_full_repository_is_told_and_with_space_the_next_point_works(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host)
    directory: Path = host.dir / "work" / "small"
    directory.mkdir()
    host.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", directory], check=True)
    try:
        vmkeep.json("init", "--repository", directory / "repository")
        failure = vmkeep.fails("backup", "guest")
        assert (failure.code, failure.status) == ("no-space", 34)
        assert str(directory) in str(failure.error["path"])
        assert_left_alone(vm, state=VmState.PAUSED)
        assert vmkeep.json("points")["points"] == []
        host.run(["mount", "-o", "remount,size=64m", directory], check=True)
        point = vmkeep.backup("guest")
        assert vmkeep.json("verify", "--all")["ok"] is True
        truth = Truth.of(vm, tpm=False)
        truth.assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
        host.run(["mount", "-o", "remount,size=9m", directory], check=True)
        vm.write_random("vda", start=0, length=8 * MiB, seed=2)
        assert vmkeep.fails("backup", "guest").code == "no-space"
        assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[point["checkpoint"]])
        host.run(["mount", "-o", "remount,size=64m", directory], check=True)
        after = vmkeep.backup("guest")
        assert after["kind"] == "incremental"  # the old base still works
        Truth.of(vm, tpm=False).assert_files(vmkeep.restore(after, host.dir / "work" / "after"))
    finally:
        host.run(["umount", "--lazy", directory], check=True)
