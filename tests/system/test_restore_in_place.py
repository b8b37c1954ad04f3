"""A point written over its own VM: exactly the point afterwards, or exactly what was there before."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import libvirt
import pytest

from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, assert_images_equal, random_bytes
from tests.rig.cli import Failure, Vmkeep, finished
from tests.system.held import held
from tests.system.offline import bitmaps, loop_device, qemu_img, write_offline, zero_offline
from tests.system.truth import Truth, checkpoints

pytestmark = pytest.mark.system

_SECRET = b"seals the guest's disks"


def _restore(vmkeep: Vmkeep, point: dict[str, Any], *options: str) -> dict[str, Any]:
    restored = vmkeep.json("restore", str(point["id"]), "--in-place", "--yes", *options)["restored"]
    assert isinstance(restored, dict)
    return restored


def _refused(vmkeep: Vmkeep, point: dict[str, Any], *options: str) -> Failure:
    return vmkeep.fails("restore", str(point["id"]), "--in-place", "--yes", *options)


def _points(vmkeep: Vmkeep) -> list[dict[str, Any]]:
    points = vmkeep.json("points")["points"]
    assert isinstance(points, list)
    return points


def _definition(vm: Vm) -> str:
    return vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)


def _checkpoint(vm: Vm, point: dict[str, Any]) -> str:
    return next(name for name in checkpoints(vm) if name.endswith(point["id"]))


def _assert_nothing_left(vm: Vm, vmkeep: Vmkeep) -> None:
    host = vm.host
    places = [host.dir / "disks", vm.tpm_directory.parent, vm.nvram_path.parent]
    left = [path for place in places for path in place.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert left == []
    for name in ("restores", "locks", "owners", "guards"):
        assert list((vmkeep.home / name).iterdir()) == [], name
    run = host.path("/run/vmkeep")
    assert not run.exists() or list(run.iterdir()) == []


def _started_once(host: Host, disks: list[Disk], **options: Any) -> Vm:
    """A VM that is off and has UEFI variables and a TPM, which its first start made."""
    vm = host.define("guest", disks=disks, **options)
    vm.start(paused=True)
    vm.destroy()
    return vm


def _change(vm: Vm, seed: int, targets: tuple[str, ...] = ("vda", "vdb")) -> None:
    for number, target in enumerate(targets):
        content = random_bytes(seed + number, 192 * KiB)
        write_offline(vm, target, content, start=seed * 128 * KiB + 4 * KiB)
    zero_offline(vm, targets[0], start=seed * 128 * KiB + 64 * KiB, length=32 * KiB)
    vm.change_nvram()
    vm.store_in_tpm(_SECRET, index=seed)


def test_vm_goes_back_and_forth_between_its_points(host: Host, vmkeep: Vmkeep) -> None:
    console = f"<graphics type='vnc' socket='{host.dir / 'jobs' / 'vnc'}' passwd='secret'/>"
    vm = _started_once(host, [Disk("vda", 8 * MiB), Disk("vdb", 4 * MiB + 512)], device_xml=[console])
    vm.start(paused=True)
    with vm.own_backup_job(["vda"], checkpoint="somebody-else"):
        pass
    vm.destroy()
    host.run(["virsh", "autostart", "guest"], check=True)
    points, truths = [], []
    for seed in (1, 5, 9):
        _change(vm, seed)
        points.append(vmkeep.backup("guest"))
        truths.append(Truth.of(vm))
    definition = _definition(vm)
    assert "passwd='secret'" in definition

    for number in (0, 2, 1):
        restored = _restore(vmkeep, points[number])
        truths[number].assert_vm(vm)
        assert restored["disks"] == ["vda", "vdb"]
        assert restored["states"] == ["nvram", "tpm"]
        assert restored["warnings"] == []
        assert restored["bytes_written"] < 2 * MiB
        assert _definition(vm) == definition
        assert "guest" in host.run(["virsh", "list", "--all", "--autostart"], check=True).stdout
        assert checkpoints(vm) == sorted([_checkpoint(vm, points[number]), "somebody-else"])
        for target in ("vda", "vdb"):
            ours = [name for name in bitmaps(vm.disk_path(target)) if name.startswith("vmkeep-")]
            assert ours == [_checkpoint(vm, points[number])]
        safety = next(point for point in _points(vmkeep) if point["id"] == restored["safety"])
        assert safety["labels"] == {"vmkeep.safety": points[number]["id"]}
        assert restored["way_back"] == f"vmkeep restore {safety['id']} --in-place"
        _assert_nothing_left(vm, vmkeep)
    operation = vmkeep.json("log", "--limit", "1")["operations"][-1]
    assert operation["kind"] == "restore.in_place"
    assert (operation["request"]["point"], operation["request"]["safety"]) == (points[1]["id"], safety["id"])

    vm.start(paused=True)
    vm.write_random("vda", start=6 * MiB, length=64 * KiB, seed=50)
    after = vmkeep.backup("guest")
    assert (after["parent"], after["kind"]) == (points[1]["id"], "incremental")
    assert {disk["target"]: disk["bytes_read"] for disk in after["disks"]} == {"vda": 64 * KiB, "vdb": 0}
    _assert_recorded(vm, "somebody-else", 8 * MiB, truths[1].images["vda"])
    truth = Truth.of(vm)
    vm.destroy()
    for point, held_then in [*zip(points, truths, strict=True), (after, truth)]:
        held_then.assert_files(vmkeep.restore(point, host.dir / "work" / point["id"]))
    assert vm.load_from_tpm(len(_SECRET), index=5) == _SECRET
    assert vmkeep.json("verify", "--all")["ok"] is True


def _assert_recorded(vm: Vm, foreign: str, size_bytes: int, content: bytes) -> None:
    """Fail unless another tool's bitmap, made while the disk was all zeroes, names everything that is not zero."""
    dirty = bytearray(size_bytes // (64 * KiB))
    for start, length in vm.dirty_ranges("vda", foreign):
        for block in range(start // (64 * KiB), -(-(start + length) // (64 * KiB))):
            dirty[block] = 1
    for block in range(len(dirty)):
        if any(content[block * 64 * KiB : (block + 1) * 64 * KiB]):
            assert dirty[block], f"block {block} was written and the other tool's bitmap does not know"


def test_guest_that_wrote_between_points_is_the_point_again(booting_host: Host) -> None:
    vmkeep = Vmkeep(booting_host)
    vm = booting_host.define("guest", disks=[Disk("vda", 8 * MiB)])
    vm.start()
    vm.settle()
    vm.write_random("vda", start=1 * MiB, length=1 * MiB, seed=1)
    first, truth = vmkeep.backup("guest"), Truth.of(vm)
    vm.write_zeroes("vda", start=1 * MiB, length=512 * KiB, unmap=True)
    vm.write_random("vda", start=4 * MiB, length=1 * MiB, seed=2)
    vm.change_tpm()
    vm.destroy()
    _restore(vmkeep, first)
    truth.assert_vm(vm)
    vm.start(paused=True)
    assert vm.read_image("vda") == truth.images["vda"]


def test_zeroes_that_were_put_back_are_told(host: Host, vmkeep: Vmkeep) -> None:
    vm = _started_once(host, [Disk("vda", 4 * MiB), Disk("vdb", 2 * MiB, format="raw")])
    zeroed, zeros = vmkeep.backup("guest"), Truth.of(vm)
    for target in ("vda", "vdb"):
        write_offline(vm, target, random_bytes(3, 512 * KiB), start=1 * MiB)
    written, data = vmkeep.backup("guest"), Truth.of(vm)
    told = _restore(vmkeep, zeroed, "--only", "disks")
    assert (told["bytes_written"], told["bytes_zeroed"]) == (0, 1 * MiB)
    zeros.assert_vm(vm)
    back = vmkeep.run("restore", written["id"], "--in-place", "--yes").stdout
    assert "1.0 MiB written" in back
    assert "made zero" not in back
    data.assert_vm(vm)
    again = vmkeep.run("restore", zeroed["id"], "--in-place", "--yes").stdout
    assert "1.0 MiB made zero" in again
    assert "0 B" not in again


def test_disks_of_every_kind_go_back(host: Host, vmkeep: Vmkeep) -> None:
    base = host.dir / "disks" / "base.qcow2"
    overlay = host.dir / "disks" / "over lay,1.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, str(4 * MiB))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 2M", str(base)], check=True, capture_output=True)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, overlay)
    grown, lost = host.dir / "disks" / "guest-vdc.qcow2", host.dir / "disks" / "guest-vdd.raw"
    with loop_device(host.dir / "work" / "loop.img", bytes(3 * MiB)) as device:
        devices = [
            (
                f"<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{device}'/>"
                "<target dev='sda' bus='scsi'/></disk>"
            ),
            "<controller type='scsi' model='virtio-scsi'/>",
        ]
        disks = [
            Disk("vda", path=overlay),
            Disk("vdb", 4 * MiB + 512, format="raw"),
            Disk("vdc", 2 * MiB),
            Disk("vdd", 2 * MiB, format="raw"),
        ]
        vm = _started_once(host, disks, device_xml=devices)
        device.write_bytes(random_bytes(70, 3 * MiB))
        _change(vm, 2, ("vda", "vdb", "vdc", "vdd"))
        point = vmkeep.backup("guest")
        targets = ("vda", "vdb", "vdc", "vdd")
        truth, on_device = Truth.of(vm, targets), device.read_bytes()
        below = base.read_bytes()
        _change(vm, 6, ("vda", "vdb", "vdc", "vdd"))
        with device.open("r+b") as stream:
            stream.seek(MiB)
            stream.write(random_bytes(71, 64 * KiB))
        qemu_img("bitmap", "--remove", grown, bitmaps(grown)[0])
        qemu_img("resize", "-q", grown, str(5 * MiB))
        owner = (64055, 64055)
        lost.unlink()
        os.chown(grown, *owner)
        definition = _definition(vm)
        restored = _restore(vmkeep, point)

        truth.assert_vm(vm)
        assert device.read_bytes() == on_device
        assert base.read_bytes() == below
        assert (grown.stat().st_uid, grown.stat().st_gid) == owner
        assert _definition(vm) == definition
        told = "\n".join(restored["warnings"])
        assert "vdc was of another size" in told
        assert "vdd was missing" in told
        safety = next(held for held in _points(vmkeep) if held["id"] == restored["safety"])
        assert [disk["target"] for disk in safety["disks"]] == ["vda", "vdb", "vdc", "sda"]
        _assert_nothing_left(vm, vmkeep)
        vm.start(paused=True)
        vm.destroy()
        again = vmkeep.backup("guest")
        assert {disk["target"]: disk["mode"] for disk in again["disks"]} == {
            "vda": "incremental",
            "vdb": "scan",
            "vdc": "incremental",
            "vdd": "scan",
            "sda": "scan",
        }
        # The way back, for all that the safety point holds.
        _restore(vmkeep, safety)
        assert vm.disk_path("vdc").exists()
        assert vm.domain.blockInfo("vdc")[0] == 5 * MiB
        assert device.read_bytes()[MiB : MiB + 64 * KiB] == random_bytes(71, 64 * KiB)

        small = host.dir / "work" / "small.img"
        small.write_bytes(bytes(2 * MiB))
        subprocess.run(["losetup", "-d", str(device)], check=True)
        subprocess.run(["losetup", str(device), str(small)], check=True)
        refused = _refused(vmkeep, point)
        assert (refused.code, refused.error["disk"], refused.error["path"]) == ("disk-unsupported", "sda", str(device))


