"""`vmkeep checkpoint health` and `vmkeep checkpoint repair` on real hosts: what is told, what is mended, what is left.

After each repair the next point is taken, and every point is compared byte for byte.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from typing import Any

import pytest

from tests.rig import Disk, Host, KiB, MiB, Vm, VmState
from tests.rig.cli import Vmkeep, finished
from tests.system.held import held_in_its_copy
from tests.system.history import INCREMENTAL, Forked, modes
from tests.system.offline import bitmaps, opened, qemu_img
from tests.system.truth import Truth, checkpoints, has_backup_job

pytestmark = pytest.mark.system


@pytest.fixture
def vmkeep(forked: Forked) -> Forked:
    return forked


def small_vm(host: Host) -> Vm:
    """A paused VM, so that nothing of it changes by itself."""
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 2 * MiB)], tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=2 * MiB, seed=1)
    vm.write_random("vdb", start=0, length=1 * MiB, seed=2)
    return vm


def health(vmkeep: Vmkeep, vm: str = "guest") -> dict[str, dict[str, Any]]:
    """Return the health of a VM's checkpoints by name, when the exit status is right."""
    result = vmkeep.run("--json", "checkpoint", "health", vm)
    assert result.stdout, result.stderr
    document = json.loads(result.stdout)["checkpoint_health"]
    judged = {checkpoint["checkpoint"]: checkpoint for checkpoint in document["checkpoints"]}
    trouble = [each for each in judged.values() if each["health"] not in ("sound", "foreign")]
    assert document["ok"] is (trouble == [])
    assert result.returncode == (37 if trouble else 0), result.stderr
    return judged


def by_disk(checkpoint: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {disk["target"]: (disk["health"], disk["bitmap"]) for disk in checkpoint["disks"]}


def repair(vmkeep: Vmkeep, *options: str, complete: bool = True) -> dict[str, Any]:
    """Repair and return what the repair says; none of its steps may fail."""
    result = vmkeep.run("--json", "checkpoint", "repair", "guest", *options)
    assert result.stdout, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)["repair"]
    assert result.returncode == (0 if complete else 37), (result.stdout, result.stderr)
    assert document["complete"] is complete
    assert document["failed"] == []
    return document


def dirty(vm: Vm, seed: int) -> None:
    for target in ("vda", "vdb"):
        vm.write_random(target, start=64 * KiB, length=64 * KiB, seed=seed)


def kill_qemu(vm: Vm) -> None:
    pid = vm.host.path(f"/run/libvirt/qemu/{vm.name}.pid").read_text().strip()
    vm.host.run(["kill", "-KILL", pid], check=True)
    deadline = time.monotonic() + 60
    while vm.state() is not VmState.OFF:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def forget(vm: Vm, name: str) -> None:
    """Delete libvirt's record of a checkpoint and nothing else."""
    vm.domain.checkpointLookupByName(name).delete(2)


def prefix_of(point: dict[str, Any]) -> str:
    return str(point["checkpoint"]).removesuffix(str(point["id"]))


SOUND = ("sound", "sound")
BOTH = ["vda", "vdb"]


