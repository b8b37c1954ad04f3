"""Restores as a VM: identity, TPM, paths and owners right, all of it or nothing."""

from __future__ import annotations

import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Disk, Host, KiB, MiB, NvIndexMissingError, Vm, VmState
from tests.rig.cli import Failure, Vmkeep
from tests.system.truth import Truth, files_below

pytestmark = pytest.mark.system

_NETWORK = (
    "<interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>"  # needs no bridge
)
_SECRET = b"seals the guest's disks"


def _vm_with_secret(host: Host) -> tuple[Vm, Truth]:
    """A VM with a secret in its TPM, running but paused, so that the truth about it stays true."""
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 4 * MiB)], device_xml=[_NETWORK])
    vm.start(paused=True)
    vm.destroy()
    vm.store_in_tpm(_SECRET)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=1 * MiB, seed=1)
    vm.write_random("vdb", start=1 * MiB, length=64 * KiB, seed=2)
    vm.change_nvram()
    return vm, Truth.of(vm)


def _macs(vm: Vm) -> list[str]:
    return re.findall("<mac address='([0-9a-f:]+)'", vm.xml())


def _restore(vmkeep: Vmkeep, point: dict[str, Any], name: str, *options: str) -> dict[str, Any]:
    restored = vmkeep.json("restore", str(point["id"]), "--as", name, *options)["restored"]
    assert isinstance(restored, dict)
    return restored


def _assert_starts(vm: Vm) -> None:
    vm.start()
    assert vm.state() is VmState.RUNNING
    vm.destroy()


def _names(host: Host) -> set[str]:
    return {domain.name() for domain in host.connection.listAllDomains()}


def _host_files(host: Host) -> dict[str, bytes]:
    """Everything on the host that a restore could write: disks, NVRAM, TPM state."""
    found = {f"disks/{name}": content for name, content in files_below(host.dir / "disks").items()}
    for place in ("/var/lib/libvirt/qemu/nvram", "/var/lib/libvirt/swtpm"):
        directory = host.path(place)
        found |= {f"{place}/{name}": content for name, content in files_below(directory).items()}
    return found


def test_lost_vm_comes_back_as_it_was(host: Host, vmkeep: Vmkeep) -> None:
    vm, truth = _vm_with_secret(host)
    uuid, macs = vm.uuid, _macs(vm)
    point = vmkeep.backup("guest")
    vm.delete()
    restored = _restore(vmkeep, point, "guest")
    back = host.vm("guest")

    assert (restored["uuid"], restored["identity"], restored["tpm"]) == (uuid, "same", "same")
    assert (back.uuid, _macs(back), back.state()) == (uuid, macs, VmState.OFF)
    truth.assert_vm(back)
    permall = back.tpm_directory / "tpm2" / "tpm2-00.permall"
    assert pwd.getpwuid(permall.stat().st_uid).pw_name == "tss"
    assert pwd.getpwuid(permall.parent.stat().st_uid).pw_name == "tss"
    back.start(paused=True)
    truth.assert_vm(back)
    # A VM that was restored is kept like any other.
    back.write_random("vda", start=2 * MiB, length=64 * KiB, seed=9)
    again = vmkeep.backup("guest")
    assert again["parent"] == point["id"]
    Truth.of(back).assert_files(vmkeep.restore(again, host.dir / "work" / "again"))
    back.destroy()
    _assert_starts(back)
    assert back.load_from_tpm(len(_SECRET)) == _SECRET