def test_parts_go_back_alone_and_are_warned_of(host: Host, vmkeep: Vmkeep) -> None:
    vm = _started_once(host, [Disk("vda", 8 * MiB), Disk("vdb", 4 * MiB)])
    _change(vm, 1)
    first, old = vmkeep.backup("guest"), Truth.of(vm)
    _change(vm, 5)
    second, new = vmkeep.backup("guest"), Truth.of(vm)

    holds = dict.fromkeys(("vda", "vdb", "tpm", "nvram"), new)
    for point, options, parts, words in (
        (first, ["--only", "disks"], ("vda", "vdb"), ["The TPM stays", "variables stay"]),
        (second, ["--only", "vda"], ("vda",), ["vdb stays as now"]),
        (first, ["--only", "state"], ("tpm", "nvram"), ["The TPM goes back and the disks stay"]),
        (second, ["--tpm", "keep"], ("vda", "vdb", "nvram"), ["The TPM stays"]),
        (first, ["--only", "vdb", "--only", "state"], ("vdb", "tpm", "nvram"), ["vda stays as now"]),
        (second, ["--only", "state", "--tpm", "keep"], ("nvram",), ["the TPM stays"]),
    ):
        restored = _restore(vmkeep, point, *options)
        holds |= dict.fromkeys(parts, old if point is first else new)
        images = {target: holds[target].images[target] for target in ("vda", "vdb")}
        Truth(images, holds["tpm"].tpm, holds["nvram"].nvram).assert_vm(vm)
        assert {*restored["disks"], *restored["states"]} == set(parts)
        told = "\n".join(restored["warnings"])
        assert [word for word in words if word not in told] == [], (options, told)
    requests = [operation["request"] for operation in vmkeep.json("log")["operations"]]
    asked = [(list(request["only"]), request["tpm"]) for request in requests if "safety" in request]
    assert asked == [
        (["disks"], "same"),
        (["vda"], "same"),
        (["state"], "same"),
        ([], "keep"),
        (["vdb", "state"], "same"),
        (["state"], "keep"),
    ]

    # One disk is based on the point it went back to, the other on the safety point; both are incremental.
    restored = _restore(vmkeep, first, "--only", "vda")
    write_offline(vm, "vda", random_bytes(30, 64 * KiB), start=2 * MiB)
    write_offline(vm, "vdb", random_bytes(31, 64 * KiB), start=2 * MiB)
    after = vmkeep.backup("guest")
    assert after["parent"] == restored["safety"]
    assert {disk["target"]: (disk["mode"], disk["bytes_read"]) for disk in after["disks"]} == {
        "vda": ("incremental", 64 * KiB),
        "vdb": ("incremental", 64 * KiB),
    }
    Truth.of(vm).assert_files(vmkeep.restore(after, host.dir / "work" / "after"))


