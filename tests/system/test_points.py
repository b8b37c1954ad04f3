"""Points of running VMs: what they hold, byte for byte, and what the command says of them."""

from __future__ import annotations

import re
import sqlite3
import subprocess
from contextlib import closing
from datetime import datetime

import pytest

from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, random_bytes, sha256
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth, assert_left_alone, checkpoints

pytestmark = pytest.mark.system


def _vm(host: Host, *disks: Disk, name: str = "guest") -> Vm:
    """A VM that keeps still: its processors never run, so state changes only when the test changes it."""
    vm = host.define(name, disks=disks or (Disk("vda", 16 * MiB),))
    vm.start(paused=True)
    return vm


def test_every_generation_of_two_disks_comes_back_as_it_was(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host, Disk("vda", 32 * MiB), Disk("vdb", 4 * MiB + 1536))  # vdb ends with a short block
    vm.write_random("vda", start=1 * MiB + 512, length=6 * MiB, seed=1)
    vm.write_random("vdb", start=4 * MiB - 512, length=2048, seed=2)
    points, truths = [vmkeep.backup("guest")], [Truth.of(vm)]
    vm.write_random("vda", start=2 * MiB, length=64 * KiB, seed=3)
    vm.write_random("vda", start=20 * MiB + 4 * KiB, length=4 * KiB, seed=4)
    vm.change_nvram()
    points, truths = [*points, vmkeep.backup("guest")], [*truths, Truth.of(vm)]
    vm.write_random("vda", start=2 * MiB, length=4 * KiB, seed=5)
    vm.write_random("vdb", start=4 * MiB + 512, length=512, seed=6)
    points, truths = [*points, vmkeep.backup("guest")], [*truths, Truth.of(vm)]

    assert [point["kind"] for point in points] == ["full", "incremental", "incremental"]
    assert [point["parent"] for point in points] == [None, points[0]["id"], points[1]["id"]]
    read = [[disk["bytes_read"] for disk in point["disks"]] for point in points]
    assert read == [[6 * MiB + 64 * KiB, 64 * KiB + 1536], [128 * KiB, 0], [64 * KiB, 1536]]  # blocks with data
    for truth, output in zip(truths, vmkeep.restore_all(points, host.dir / "work"), strict=True):
        truth.assert_files(output)


def test_ranges_zeroed_or_discarded_between_points_come_back_as_zero(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host)
    vm.write_random("vda", start=0, length=12 * MiB, seed=1)
    first, before = vmkeep.backup("guest"), Truth.of(vm)
    for part in (0, 4 * KiB):  # whole blocks, and 4 KiB inside of one
        length = 4 * KiB if part else 128 * KiB
        vm.write_zeroes("vda", start=(1 if not part else 2) * MiB + part, length=length)
        vm.write_zeroes("vda", start=(4 if not part else 5) * MiB + part, length=length, unmap=True)
        vm.discard("vda", start=(7 if not part else 8) * MiB + part, length=length)
    second, after = vmkeep.backup("guest"), Truth.of(vm)

    assert before.images["vda"][7 * MiB : 7 * MiB + 128 * KiB] != bytes(128 * KiB)
    assert after.images["vda"][7 * MiB : 7 * MiB + 128 * KiB] == bytes(128 * KiB)
    assert second["kind"] == "incremental"
    assert second["disks"][0]["bytes_stored"] < 1 * MiB
    restored = vmkeep.restore_all([first, second], host.dir / "work")
    before.assert_files(restored[0])
    after.assert_files(restored[1])


def test_vm_without_tpm_and_uefi_is_kept_as_well(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("plain", firmware="bios", tpm=False, disks=[Disk("vda", 8 * MiB)])
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=1 * MiB, seed=1)
    point = vmkeep.backup("plain")

    absent = {"present": False, "sha256": None, "bytes": None}
    assert point["state"] == {"tpm": absent, "nvram": absent}
    truth = Truth.of(vm, uefi=False, tpm=False)
    truth.assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
    vm.delete()
    vmkeep.json("restore", point["id"], "--as", "plain")
    truth.assert_vm(host.vm("plain"))