def test_sound_base_and_foreign_checkpoint_are_told_and_nothing_is_changed(host: Host, vmkeep: Forked) -> None:
    vm = small_vm(host)
    assert health(vmkeep) == {}
    vm.domain.checkpointCreateXML("<domaincheckpoint><name>theirs</name></domaincheckpoint>")
    point = vmkeep.backup("guest")
    for state in (VmState.PAUSED, VmState.OFF):
        if state is VmState.OFF:
            vm.destroy()
        before = {target: bitmaps(vm.disk_path(target)) for target in BOTH}
        told = health(vmkeep)
        assert list(told) == ["theirs", point["checkpoint"]]
        assert by_disk(told[point["checkpoint"]]) == {"vda": SOUND, "vdb": SOUND}
        assert (told[point["checkpoint"]]["standing"], told[point["checkpoint"]]["base_of"]) == ("base", BOTH)
        assert told[point["checkpoint"]]["point"] == point["id"]
        assert by_disk(told["theirs"]) == {"vda": ("foreign", "sound"), "vdb": ("foreign", "sound")}
        assert repair(vmkeep)["left"] == []
        assert {target: bitmaps(vm.disk_path(target)) for target in BOTH} == before
        assert checkpoints(vm) == sorted(["theirs", point["checkpoint"]])
    table = vmkeep.run("checkpoint", "health", "guest").stdout
    assert "base of its next point" in table
    assert "foreign: sound" in table


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.OFF])
def test_lost_checkpoints_are_listed_again_with_parent_and_time_of_their_points(
    host: Host, vmkeep: Forked, state: VmState
) -> None:
    vm = small_vm(host)
    first = vmkeep.backup("guest")
    dirty(vm, seed=3)
    second = Vmkeep.backup(vmkeep, "guest", "--exclude", "vdb")  # so that the first stays the base of vdb
    vmkeep.remember(vm, second, Truth.of(vm, ["vda"], tpm=False))
    made = {name: vm.domain.checkpointLookupByName(name).getXMLDesc() for name in checkpoints(vm)}
    assert len(made) == 2
    vm.write_random("vdb", start=128 * KiB, length=64 * KiB, seed=4)
    if state is VmState.OFF:
        vm.destroy()
    for name in (second["checkpoint"], first["checkpoint"]):
        forget(vm, name)
    assert any(each["health"] in ("orphan", "unknown") for each in health(vmkeep).values())
    repair(vmkeep)
    assert checkpoints(vm) == sorted(made)
    parent = vm.domain.checkpointLookupByName(second["checkpoint"]).getParent()
    assert parent.getName() == first["checkpoint"]
    for name, text in made.items():
        wanted = text.split("<creationTime>")[1].split("<")[0]
        found = vm.domain.checkpointLookupByName(name).getXMLDesc().split("<creationTime>")[1].split("<")[0]
        assert abs(int(found) - int(wanted)) <= 2
    told = health(vmkeep)
    assert {name: each["base_of"] for name, each in told.items()} == {
        first["checkpoint"]: ["vdb"],
        second["checkpoint"]: ["vda"],
    }
    point = vmkeep.backup("guest")
    assert set(modes(point).values()) == {INCREMENTAL}
    assert checkpoints(vm) == [point["checkpoint"]]
    vmkeep.assert_all_kept()


def test_bitmap_removed_from_one_image_is_taken_out_of_its_checkpoint_and_the_other_disk_stays_incremental(
    host: Host, vmkeep: Forked
) -> None:
    vm = small_vm(host)
    name = vmkeep.backup("guest")["checkpoint"]
    dirty(vm, seed=3)
    vm.destroy()
    qemu_img("bitmap", "--remove", vm.disk_path("vdb"), name)
    for state in (VmState.OFF, VmState.PAUSED):
        if state is VmState.PAUSED:
            vm.start(paused=True)
        told = health(vmkeep)[name]
        assert by_disk(told) == {"vda": SOUND, "vdb": ("broken", "missing")}
        assert (told["health"], told["base_of"]) == ("broken", ["vda"])
    before = {target: bitmaps(vm.disk_path(target)) for target in BOTH}
    planned = vmkeep.json("checkpoint", "repair", "guest", "--dry-run")["repair"]
    assert planned["steps"] == [{"checkpoint": name, "does": f"take vdb out of the checkpoint {name}"}]
    assert {target: bitmaps(vm.disk_path(target)) for target in BOTH} == before
    assert health(vmkeep)[name] == told
    assert len(repair(vmkeep)["done"]) == 1
    assert repair(vmkeep)["done"] == []
    assert by_disk(health(vmkeep)[name]) == {"vda": SOUND}
    point = vmkeep.backup("guest")
    assert modes(point) == {"vda": INCREMENTAL, "vdb": ("full", "bitmap-missing")}
    assert point["disks"][0]["bytes_read"] == 64 * KiB
    vmkeep.assert_all_kept()