def test_lost_state_comes_back_alone(host: Host, vmkeep: Vmkeep) -> None:
    vm = _started_once(host, [Disk("vda", 4 * MiB)])
    _change(vm, 1, ("vda",))
    point, truth = vmkeep.backup("guest"), Truth.of(vm)
    subprocess.run(["rm", "-r", str(vm.tpm_directory)], check=True)
    vm.nvram_path.unlink()
    restored = _restore(vmkeep, point, "--only", "state")
    assert restored["states"] == ["nvram", "tpm"]
    truth.assert_vm(vm)
    assert vm.load_from_tpm(len(_SECRET), index=1) == _SECRET
    vm.start(paused=True)


def test_what_cannot_be_done_is_refused_before_anything_is_changed(host: Host, vmkeep: Vmkeep) -> None:
    vm = _started_once(host, [Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB)])
    _change(vm, 1)
    point = vmkeep.backup("guest")
    _change(vm, 5)
    truth, definition = Truth.of(vm), _definition(vm)

    unconfirmed = vmkeep.fails("restore", point["id"], "--in-place")
    assert (unconfirmed.code, "--yes" in unconfirmed.error["message"]) == ("invalid-request", True)
    unknown = _refused(vmkeep, point, "--only", "vdz")
    assert (unknown.code, unknown.error["disk"]) == ("invalid-request", "vdz")
    for paused in (False, True):
        vm.start(paused=paused)
        running = _refused(vmkeep, point)
        assert (running.code, running.status, running.error["vm"]) == ("vm-running", 16, "guest")
        # Nobody is asked for what cannot be done.
        assert vmkeep.fails("restore", point["id"], "--in-place").code == "vm-running"
        assert vm.state() is (VmState.PAUSED if paused else VmState.RUNNING)
        vm.destroy()
    vm.start(paused=True)
    host.run(["virsh", "managedsave", "--paused", "guest"], check=True)
    saved = _refused(vmkeep, point)
    assert (saved.code, "managedsave-remove" in saved.error["hint"]) == ("vm-running", True)
    host.run(["virsh", "managedsave-remove", "guest"], check=True)
    assert [held["id"] for held in _points(vmkeep)] == [point["id"]]

    without = definition[: definition.rindex("<disk ")] + definition[definition.rindex("</disk>") + len("</disk>") :]
    host.connection.defineXML(without)
    assert (_refused(vmkeep, point).code, _refused(vmkeep, point).error["disk"]) == ("invalid-request", "vdb")
    host.connection.defineXML(definition)
    assert [held["id"] for held in _points(vmkeep)] == [point["id"]]
    assert _definition(vm) == definition
    assert Truth.of(vm).images == truth.images
    vm.undefine()
    gone = _refused(vmkeep, point)
    assert (gone.code, "--as NAME" in gone.error["hint"]) == ("vm-not-found", True)