def test_disks_of_every_kind_that_has_bitmaps_are_kept(host: Host, vmkeep: Vmkeep) -> None:
    backing = host.dir / "disks" / "golden.raw"
    backing.write_bytes(random_bytes(9, 3 * MiB) + bytes(1 * MiB))
    overlay = host.dir / "disks" / "overlay.qcow2"
    chain = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(backing), "-F", "raw", str(overlay)]
    subprocess.run(chain, check=True)
    disks = [
        Disk("vda", 4 * MiB, create_options=("cluster_size=4k",)),
        Disk("vdb", path=overlay),
        Disk("sda", 4 * MiB, bus="sata", create_options=("cluster_size=2M",), error_policy="report"),
        Disk("sdb", 1 * MiB, bus="scsi", create_options=("extended_l2=on", "cluster_size=128k")),
    ]
    vm = host.define("guest", disks=disks, tpm=False, device_xml=["<controller type='scsi' model='virtio-scsi'/>"])
    vm.start(paused=True)
    points, truths = [], []
    for seed in (1, 2):
        for disk in vm.disks():
            vm.write_random(disk.target, start=256 * KiB + 512 * seed, length=100 * KiB, seed=seed)
            vm.discard(disk.target, start=512 * KiB * (seed - 1), length=128 * KiB)
        points.append(vmkeep.backup("guest"))
        truths.append(Truth.of(vm, tpm=False))

    assert [{disk["mode"] for disk in point["disks"]} for point in points] == [{"full"}, {"incremental"}]
    for truth, output in zip(truths, vmkeep.restore_all(points, host.dir / "work"), strict=True):
        truth.assert_files(output)
    vm.delete()
    vmkeep.json("restore", points[1]["id"], "--as", "guest")
    truths[1].assert_vm(host.vm("guest"))
    assert "golden" not in host.vm("guest").xml()


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("name", ["-two words-", "Größe-名前-🙂 quo\"te'd & <tag>", "semi;colon: $(id)`x`%s"])
def test_vm_names_may_hold_anything(host: Host, vmkeep: Vmkeep, name: str) -> None:
    vm = _vm(host, Disk("vda", 4 * MiB), name=name)
    vm.write_random("vda", start=0, length=64 * KiB, seed=1)
    truth, uuid = Truth.of(vm), vm.uuid
    point = vmkeep.backup(name)
    vm.delete()
    vmkeep.json("restore", f"--as={name}", "--", f"{name}@latest")

    assert point["vm"] == name
    assert [listed["vm"] for listed in vmkeep.json("points", "--", name)["points"]] == [name]
    restored = host.vm(name)
    assert restored.uuid == uuid
    truth.assert_vm(restored)


def test_json_has_the_documented_shape(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host, Disk("vda", 4 * MiB))
    vm.write("vda", start=1 * MiB, length=64 * KiB)
    document = vmkeep.json("backup", "guest", "--label", "why=before the update", "--label", "by=me=you")
    point = document["point"]

    assert list(document) == ["point"]
    assert {"id", "vm", "kind", "parent", "created", "pause_ms", "disks", "state"} <= set(point)
    assert re.fullmatch("[0-9a-f]{32}", point["id"])
    assert (point["vm"], point["kind"], point["parent"]) == ("guest", "full", None)
    assert datetime.fromisoformat(point["created"]).utcoffset() is not None
    (disk,) = point["disks"]
    assert {"target", "mode", "reason", "bytes_read", "bytes_stored"} <= set(disk)
    assert (disk["target"], disk["mode"], disk["bytes_read"]) == ("vda", "full", 64 * KiB)
    tpm, nvram = vm.tpm_state(), vm.nvram()
    assert point["state"] == {
        "tpm": {"present": True, "sha256": sha256(tpm), "bytes": len(tpm)},
        "nvram": {"present": True, "sha256": sha256(nvram), "bytes": len(nvram)},
    }
    assert point["labels"] == {"why": "before the update", "by": "me=you"}
    second = vmkeep.json("backup", "guest", "--full")["point"]
    assert (second["kind"], second["parent"], second["disks"][0]["reason"]) == ("full", point["id"], "forced")
    assert min(point.pop("seconds"), second.pop("seconds")) > 0  # of the command, not of the point
    assert vmkeep.json("points", "guest")["points"] == [point, second]