def test_bitmaps_that_a_killed_qemu_left_in_use_are_removed_with_their_checkpoint(host: Host, vmkeep: Forked) -> None:
    vm = small_vm(host)
    vm.domain.checkpointCreateXML("<domaincheckpoint><name>theirs</name></domaincheckpoint>")
    name = vmkeep.backup("guest")["checkpoint"]
    vm.destroy()
    vm.start(paused=True)  # now the bitmaps are in the images, and in use
    dirty(vm, seed=3)
    kill_qemu(vm)
    off = health(vmkeep)
    vm.start(paused=True)
    told = health(vmkeep)
    assert told == off
    broken = ("broken", "inconsistent")
    assert by_disk(told[name]) == {"vda": broken, "vdb": broken}
    assert told[name]["standing"] == "replaced"
    assert by_disk(told["theirs"]) == {"vda": ("foreign", "inconsistent"), "vdb": ("foreign", "inconsistent")}
    repair(vmkeep)
    assert list(health(vmkeep)) == ["theirs"]
    assert checkpoints(vm) == ["theirs"]
    assert {target: bitmaps(vm.disk_path(target)) for target in BOTH} == {"vda": ["theirs"], "vdb": ["theirs"]}
    assert repair(vmkeep, "--foreign", "theirs")["done"] != []
    assert (checkpoints(vm), health(vmkeep)) == ([], {})
    assert vmkeep.fails("checkpoint", "repair", "guest", "--foreign", "theirs").code == "invalid-request"
    assert set(modes(vmkeep.backup("guest")).values()) == {("full", "checkpoint-lost")}
    dirty_and_assert_healed(vm, vmkeep)


def dirty_and_assert_healed(vm: Vm, vmkeep: Forked) -> None:
    """The next point is incremental everywhere, and all are right."""
    if vm.state() is VmState.OFF:
        vm.start(paused=True)
    dirty(vm, seed=9)
    point = vmkeep.backup("guest")
    assert set(modes(point).values()) == {INCREMENTAL}
    assert [disk["bytes_read"] for disk in point["disks"]] == [64 * KiB, 64 * KiB]
    assert [name for name in checkpoints(vm) if name.startswith("vmkeep-")] == [point["checkpoint"]]
    vmkeep.assert_all_kept()


def test_disabled_bitmap_and_gap_below_an_overlay_are_told_apart_and_repaired(host: Host, vmkeep: Forked) -> None:
    vm = small_vm(host)
    name = vmkeep.backup("guest")["checkpoint"]
    vm.destroy()
    qemu_img("bitmap", "--disable", vm.disk_path("vda"), name)
    overlay, below = host.dir / "disks" / "overlay.qcow2", vm.disk_path("vdb")
    qemu_img("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", overlay)
    original = vm.domain.XMLDesc()
    host.connection.defineXML(original.replace(str(below), str(overlay)))
    vm.start(paused=True)
    dirty(vm, seed=3)
    running = health(vmkeep)[name]
    vm.destroy()
    told = health(vmkeep)[name]
    assert by_disk(told) == by_disk(running) == {"vda": ("broken", "not-recording"), "vdb": ("broken", "gap")}
    repair(vmkeep)
    assert health(vmkeep) == {}
    assert (bitmaps(vm.disk_path("vda")), bitmaps(below)) == ([], [])
    point = vmkeep.backup("guest")
    assert {mode for mode, _ in modes(point).values()} == {"full"}
    vm.start(paused=True)
    dirty(vm, seed=4)
    vm.destroy()
    qemu_img("commit", "-q", overlay)  # the gap is closed, and what was recorded above it is not below
    host.connection.defineXML(original)
    point = vmkeep.backup("guest")
    assert modes(point)["vda"] == INCREMENTAL
    assert modes(point)["vdb"][0] == "full"
    vmkeep.assert_all_kept()


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.OFF])
def test_orphans_go_from_all_images_of_the_vm_and_stay_where_another_vm_uses_the_image(
    host: Host, vmkeep: Forked, state: VmState
) -> None:
    vm = small_vm(host)
    name = vmkeep.backup("guest")["checkpoint"]
    prefix = name.removesuffix(name[-32:])
    top_only, below_only, shared = (prefix + uuid.uuid4().hex for _ in range(3))
    vm.destroy()
    backing = {target: vm.disk_path(target) for target in BOTH}
    xml = vm.domain.XMLDesc()
    for target, path in backing.items():
        overlay = host.dir / "disks" / f"over-{target}.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", overlay)
        xml = xml.replace(str(path), str(overlay))
    qemu_img("bitmap", "--add", host.dir / "disks" / "over-vda.qcow2", top_only)
    qemu_img("bitmap", "--add", host.dir / "disks" / "over-vda.qcow2", "theirs")
    qemu_img("bitmap", "--add", backing["vda"], below_only)
    qemu_img("bitmap", "--add", backing["vdb"], shared)
    host.connection.defineXML(xml)
    clone = host.dir / "disks" / "clone.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", backing["vdb"], "-F", "qcow2", clone)
    host.define("second", disks=[Disk("vda", 2 * MiB, path=clone)], tpm=False)
    if state is VmState.PAUSED:
        vm.start(paused=True)
    told = health(vmkeep)
    assert {told[each]["health"] for each in (top_only, below_only)} == {"orphan"}
    assert told[shared]["health"] == "foreign"
    assert "second" in told[shared]["disks"][0]["why"]
    done = repair(vmkeep)
    assert any("second" in sentence for sentence in done["left"])
    left = health(vmkeep)
    assert {each: left[each]["health"] for each in left} == dict.fromkeys(("theirs", shared, name), "foreign")
    assert "theirs" in vmkeep.run("checkpoint", "health", "guest").stdout
    assert vmkeep.run("checkpoint", "health", "second").returncode == 0  # it is foreign there too
    vm.destroy()
    assert bitmaps(backing["vda"]) == []
    assert sorted(bitmaps(backing["vdb"])) == sorted([name, shared])  # that of the point was below the clone as well
    assert bitmaps(host.dir / "disks" / "over-vda.qcow2") == ["theirs"]
    vm.start(paused=True)
    vmkeep.backup("guest")
    vmkeep.assert_all_kept()