def test_disk_that_the_point_lacks_is_left_and_told(host: Host, vmkeep: Vmkeep) -> None:
    vm = _started_once(host, [Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB)])
    _change(vm, 1)
    point, truth = vmkeep.backup("guest", "--exclude", "vdb"), Truth.of(vm, ["vda"])
    _change(vm, 5)
    other = vm.read_image("vdb")
    restored = _restore(vmkeep, point)
    truth.assert_vm(vm)
    assert_images_equal(vm.read_image("vdb"), other, "vdb")
    assert any("vdb is not in the point (requested)" in warning for warning in restored["warnings"])


def test_point_with_a_damaged_block_leaves_the_vm_as_it_was(host: Host, vmkeep: Vmkeep) -> None:
    vm = _started_once(host, [Disk("vda", 8 * MiB), Disk("vdb", 8 * MiB, format="raw")])
    write_offline(vm, "vda", random_bytes(1, 3 * MiB), start=0)
    write_offline(vm, "vdb", random_bytes(2, 3 * MiB), start=0)
    point = vmkeep.backup("guest")
    pack = max((vmkeep.home / "repository" / "packs").glob("*/*"), key=lambda path: path.stat().st_size)
    for target in ("vda", "vdb"):
        write_offline(vm, target, random_bytes(40, 4 * MiB), start=0)
    vm.change_nvram()
    vm.change_tpm()
    truth, definition = Truth.of(vm), _definition(vm)
    # The blocks of vda come first: it is written over before the fault is met.
    with pack.open("r+b") as stream:
        stream.seek(pack.stat().st_size * 3 // 4)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    failure = _refused(vmkeep, point)

    assert failure.code == "object-damaged"
    assert "as it was" not in failure.error["message"]
    truth.assert_vm(vm)
    assert _definition(vm) == definition
    _assert_nothing_left(vm, vmkeep)
    safety = _points(vmkeep)[-1]
    assert checkpoints(vm) == [_checkpoint(vm, safety)]
    write_offline(vm, "vda", random_bytes(60, 64 * KiB), start=5 * MiB)
    after = vmkeep.backup("guest")
    assert after["parent"] == safety["id"]
    assert {disk["target"]: disk["bytes_read"] for disk in after["disks"]}["vda"] == 64 * KiB
    Truth.of(vm).assert_files(vmkeep.restore(after, host.dir / "work" / "after"))
    vm.start(paused=True)


def test_ctrl_c_in_the_middle_of_writing_rolls_back(host: Host, vmkeep: Vmkeep) -> None:
    vm = _started_once(host, [Disk("vda", 96 * MiB)])
    write_offline(vm, "vda", random_bytes(1, 64 * MiB), start=0)
    point = vmkeep.backup("guest")
    write_offline(vm, "vda", random_bytes(2, 64 * MiB), start=1 * MiB)
    vm.change_nvram()
    truth, definition = Truth.of(vm), _definition(vm)
    restores = vmkeep.home / "restores"

    def writes() -> bool:
        return any('"stage":"writing"' in path.read_text() for path in restores.glob("*.json"))

    with held(vmkeep, ["restore", point["id"], "--in-place", "--yes"], writes) as process:
        with pytest.raises(libvirt.libvirtError, match="not-finished--run-vmkeep-doctor"):
            vm.start()
        os.kill(process.pid, signal.SIGINT)
    status, document = finished(process)
    assert (status, document["error"]["code"]) == (130, "interrupted")
    truth.assert_vm(vm)
    assert _definition(vm) == definition
    _assert_nothing_left(vm, vmkeep)
    vm.start(paused=True)