def test_running_vm_runs_afterwards_and_its_pause_is_told(booting_host: Host) -> None:
    host, vmkeep = booting_host, Vmkeep(booting_host)
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB)])
    vm.start()
    vm.settle()
    truth = Truth.of(vm)
    point = vmkeep.backup("guest")
    told = vmkeep.run("backup", "guest")

    assert vm.state() is VmState.RUNNING
    assert 0 < point["pause_ms"] < 5000
    assert told.returncode == 0
    assert re.search(r"paused for \d+ ms", told.stdout)
    truth.assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
    assert_left_alone(vm, checkpoints_before=checkpoints(vm))


def test_paused_vm_stays_paused(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host, Disk("vda", 4 * MiB))
    point = vmkeep.backup("guest")

    assert point["pause_ms"] == 0
    assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[point["checkpoint"]])


def test_what_is_left_out_is_named(host: Host, vmkeep: Vmkeep) -> None:
    image = host.dir / "work" / "medium.iso"
    image.write_bytes(b"\x11" * MiB)
    cdrom = Disk("sda", bus="sata", device="cdrom", format="raw", readonly=True, path=image)
    empty = Disk("sdb", bus="sata", device="cdrom", format="raw", readonly=True, media=False)
    vm = _vm(host, Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB, format="raw"), cdrom, empty)
    vm.write_random("vda", start=0, length=64 * KiB, seed=1)
    point = vmkeep.backup("guest", "--exclude", "vdb")
    unknown = vmkeep.fails("backup", "guest", "--exclude", "vdb", "--exclude", "vdz")
    truth = Truth.of(vm, ["vda"])

    assert unknown.code == "invalid-request"
    assert "vdz" in unknown.error["message"]
    assert [disk["target"] for disk in point["disks"]] == ["vda"]
    assert {disk["target"]: disk["reason"] for disk in point["excluded"]} == {
        "vdb": "requested",
        "sda": "removable-media",
        "sdb": "no-medium",
    }
    truth.assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
    vm.delete()
    restored = vmkeep.json("restore", point["id"], "--as", "guest")["restored"]
    assert any("vdb" in warning for warning in restored["warnings"])
    assert "vdb" not in [disk.target for disk in host.vm("guest").disks()]
    truth.assert_vm(host.vm("guest"))


def test_a_state_file_gets_a_new_generation_when_it_changed_and_only_then(host: Host, vmkeep: Vmkeep) -> None:
    vm = _vm(host, Disk("vda", 4 * MiB))

    def generations() -> dict[str, list[int]]:
        with closing(sqlite3.connect(host.dir / "home" / "catalog.sqlite")) as catalog, catalog:
            rows = catalog.execute("SELECT kind, generation FROM state_versions ORDER BY generation").fetchall()
        catalog.close()
        return {kind: [number for found, number in rows if found == kind] for kind in ("nvram", "tpm")}

    nvram = vm.nvram()
    first = vmkeep.backup("guest")
    vmkeep.backup("guest")
    assert generations() == {"nvram": [1], "tpm": [1]}
    vm.change_nvram()
    changed = vmkeep.backup("guest")
    assert generations() == {"nvram": [1, 2], "tpm": [1]}
    vm.destroy()
    vm.nvram_path.write_bytes(nvram)
    vm.change_tpm()
    vm.start(paused=True)
    last = vmkeep.backup("guest")

    assert generations() == {"nvram": [1, 2], "tpm": [1, 2]}  # what somebody put back stays the older one
    assert any("UEFI variables are version 1, and 2 is the newest" in warning for warning in last["warnings"])
    assert last["state"]["nvram"] == first["state"]["nvram"] != changed["state"]["nvram"]
    assert last["kind"] == "incremental"
    Truth.of(vm).assert_files(vmkeep.restore(last, host.dir / "work" / "out"))