def test_tpm_must_be_chosen_while_the_original_is_there(host: Host, vmkeep: Vmkeep) -> None:
    vm, truth = _vm_with_secret(host)
    point = vmkeep.backup("guest")
    before = _host_files(host)
    failure = vmkeep.fails("restore", point["id"], "--as", "copy")

    assert (failure.code, failure.status) == ("choice-required", 2)
    assert "--tpm same" in failure.error["hint"]
    assert "--tpm new" in failure.error["hint"]
    assert _names(host) == {"guest"}
    assert _host_files(host) == before
    same, new = _restore(vmkeep, point, "same", "--tpm", "same"), _restore(vmkeep, point, "new", "--tpm", "new")
    copies = [host.vm("same"), host.vm("new")]
    assert [restored["identity"] for restored in (same, new)] == ["new", "new"]
    assert len({vm.uuid, *(copy.uuid for copy in copies)}) == 3
    assert len({mac for each in (vm, *copies) for mac in _macs(each)}) == 3
    without_tpm = Truth(truth.images, None, truth.nvram)
    truth.assert_vm(copies[0])
    without_tpm.assert_vm(copies[1])
    assert copies[0].load_from_tpm(len(_SECRET)) == _SECRET
    for copy in copies:
        _assert_starts(copy)  # beside the original
    assert copies[0].load_from_tpm(len(_SECRET)) == _SECRET
    with pytest.raises(NvIndexMissingError):
        copies[1].load_from_tpm(len(_SECRET))
    truth.assert_vm(vm)  # the original has noticed nothing
    assert {path.name for path in (host.dir / "disks").iterdir()} >= {"same-vda.qcow2", "new-vdb.qcow2"}


def test_what_is_there_is_never_overwritten(host: Host, vmkeep: Vmkeep) -> None:
    vm, truth = _vm_with_secret(host)
    point = vmkeep.backup("guest")
    before = _host_files(host)

    def refused(name: str, *options: str) -> Failure:
        failure = vmkeep.fails("restore", point["id"], "--as", name, *options)
        assert _host_files(host) == before
        assert _names(host) == {"guest"}
        return failure

    for options in (["--tpm", "same"], ["--tpm", "same", "--force"]):  # --force is for files, never for a VM
        taken = refused("guest", *options)
        assert (taken.code, taken.status, taken.error["vm"]) == ("target-exists", 6, "guest")
    missing = refused("copy", "--tpm", "same", "--disks-dir", str(host.dir / "nowhere"))
    assert (missing.code, missing.error["path"]) == ("host-file-missing", str(host.dir / "nowhere"))
    assert not (host.dir / "nowhere").exists()
    file = host.dir / "disks" / "copy-vdb.qcow2"
    file.write_bytes(b"precious")
    before = _host_files(host)
    in_the_way = refused("copy", "--tpm", "same")
    assert (in_the_way.code, in_the_way.error["path"]) == ("target-exists", str(file))
    truth.assert_vm(vm)
    restored = _restore(vmkeep, point, "copy", "--tpm", "same", "--force")
    assert str(file) in restored["files"]
    truth.assert_vm(host.vm("copy"))


def test_disks_go_where_they_are_asked_to(host: Host, vmkeep: Vmkeep) -> None:
    vm, truth = _vm_with_secret(host)
    point = vmkeep.backup("guest")
    vm.delete()
    elsewhere = host.dir / "work" / "other images"
    elsewhere.mkdir()
    _restore(vmkeep, point, "renamed", "--disks-dir", str(elsewhere))
    back = host.vm("renamed")

    assert {disk.path for disk in back.disks()} == {elsewhere / "renamed-vda.qcow2", elsewhere / "renamed-vdb.qcow2"}
    assert back.uuid == point["vm_uuid"]
    truth.assert_vm(back)
    back.start()
    back.destroy()
    assert back.load_from_tpm(len(_SECRET)) == _SECRET
    assert list((host.dir / "disks").iterdir()) == []


@contextmanager
def small_file_system(host: Host, directory: Path, size: str) -> Iterator[None]:
    """Mount a tmpfs inside the host; the rest of the machine does not see it."""
    directory.mkdir()
    host.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "tmpfs", directory], check=True)
    try:
        yield
    finally:
        host.run(["umount", "--lazy", directory], check=True)


def test_full_disk_while_restoring_leaves_nothing(host: Host, vmkeep: Vmkeep) -> None:
    vm, _ = _vm_with_secret(host)
    point = vmkeep.backup("guest")
    vm.delete()
    before = _host_files(host)
    full = host.dir / "work" / "full"
    with small_file_system(host, full, "512k"):
        as_vm = vmkeep.fails("restore", point["id"], "--as", "guest", "--disks-dir", full)
        as_files = vmkeep.fails("restore", point["id"], "--output", full / "out")
        left = host.run(["find", full, "-mindepth", "1", "-type", "f"], check=True).stdout
    assert [failure.code for failure in (as_vm, as_files)] == ["no-space", "no-space"]
    assert (as_vm.status, as_vm.error["disk"] in ("vda", None)) == (34, True)
    assert str(full) in str(as_vm.error["path"])
    assert left == ""
    assert _names(host) == set()
    assert _host_files(host) == before
    _restore(vmkeep, point, "guest")
    _assert_starts(host.vm("guest"))


