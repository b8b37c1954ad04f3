"""Removing libvirt's record of a snapshot changes no other snapshot, and a record that was changed so is put right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep
from tests.system.history import Forked
from tests.system.kept_snapshots import Taken, names, take
from tests.system.snapshots import snapshots
from tests.system.test_snapshot_health import health, why

pytestmark = pytest.mark.system


def _with_snapshots(host: Host, vmkeep: Vmkeep, *wanted: str) -> tuple[Vm, dict[str, Taken]]:
    """A paused VM whose snapshots each hold something that no other one holds."""
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB), Disk("vdb", 2 * MiB)], tpm=False, firmware="bios")
    vm.start(paused=True)
    taken = {}
    for number, name in enumerate(wanted, start=1):
        vm.write("vda", start=number * MiB // 2, length=MiB // 4, pattern=number)
        vm.write("vdb", start=0, length=MiB // 4, pattern=0x10 + number)
        taken[name] = take(vm, vmkeep, name, uefi=False, tpm=False)
    vm.write("vda", start=0, length=MiB, pattern=0x99)
    return vm, taken


def _images(vm: Vm, name: str) -> dict[str, Any]:
    record = snapshots(vm)[name]
    targets, files = record.xpath("domain//disk/target/@dev"), record.xpath("domain//disk/source/@file")
    return dict(zip(targets, files, strict=True))


def _revert(vmkeep: Vmkeep, name: str) -> None:
    vmkeep.json("snapshot", "revert", "guest", name, "--stop", "--yes", "--no-safety")


def test_record_that_goes_alone_leaves_the_others_what_they_were(host: Host, forked: Forked) -> None:
    vm, taken = _with_snapshots(host, forked, "S1", "S2", "S3")
    images = {name: _images(vm, name) for name in taken}
    forked.json("snapshot", "delete", "guest", "S1", "--metadata")
    assert {name: _images(vm, name) for name in names(vm)} == {name: images[name] for name in ("S2", "S3")}
    assert vm.domain.snapshotCurrent().getName() == "S3"
    assert snapshots(vm)["S3"].findtext("parent/name") == "S2"
    assert snapshots(vm)["S2"].find("parent") is None
    assert {name: told["health"] for name, told in health(forked).items()} == {"S2": "sound", "S3": "sound"}
    for name in ("S2", "S3"):
        _revert(forked, name)
        taken[name].truth.assert_vm(vm)
    # With checkpoints and off, libvirt 9.0 takes no record again, so it is asked for none.
    vm.start(paused=True)
    forked.backup("guest")
    vm.destroy()
    before = {name: _images(vm, name) for name in names(vm)}
    result = forked.run("--json", "snapshot", "delete", "guest", "S2", "--metadata")
    assert result.returncode in (0, 18), result.stderr
    left = {name: _images(vm, name) for name in names(vm)}
    assert left == {name: before[name] for name in left}
    assert names(vm) == (["S3"] if result.returncode == 0 else ["S2", "S3"])


def test_record_that_libvirt_changed_is_found_refused_and_mended(host: Host, forked: Forked) -> None:
    """libvirt 9.0 rewrites the records of all that descends from one that it forgets; so does virsh."""
    vm, taken = _with_snapshots(host, forked, "S1", "S2", "S3")
    right = {name: _images(vm, name) for name in ("S2", "S3")}
    host.run(["virsh", "snapshot-delete", "guest", "S1", "--metadata"], check=True)
    if _images(vm, "S2") == right["S2"]:
        pytest.skip("this libvirt changes no record")
    told = health(forked)
    assert {name: each["health"] for name, each in told.items()} == {"S2": "broken", "S3": "sound"}
    assert "repair" in why(told["S2"], "vda")
    refused = forked.fails("snapshot", "revert", "guest", "S2", "--stop", "--yes", "--no-safety")
    assert (refused.code, "snapshot repair" in refused.error["hint"]) == ("disk-unsupported", True)
    refused = forked.fails("snapshot", "delete", "guest", "S2")
    assert (refused.code, "snapshot repair" in refused.error["hint"]) == ("snapshot-needed", True)
    planned = forked.json("snapshot", "repair", "guest", "--dry-run")["snapshot_repair"]
    # S3 names the right image, and below it a chain that lacks one: a later libvirt would believe that.
    assert [step["snapshot"] for step in planned["steps"]] == ["S2", "S3"]
    assert _images(vm, "S2") != right["S2"]
    mended = forked.json("snapshot", "repair", "guest")["snapshot_repair"]
    assert [step["snapshot"] for step in mended["steps"]] == ["S2", "S3"]
    assert vm.domain.snapshotCurrent().getName() == "S3"
    assert {name: _images(vm, name) for name in ("S2", "S3")} == right
    assert all(each["health"] == "sound" for each in health(forked).values())
    assert forked.json("snapshot", "repair", "guest")["snapshot_repair"]["steps"] == []
    _revert(forked, "S2")
    taken["S2"].truth.assert_vm(vm)


def test_snapshot_before_a_gap_in_the_records_is_merged_right_or_refused_with_the_way_out(
    host: Host, forked: Forked
) -> None:
    """libvirt 9.0 merges it; 11.3 refuses, because the images of its records do not follow each other."""
    vm, taken = _with_snapshots(host, forked, "S1", "S2", "S3")
    now = {target: vm.read_image(target) for target in ("vda", "vdb")}
    forked.json("snapshot", "delete", "guest", "S2", "--metadata")
    result = forked.run("--json", "snapshot", "delete", "guest", "S1")
    if result.returncode == 0:
        assert names(vm) == ["S3"]
    else:
        error = json.loads(result.stderr)["error"]
        assert (error["code"], result.returncode) == ("snapshot-needed", 19), error
        assert "--metadata" in error["hint"]
        assert names(vm) == ["S1", "S3"]
        forked.json("snapshot", "delete", "guest", "S1", "--metadata")
    assert {target: vm.read_image(target) for target in now} == now
    assert {name: told["health"] for name, told in health(forked).items()} == {"S3": "sound"}
    _revert(forked, "S3")
    taken["S3"].truth.assert_vm(vm)


def test_snapshot_whose_overlay_was_merged_by_others_is_refused_by_name(host: Host, forked: Forked) -> None:
    """Nothing is left that libvirt could merge: each version has words of its own for that."""
    vm, _taken = _with_snapshots(host, forked, "S1", "S2")
    for target in ("vda", "vdb"):
        base = host.dir / "disks" / f"guest-{target}.qcow2"
        commit = ["virsh", "blockcommit", "guest", target, "--base", str(base)]
        host.run([*commit, "--active", "--pivot", "--wait"], check=True)
    held = [vm.read_image(target) for target in ("vda", "vdb")]
    for name in ("S2", "S1"):
        refused = forked.fails("snapshot", "delete", "guest", name)
        assert refused.code == "snapshot-needed", refused.error
        assert f"snapshot delete guest {name} --metadata" in refused.error["hint"]
    assert names(vm) == ["S1", "S2"]
    for name in ("S2", "S1"):
        forked.json("snapshot", "delete", "guest", name, "--metadata")
    assert (names(vm), [vm.read_image(target) for target in ("vda", "vdb")]) == ([], held)
