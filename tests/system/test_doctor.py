"""`vmkeep doctor` on real hosts: what it finds there, what --fix mends, and what it never touches."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Disk, Host, KiB, MiB, Vm, VmState
from tests.rig.cli import Vmkeep, finished
from tests.rig.qemufiles import execute, images_open
from tests.system.held import held, held_in_its_copy
from tests.system.offline import qemu_img
from tests.system.truth import Truth, assert_left_alone, checkpoints, files_below, guardians, has_backup_job

pytestmark = pytest.mark.system

# What every installation of these tests has, or the machine that they run on may have.
_COMMON = ("versions", "key-place", "home-not-private", "space-low", "repository-none")
_FRESH_SECONDS = 2.1  # for so long a lock that was just taken counts as held


def look(vmkeep: Vmkeep, *arguments: str) -> dict[str, Any]:
    """Run doctor, check its exit status against what it says, and return its document."""
    result = vmkeep.run("--json", "doctor", *arguments)
    assert result.stdout, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)["doctor"]
    assert result.returncode == (0 if document["ok"] else 37), result.stderr
    problems = [finding for finding in document["findings"] if finding["severity"] == "problem"]
    assert document["ok"] is (problems == [])
    return document


def found(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["code"]: finding for finding in document["findings"] if finding["code"] not in _COMMON}


def bitmaps(path: Path) -> set[str]:
    """Return the bitmaps in an image, as qemu-img sees them."""
    command = ["qemu-img", "info", "--output=json", "-U", str(path)]
    about = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {bitmap["name"] for bitmap in about["format-specific"]["data"].get("bitmaps", ())}


def add_bitmap(path: Path, name: str) -> None:
    subprocess.run(["qemu-img", "bitmap", "--add", str(path), name], check=True)


def prefix_of(point: dict[str, Any]) -> str:
    return str(point["checkpoint"]).removesuffix(str(point["id"]))


def small_vm(host: Host, *, tpm: bool = False) -> Vm:
    """A paused VM, so that nothing of it changes by itself."""
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 2 * MiB)], tpm=tpm)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=2 * MiB, seed=1)
    return vm


def assert_next_point_is_incremental(vm: Vm, vmkeep: Vmkeep, *, tpm: bool = False, dirty_bytes: int = 64 * KiB) -> None:
    vm.write_random("vda", start=64 * KiB, length=64 * KiB, seed=7)
    point = vmkeep.backup(vm.name)
    assert [disk["mode"] for disk in point["disks"]] == ["incremental", "incremental"]
    assert point["disks"][0]["bytes_read"] == dirty_bytes
    truth = Truth.of(vm, tpm=tpm)
    truth.assert_files(vmkeep.restore(point, vm.host.dir / "work" / "incremental"))


# -- nothing wrong -----------------------------------------------------------------------------------------------


def test_host_without_trouble_has_no_findings_and_looking_changes_nothing(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host, tpm=True)
    before_any = look(vmkeep)
    assert list(found(before_any)) == ["never-backed-up"]
    vmkeep.backup("guest")
    before = (files_below(vmkeep.home), files_below(host.dir / "disks"), checkpoints(vm), vm.state())
    assert found(look(vmkeep)) == {}
    after = (files_below(vmkeep.home), files_below(host.dir / "disks"), checkpoints(vm), vm.state())
    assert after == before
    assert found(look(vmkeep, "--fix", "guest")) == {}
    assert_next_point_is_incremental(vm, vmkeep, tpm=True)


def test_vm_that_is_not_there_and_libvirt_that_is_not_there(vmkeep: Vmkeep) -> None:
    assert vmkeep.fails("doctor", "nobody").code == "vm-not-found"
    failure = vmkeep.fails("doctor", "-c", "qemu+unix:///system?socket=/nowhere")
    assert (failure.code, failure.status) == ("incomplete", 37)
    assert failure.document is not None
    assert "libvirt-unreachable" in found(failure.document["doctor"])


# -- what dead processes leave -----------------------------------------------------------------------------------


def test_backup_that_was_killed_with_its_guardian_is_told_and_undone(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    first = vmkeep.backup("guest")
    vm.write_random("vda", start=0, length=4 * MiB, seed=3)
    with held_in_its_copy(vm, vmkeep) as process:
        for pid in guardians(vmkeep.home):
            os.kill(pid, signal.SIGKILL)
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(_FRESH_SECONDS)
    told = found(look(vmkeep))
    assert {"point-interrupted", "operation-interrupted"} <= set(told)
    assert all(told[code]["fixable"] for code in ("point-interrupted", "operation-interrupted"))
    assert told["point-interrupted"]["vm"] == "guest"
    assert has_backup_job(vm)
    document = look(vmkeep, "--fix")
    assert found(document) == {}
    assert len(document["recovered"]) == 2
    assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[first["checkpoint"]])
    assert_next_point_is_incremental(vm, vmkeep, dirty_bytes=4 * MiB)


def test_operation_under_way_is_not_touched_by_fix(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    vmkeep.backup("guest")
    vm.write_random("vda", start=0, length=4 * MiB, seed=3)
    with held_in_its_copy(vm, vmkeep) as process:
        time.sleep(_FRESH_SECONDS)
        job, left = has_backup_job(vm), files_below(host.dir / "disks").keys()
        document = look(vmkeep, "--fix")
        assert list(found(document)) == ["vm-in-use"]
        assert (document["recovered"], document["failed"]) == ([], [])
        assert (has_backup_job(vm), files_below(host.dir / "disks").keys()) == (job, left)
    status, done = finished(process)
    assert status == 0, done
    assert_next_point_is_incremental(vm, vmkeep)


def test_restore_under_way_is_not_touched_by_fix(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    point, truth = vmkeep.backup("guest"), Truth.of(vm, tpm=False)
    output = host.dir / "work" / "out"
    command: list[str | Path] = ["restore", point["id"], "--output", output]
    with held(vmkeep, command, lambda: any(output.glob(".*.partial"))) as process:
        time.sleep(_FRESH_SECONDS)
        staged = {path.name for path in output.iterdir()}
        document = look(vmkeep, "--fix")
        assert (found(document), document["recovered"]) == ({}, [])
        assert {path.name for path in output.iterdir()} == staged
    assert finished(process)[0] == 0
    truth.assert_files(output)


def test_left_files_of_ended_operations_go_and_those_of_others_stay(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    point = vmkeep.backup("guest")
    image, nvram = vm.disk_path("vda"), vm.nvram_path
    run_dir = host.path("/run/vmkeep")
    ours, theirs = point["id"][:12], "0123456789ab"
    left = [image.with_name(f".{image.name}.vda.{ours}.scratch"), nvram.with_name(f".{nvram.name}.{ours}.partial")]
    others = [image.with_name(f".{image.name}.vda.{theirs}.scratch"), image.with_name(f"{image.name}.{ours}.partial")]
    for path in (*left, *others):
        path.write_text("x")
    (run_dir / ours).mkdir(parents=True)
    (run_dir / theirs).mkdir()
    told = look(vmkeep)
    codes = sorted(finding["code"] for finding in told["findings"] if finding["code"] not in _COMMON)
    assert codes == ["left-file", "left-file", "left-socket", "unknown-left", "unknown-left"]
    fixed = look(vmkeep, "--fix")
    assert list(found(fixed)) == ["unknown-left"]
    assert not any(path.exists() for path in (*left, run_dir / ours))
    assert all(path.exists() for path in (*others, run_dir / theirs))
    (run_dir / theirs).rmdir()


# -- checkpoints and bitmaps -------------------------------------------------------------------------------------


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.OFF])
def test_checkpoint_of_no_point_goes_with_its_bitmaps_and_the_base_stays(
    host: Host, vmkeep: Vmkeep, state: VmState
) -> None:
    vm = small_vm(host)
    point = vmkeep.backup("guest")
    left = prefix_of(point) + uuid.uuid4().hex
    for name in (left, "theirs"):
        vm.domain.checkpointCreateXML(f"<domaincheckpoint><name>{name}</name></domaincheckpoint>")
    if state is VmState.OFF:
        vm.destroy()
        assert bitmaps(vm.disk_path("vda")) == {point["checkpoint"], left, "theirs"}
    told = found(look(vmkeep))
    assert set(told) == {"left-checkpoint", "foreign-checkpoint"}
    assert left in told["left-checkpoint"]["message"]
    assert (told["left-checkpoint"]["fixable"], told["foreign-checkpoint"]["fixable"]) == (True, False)
    assert list(found(look(vmkeep, "--fix"))) == ["foreign-checkpoint"]
    assert checkpoints(vm) == sorted([point["checkpoint"], "theirs"])
    if state is VmState.PAUSED:
        vm.destroy()
    for target in ("vda", "vdb"):
        assert bitmaps(vm.disk_path(target)) == {point["checkpoint"], "theirs"}
    vm.start(paused=True)
    assert_next_point_is_incremental(vm, vmkeep)


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.OFF])
def test_bitmap_that_no_checkpoint_names_goes_and_foreign_ones_stay(host: Host, vmkeep: Vmkeep, state: VmState) -> None:
    vm = small_vm(host)
    point = vmkeep.backup("guest")
    vm.destroy()
    image = vm.disk_path("vda")
    left, other = prefix_of(point) + uuid.uuid4().hex, f"vmkeep-{'f' * 8}-{uuid.uuid4().hex}"
    for name in (left, other, "theirs"):
        add_bitmap(image, name)
    if state is VmState.PAUSED:
        vm.start(paused=True)
    told = found(look(vmkeep))
    assert set(told) == {"left-bitmap", "foreign-bitmap"}
    assert left in told["left-bitmap"]["message"]
    assert other not in json.dumps(told)
    assert list(found(look(vmkeep, "--fix"))) == ["foreign-bitmap"]
    assert checkpoints(vm) == [point["checkpoint"]]
    vm.destroy()
    assert bitmaps(image) == {point["checkpoint"], other, "theirs"}
    vm.start(paused=True)
    assert_next_point_is_incremental(vm, vmkeep)


def test_bitmap_in_an_image_that_two_vms_use_is_told_and_left(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    point = vmkeep.backup("guest")
    vm.destroy()
    add_bitmap(vm.disk_path("vda"), prefix_of(point) + uuid.uuid4().hex)
    host.define("second", disks=[Disk("vda", 8 * MiB, path=vm.disk_path("vda"))], tpm=False)
    before = bitmaps(vm.disk_path("vda"))
    told = found(look(vmkeep, "--fix"))
    assert not told["left-bitmap"]["fixable"]
    assert bitmaps(vm.disk_path("vda")) == before


def test_base_that_cannot_be_trusted_is_a_note(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    vmkeep.backup("guest")
    pid = host.path("/run/libvirt/qemu/guest.pid").read_text().strip()
    host.run(["kill", "-KILL", pid], check=True)
    deadline = time.monotonic() + 10
    while vm.state() is not VmState.OFF:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    told = found(look(vmkeep))
    assert list(told) == ["base-unsound"]
    assert (told["base-unsound"]["severity"], told["base-unsound"]["remedy"]) == ("note", None)


def test_lost_checkpoint_whose_bitmaps_are_there_is_kept_for_the_next_backup(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    point = vmkeep.backup("guest")
    vm.destroy()
    (checkpoint,) = vm.domain.listAllCheckpoints()
    checkpoint.delete(2)  # the metadata only
    assert list(found(look(vmkeep, "--fix"))) == ["checkpoint-unlisted"]
    assert bitmaps(vm.disk_path("vda")) == {point["checkpoint"]}


def test_checkpoint_of_a_point_that_another_installation_took_is_left(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    vmkeep.backup("guest")
    other = Vmkeep(host, home=host.dir / "work" / "other-home")
    shutil.copytree(vmkeep.home / "keys", other.home / "keys")
    other.json("init", "--adopt", "--repository", vmkeep.home / "repository")
    point = other.backup("guest")
    told = found(look(vmkeep, "--fix"))
    assert "left-checkpoint" not in told
    assert told["point-not-known"]["remedy"] == "vmkeep init --adopt"
    assert checkpoints(vm) == [point["checkpoint"]]
    assert [disk["mode"] for disk in other.backup("guest")["disks"]] == ["incremental", "incremental"]


def test_job_of_somebody_else_is_a_note_and_goes_on(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    with vm.own_backup_job(["vda"]):
        assert "foreign-job" in found(look(vmkeep, "--fix"))
        assert has_backup_job(vm)


def test_job_of_ours_whose_record_is_lost_is_ended(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    point = vmkeep.backup("guest")
    (directory,) = host.path("/var/lib/libvirt/qemu").glob(f"domain-{vm.domain.ID()}-*")
    inside = f"/var/lib/libvirt/qemu/{directory.name}/vmkeep-{point['id'][:12]}.nbd"
    scratch = host.dir / "disks" / f".guest-vda.qcow2.vda.{point['id'][:12]}.scratch"
    vm.domain.backupBegin(
        f"<domainbackup mode='pull'><server transport='unix' socket='{inside}'/><disks>"
        f"<disk name='vda' type='file'><scratch file='{scratch}'/></disk><disk name='vdb' backup='no'/></disks>"
        "</domainbackup>",
        None,
    )
    assert "left-job" in found(look(vmkeep))
    assert has_backup_job(vm)
    assert found(look(vmkeep, "--fix")) == {}
    assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[point["checkpoint"]])


def test_removed_scratch_that_qemu_was_not_told_to_close_is_closed(host: Host, vmkeep: Vmkeep) -> None:
    """As libvirtd leaves it that is killed when a job has ended: nothing finds the file, and its room is taken."""
    vm = small_vm(host)
    point = vmkeep.backup("guest")
    scratch = host.dir / "disks" / f".guest-vda.qcow2.vda.{point['id'][:12]}.scratch"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", scratch, "2M")
    shutil.chown(scratch, "libvirt-qemu", "kvm")
    execute(vm, "blockdev-add", driver="file", filename=str(scratch), **{"node-name": "libvirt-99-storage"})
    execute(vm, "blockdev-add", driver="qcow2", file="libvirt-99-storage", **{"node-name": "libvirt-99-format"})
    scratch.unlink()
    assert scratch.with_name(f"{scratch.name} (deleted)") in images_open(vm)
    held_file = found(look(vmkeep))["scratch-held"]
    assert held_file["path"] == str(scratch)
    assert "KiB" in held_file["message"]
    assert found(look(vmkeep, "--fix")) == {}
    assert set(images_open(vm)) & {vm.disk_path("vda"), vm.disk_path("vdb")} == {
        vm.disk_path("vda"),
        vm.disk_path("vdb"),
    }
    assert not [path for path in images_open(vm) if "scratch" in path.name]
    assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[point["checkpoint"]])


# -- state and disks ---------------------------------------------------------------------------------------------


def test_missing_and_older_state_files_are_told_with_what_puts_them_back(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 2 * MiB)])
    vm.start(paused=True)
    vmkeep.backup("guest")
    old = {"tpm": vm.tpm_state(), "nvram": vm.nvram()}
    vm.destroy()
    vm.change_nvram()
    vm.change_tpm()
    vm.start(paused=True)
    vmkeep.backup("guest")
    vm.destroy()
    assert found(look(vmkeep)) == {}
    permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    newest = permall.read_bytes(), vm.nvram_path.read_bytes()
    permall.write_bytes(old["tpm"])
    vm.nvram_path.write_bytes(old["nvram"])
    document = look(vmkeep)
    superseded = [finding for finding in document["findings"] if finding["code"] == "state-superseded"]
    assert {finding["path"] for finding in superseded} == {
        "/var/lib/libvirt/qemu/nvram/guest_VARS.fd",
        f"/var/lib/libvirt/swtpm/{vm.uuid}/tpm2/tpm2-00.permall",
    }
    permall.unlink()
    vm.nvram_path.unlink()
    told = found(look(vmkeep, "--fix"))
    assert set(told) == {"tpm-missing", "nvram-missing"}
    assert told["tpm-missing"]["remedy"] == "vmkeep state restore guest --kind tpm"
    assert not permall.exists()
    assert not vm.nvram_path.exists()
    for finding in told.values():
        vmkeep.json(*finding["remedy"].split()[1:], "--yes")
    assert found(look(vmkeep)) == {}
    assert (permall.read_bytes(), vm.nvram_path.read_bytes()) == newest


def test_tpm_that_no_point_can_hold(host: Host, vmkeep: Vmkeep) -> None:
    secret = str(uuid.uuid4())
    encrypted = (
        f"<tpm model='tpm-crb'><backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend></tpm>"
    )
    disk = [Disk("vda", MiB)]
    host.define("sealed", disks=disk, tpm=False, device_xml=[encrypted])
    passed = "<tpm model='tpm-crb'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"
    host.define("passed", disks=disk, tpm=False, device_xml=[passed])
    told = look(vmkeep)["findings"]
    by_vm = {(finding["vm"], finding["code"]) for finding in told if finding["code"].startswith("tpm-")}
    assert by_vm == {("sealed", "tpm-secret-missing"), ("passed", "tpm-not-kept")}
    host.connection.secretDefineXML(f"<secret ephemeral='no' private='yes'><uuid>{secret}</uuid></secret>")
    try:
        assert "tpm-not-kept" in found(look(vmkeep, "sealed"))
    finally:
        host.connection.secretLookupByUUIDString(secret).undefine()


def test_disks_that_are_gone_changed_or_in_no_point(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    vmkeep.backup("guest")
    domain = vm.domain
    added = host.dir / "disks" / "added.raw"
    added.write_bytes(bytes(MiB))
    domain.attachDeviceFlags(
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{added}'/>"
        "<target dev='vdc' bus='virtio'/></disk>",
        2,  # the persistent definition only
    )
    told = found(look(vmkeep))
    assert list(told) == ["definition-differs"]
    assert "vdc" in told["definition-differs"]["message"]
    vm.destroy()
    added.unlink()
    told = found(look(vmkeep))
    assert told["image-unreadable"]["path"] == str(added)
    assert "disk-not-kept" in told


def test_restore_in_place_that_was_interrupted_is_told_and_finished(host: Host, vmkeep: Vmkeep) -> None:
    vm = small_vm(host)
    point = vmkeep.backup("guest")
    vm.write_random("vda", start=0, length=6 * MiB, seed=5)
    vm.destroy()
    journals = vmkeep.home / "restores"

    def writes() -> bool:
        return any('"stage":"writing"' in path.read_text() for path in journals.glob("*.json"))

    with held(vmkeep, ["restore", point["id"], "--in-place", "--yes"], writes) as process:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(_FRESH_SECONDS)
    told = found(look(vmkeep))
    assert (told["restore-pending"]["vm"], told["restore-pending"]["severity"]) == ("guest", "problem")
    assert told["restore-pending"]["remedy"] == "vmkeep doctor --fix"
    document = look(vmkeep, "--fix")
    assert found(document) == {}
    assert document["recovered"]
    restored = vmkeep.restore(point, host.dir / "work" / "out")
    Truth.of(vm, tpm=False).assert_files(restored)