def test_vm_restored_on_another_host_is_the_same_machine(host: Host, vmkeep: Vmkeep, second_host: Host) -> None:
    vm, truth = _vm_with_secret(host)
    uuid, macs = vm.uuid, _macs(vm)
    vmkeep.backup("guest")
    vm.write_random("vda", start=3 * MiB, length=64 * KiB, seed=5)
    second, later = vmkeep.backup("guest"), Truth.of(vm)
    passphrase, wrong = host.dir / "work" / "passphrase", host.dir / "work" / "wrong"
    passphrase.write_text("correct horse\n")
    wrong.write_text("battery staple\n")
    exported = host.dir / "work" / "key.txt"
    vmkeep.json("key", "export", "--passphrase-file", passphrase, "--output", exported)
    assert exported.stat().st_mode & 0o777 == 0o600
    there = Vmkeep(second_host)
    repository = host.dir / "home" / "repository"

    assert there.fails("init", "--repository", repository, "--adopt").code == "key-missing"
    refused = there.fails("key", "import", exported, "--passphrase-file", wrong)
    assert (refused.code, refused.status) == ("wrong-key", 41)
    there.json("key", "import", exported, "--passphrase-file", passphrase)
    adopted = there.json("init", "--repository", repository, "--adopt")["init"]
    assert (adopted["adopted_points"], adopted["adopted_vms"]) == (2, 1)
    points = (each.json("points")["points"] for each in (there, vmkeep))
    assert len({str([{**point, "made_by": point["made_by"]["key"]} for point in listed]) for listed in points}) == 1
    images = second_host.dir / "disks"
    as_vm = ("--disks-dir", str(images))
    asked = there.fails("restore", second["id"], "--as", "guest", *as_vm)  # its network is the host's own
    assert [part["part"] for part in asked.error["parts"]] == ["devices/interface"]
    restored = _restore(there, second, "guest", *as_vm, "--trust-definition")
    back = second_host.vm("guest")
    assert (restored["identity"], back.uuid, _macs(back)) == ("same", uuid, macs)
    assert all(disk.path is not None and disk.path.parent == images for disk in back.disks())
    later.assert_vm(back)
    _assert_starts(back)
    assert back.load_from_tpm(len(_SECRET)) == _SECRET
    # From here on the points of both hosts go into one repository.
    back.start(paused=True)
    moved = there.backup("guest")
    Truth.of(back).assert_files(there.restore(moved, second_host.dir / "work" / "moved"))
    assert vmkeep.json("verify", "--all")["ok"] is True
    truth.assert_files(vmkeep.restore(vmkeep.json("points")["points"][0], host.dir / "work" / "first"))


def test_medium_stays_in_its_drive_if_it_is_still_there(host: Host, vmkeep: Vmkeep) -> None:
    media = [host.dir / "work" / name for name in ("there.iso", "gone.iso")]
    for path in media:
        path.write_bytes(b"\x11" * MiB)
    drives = [
        Disk(target, bus="sata", device="cdrom", format="raw", readonly=True, path=path)
        for target, path in zip(("sda", "sdb"), media, strict=True)
    ]
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB), *drives], tpm=False)
    vm.start(paused=True)
    point = vmkeep.backup("guest")
    vm.destroy()
    vm.undefine()
    vm_disk = host.dir / "disks" / "guest-vda.qcow2"
    vm_disk.unlink()
    media[1].unlink()
    vmkeep.json("restore", point["id"], "--as", "guest")

    found = {disk.target: disk.path for disk in host.vm("guest").disks()}
    assert found == {"vda": vm_disk, "sda": media[0], "sdb": None}
    host.vm("guest").start(paused=True)