def test_image_that_another_program_has_open_is_unknown_and_left_until_it_is_closed(host: Host, vmkeep: Forked) -> None:
    vm = small_vm(host)
    name = vmkeep.backup("guest")["checkpoint"]
    dirty(vm, seed=3)
    vm.destroy()
    with opened(vm.disk_path("vda")):
        told = health(vmkeep)[name]
        assert by_disk(told) == {"vda": ("unknown", "unknown"), "vdb": SOUND}
        (why,) = [disk["why"] for disk in told["disks"] if disk["target"] == "vda"]
        assert "qemu-nbd" in why or "another process" in why
        assert "nothing is known" in repair(vmkeep, complete=False)["left"][0]
        assert checkpoints(vm) == [name]
    assert by_disk(health(vmkeep)[name]) == {"vda": SOUND, "vdb": SOUND}
    point = vmkeep.backup("guest")
    assert set(modes(point).values()) == {INCREMENTAL}
    vmkeep.assert_all_kept()


def test_bitmap_that_went_with_its_overlay_is_not_waited_for(host: Host, vmkeep: Forked) -> None:
    """The overlay of a raw disk was committed after a point, and there is another: no next point starts from that."""
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 2 * MiB, format="raw")], tpm=False)
    vm.start(paused=True)
    host.run(["virsh", "snapshot-create-as", "guest", "before", "--disk-only"], check=True)
    vmkeep.backup("guest")
    host.run(["virsh", "blockcommit", "guest", "vdb", "--active", "--pivot", "--wait"], check=True)
    point = vmkeep.backup("guest")
    assert {target: mode for target, (mode, _) in modes(point).items()} == {"vda": "incremental", "vdb": "scan"}
    host.run(["virsh", "snapshot-create-as", "guest", "after", "--disk-only"], check=True)
    assert set(health(vmkeep)) == {point["checkpoint"]}
    assert repair(vmkeep)["done"] == []


def test_vm_with_checkpoints_made_by_virsh_alone(host: Host, vmkeep: Forked) -> None:
    vm = small_vm(host)
    for number in range(2):
        host.run(["virsh", "checkpoint-create-as", "guest", f"theirs-{number}"], check=True)
    told = health(vmkeep)
    assert {name: each["health"] for name, each in told.items()} == {"theirs-0": "foreign", "theirs-1": "foreign"}
    assert {disk["bitmap"] for each in told.values() for disk in each["disks"]} == {"sound"}
    vm.destroy()
    qemu_img("bitmap", "--remove", vm.disk_path("vda"), "theirs-0")
    assert by_disk(health(vmkeep)["theirs-0"])["vda"] == ("foreign", "missing")
    assert repair(vmkeep)["done"] == []
    assert checkpoints(vm) == ["theirs-0", "theirs-1"]
    assert repair(vmkeep, "--foreign", "theirs-0")["done"] != []
    assert by_disk(health(vmkeep)["theirs-0"]) == {"vdb": ("foreign", "sound")}
    left = repair(vmkeep, "--foreign", "theirs-1")
    assert (left["done"], len(left["left"])) == ([], 1)
    assert checkpoints(vm) == ["theirs-0", "theirs-1"]


def test_transient_vm_that_was_created_again_has_its_checkpoint_listed_again(host: Host, vmkeep: Forked) -> None:
    vm = small_vm(host)
    vm.destroy()
    definition = vm.domain.XMLDesc(2)
    host.run(["virsh", "undefine", "guest", "--keep-nvram"], check=True)
    host.connection.createXML(definition, 1)
    name = vmkeep.backup("guest")["checkpoint"]
    dirty(vm, seed=3)
    vm.destroy()
    host.connection.createXML(definition, 1)
    assert checkpoints(vm) == []
    assert by_disk(health(vmkeep)[name]) == {"vda": ("orphan", "unknown"), "vdb": ("orphan", "unknown")}
    repair(vmkeep)
    assert by_disk(health(vmkeep)[name]) == {"vda": SOUND, "vdb": SOUND}
    point = vmkeep.backup("guest")
    assert set(modes(point).values()) == {INCREMENTAL}
    assert [disk["bytes_read"] for disk in point["disks"]] == [64 * KiB, 64 * KiB]
    vmkeep.assert_all_kept()
    vm.destroy()  # and it is gone, as libvirt forgets a transient VM


def test_left_over_of_a_point_that_is_gone_is_removed_and_one_of_another_installation_is_not(
    host: Host, vmkeep: Forked
) -> None:
    vm = small_vm(host)
    first = vmkeep.backup("guest")
    other = Vmkeep(host, home=host.dir / "work" / "other-home")
    shutil.copytree(vmkeep.home / "keys", other.home / "keys")
    other.json("init", "--adopt", "--repository", vmkeep.home / "repository")
    dirty(vm, seed=3)
    second = other.backup("guest")  # this installation's catalogue does not know it
    told = health(vmkeep)
    assert {name: each["standing"] for name, each in told.items()} == {second["checkpoint"]: "base"}
    assert repair(vmkeep)["done"] == []
    left = prefix_of(first) + uuid.uuid4().hex
    vm.domain.checkpointCreateXML(f"<domaincheckpoint><name>{left}</name></domaincheckpoint>")
    told = health(vmkeep)
    assert (told[left]["standing"], told[left]["health"]) == ("left-over", "sound")
    repository = vmkeep.home / "repository"
    repository.rename(repository.with_suffix(".aside"))
    assert health(vmkeep)[left]["standing"] == "unknown"  # nobody can say whether it has a point
    assert len(repair(vmkeep, complete=False)["left"]) > 0
    assert checkpoints(vm) == sorted([second["checkpoint"], left])
    repository.with_suffix(".aside").rename(repository)
    repair(vmkeep)
    assert checkpoints(vm) == [second["checkpoint"]]
    assert set(modes(other.backup("guest")).values()) == {INCREMENTAL}


def test_repair_is_refused_while_a_point_or_a_job_of_somebody_else_is_under_way(host: Host, vmkeep: Forked) -> None:
    vm = small_vm(host)
    vmkeep.backup("guest")
    vm.write_random("vda", start=0, length=4 * MiB, seed=3)
    with held_in_its_copy(vm, vmkeep) as process:
        time.sleep(2.1)  # for so long a lock that was just taken counts as held
        assert vmkeep.fails("checkpoint", "repair", "guest").code == "vm-busy"
    assert finished(process)[0] == 0
    with vm.own_backup_job(["vda"]):
        assert vmkeep.fails("checkpoint", "repair", "guest").code == "vm-busy"
        assert has_backup_job(vm)
