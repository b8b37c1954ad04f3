"""Disks that QEMU encrypts: kept, restored and taken back like others, and never plain on the host unasked.

``vda`` is qcow2 with LUKS in it, ``vdb`` is nothing but LUKS, which libvirt calls raw.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Disk, Host, KiB, MiB, Secret, Vm, VmState, assert_images_equal, random_bytes, read_offline_image
from tests.rig.cli import Vmkeep, finished
from tests.rig.quickclock import quick_qemu_img
from tests.system.held import held_in_its_copy
from tests.system.offline import bitmaps, write_offline, zero_offline
from tests.system.truth import Truth, assert_left_alone, checkpoints

pytestmark = pytest.mark.system

_VDA, _VDB = 6 * MiB, 1 * MiB + 512


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick_qemu_img():
        yield


def _encrypted_vm(host: Host, secret: Secret) -> Vm:
    """``vda`` names its secret by UUID, ``vdb`` another one of the same value by its use."""
    used = host.secret(secret.value, usage="vdb of 'guest' & others")
    disks = [Disk("vda", _VDA, secret=secret), Disk("vdb", _VDB, format="raw", secret=used)]
    vm = host.define("guest", disks=disks, firmware="bios", tpm=False)
    vm.start(paused=True)
    return vm


def _truth(vm: Vm) -> Truth:
    return Truth.of(vm, uefi=False, tpm=False)


def _modes(point: dict[str, Any]) -> dict[str, str]:
    return {disk["target"]: disk["mode"] for disk in point["disks"]}


def _restore(vmkeep: Vmkeep, point: dict[str, Any], output: Path, *options: str) -> dict[str, Any]:
    restored = vmkeep.json("restore", str(point["id"]), "--output", output, *options)["restored"]
    assert isinstance(restored, dict)
    return restored


def _assert_no_plain(directory: Path, *secrets: bytes) -> None:
    """Fail when a file of the directory holds any of these bytes of the guest, or a passphrase."""
    for path in directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path


def test_points_are_whole_and_incremental_while_the_vm_runs_and_while_it_is_off(host: Host, vmkeep: Vmkeep) -> None:
    secret = host.secret()
    vm = _encrypted_vm(host, secret)
    own = host.secret_uuids()
    vm.write_random("vda", start=1 * MiB + 512, length=1 * MiB, seed=1)
    vm.write_random("vdb", start=512 * KiB, length=100 * KiB, seed=2)
    points, truths = [vmkeep.backup("guest")], [_truth(vm)]
    vm.resume()
    vm.write_random("vda", start=3 * MiB, length=64 * KiB, seed=3)
    vm.write_zeroes("vda", start=1 * MiB + 64 * KiB, length=128 * KiB, unmap=True)
    vm.write_random("vdb", start=1 * MiB, length=512, seed=4)  # in the short last block
    points, truths = [*points, _point_with_a_slow_scratch(vmkeep)], [*truths, _truth(vm)]
    assert_left_alone(vm, state=VmState.RUNNING, checkpoints_before=[points[-1]["checkpoint"]])
    assert host.secret_uuids() == own
    vm.destroy()
    write_offline(vm, "vda", random_bytes(5, 64 * KiB), start=5 * MiB)
    zero_offline(vm, "vda", start=3 * MiB, length=64 * KiB)
    write_offline(vm, "vdb", random_bytes(6, 4 * KiB), start=8 * KiB)
    points, truths = [*points, vmkeep.backup("guest", "--debug")], [*truths, _truth(vm)]
    (log,) = (host.dir / "home" / "logs").iterdir()
    assert "qemu-nbd" in log.read_text()
    assert "file=/dev/fd/" in log.read_text()
    _assert_no_plain(host.dir / "home", secret.value.encode())  # in no argument, no log, no record
    assert checkpoints(vm) == [points[-1]["checkpoint"]] == bitmaps(vm.disk_path("vda"))

    assert [_modes(point)["vda"] for point in points] == ["full", "incremental", "incremental"]
    assert {_modes(point)["vdb"] for point in points} == {"scan"}
    assert [point["disks"][0]["bytes_read"] for point in points[1:]] == [64 * KiB, 64 * KiB]
    assert points[1]["pause_ms"] < 2000, "the scratch is made before the guest stands still"
    for point, truth in zip(points, truths, strict=True):
        output = host.dir / "work" / point["id"]
        _restore(vmkeep, point, output, "--format", "raw", "--decrypt")
        truth.assert_files(output, "raw")


def _point_with_a_slow_scratch(vmkeep: Vmkeep) -> dict[str, Any]:
    """Take a point with the qemu-img that is slow: a scratch made while the guest stands still is seen in its pause."""
    ways = vmkeep.host.environment["PATH"].split(":")
    others = ":".join(way for way in ways if not Path(way, "quick_clock.so").exists())
    point = vmkeep.json("backup", "guest", env={"PATH": others})["point"]
    assert isinstance(point, dict)
    return point


def test_scratch_of_an_encrypted_disk_holds_nothing_that_can_be_read(host: Host, vmkeep: Vmkeep) -> None:
    """The plain disk beside it is the proof that this test would see it."""
    disks = [Disk("vda", _VDA, secret=host.secret()), Disk("vdc", _VDA)]
    vm = host.define("guest", disks=disks, firmware="bios", tpm=False)
    vm.start(paused=True)
    old = random_bytes(7, 128 * KiB)
    for target in ("vda", "vdc"):
        vm.write_bytes(target, start=2 * MiB, content=old)
    truth = _truth(vm)
    with held_in_its_copy(vm, vmkeep) as process:
        for target in ("vda", "vdc"):
            vm.write(target, start=2 * MiB, length=128 * KiB, pattern=0x11)
            assert vm.monitor(f'qemu-io -d /machine/peripheral/{vm.disk(target).alias}/virtio-backend "flush"') == ""
        scratch = {path.name.split(".")[-3]: path for path in (host.dir / "disks").glob(".*.scratch")}
        held = {target: path.read_bytes() for target, path in scratch.items()}
        assert {path.stat().st_mode & 0o077 for path in scratch.values()} == {0}
    for start in range(0, len(old), 4096):
        assert old[start : start + 64] in held["vdc"]
        assert old[start : start + 64] not in held["vda"]
    assert len(held["vda"]) > 2 * MiB + len(old), "what was overwritten did not come to the scratch"
    status, document = finished(process)
    assert status == 0, document
    point = document["point"]
    _restore(vmkeep, point, host.dir / "work" / "out", "--decrypt")
    truth.assert_files(host.dir / "work" / "out")
    assert_left_alone(vm, state=VmState.PAUSED, checkpoints_before=[point["checkpoint"]])
    assert len(host.secret_uuids()) == 1


def test_point_comes_back_encrypted_in_place_and_as_a_vm(host: Host, vmkeep: Vmkeep) -> None:
    secret = host.secret()
    vm = _encrypted_vm(host, secret)
    known = random_bytes(8, 64 * KiB)
    vm.write_bytes("vda", start=1 * MiB, content=known)
    vm.write_bytes("vdb", start=64 * KiB, content=known)
    vm.destroy()
    first, truth = vmkeep.backup("guest"), _truth(vm)
    plain = (known[:64], known[4096:4160], secret.value.encode())

    write_offline(vm, "vda", bytes([0x22]) * 256 * KiB, start=1 * MiB)
    write_offline(vm, "vdb", bytes([0x22]) * 64 * KiB, start=0)
    back = vmkeep.json("restore", first["id"], "--in-place", "--yes")["restored"]
    assert back["disks"] == ["vda", "vdb"]
    truth.assert_vm(vm)
    assert bitmaps(vm.disk_path("vda")) == [first["checkpoint"]]
    again = vmkeep.backup("guest")
    assert _modes(again) == {"vda": "incremental", "vdb": "scan"}
    assert again["disks"][0]["bytes_read"] == 0
    vm.disk_path("vda").unlink()
    vmkeep.json("restore", first["id"], "--in-place", "--yes", "--only", "vda")  # the image is made anew
    truth.assert_vm(vm)

    vm.delete()
    vmkeep.json("restore", first["id"], "--as", "guest")
    made = host.vm("guest")
    assert {made.passphrase(target) for target in ("vda", "vdb")} == {secret.value}
    made.start(paused=True)
    truth.assert_vm(made)
    _assert_no_plain(host.dir / "disks", *plain)
    _assert_no_plain(host.dir / "home", *plain)


def test_secret_that_is_gone_or_private_is_told_with_what_to_do(host: Host, vmkeep: Vmkeep) -> None:
    secret = host.secret(private=True)
    vm = host.define("guest", disks=[Disk("vda", _VDA, secret=secret)], firmware="bios", tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=64 * KiB, seed=9)
    point, truth = vmkeep.backup("guest"), _truth(vm)  # QEMU knows the private secret
    vm.destroy()
    before = {path: path.read_bytes() for path in (host.dir / "disks").iterdir()}

    def fails(*arguments: str | Path) -> tuple[str, str, str]:
        failure = vmkeep.fails(*arguments)
        assert secret.uuid in failure.error["message"]
        assert failure.error["disk"] == "vda"
        assert {path: path.read_bytes() for path in (host.dir / "disks").iterdir()} == before
        return failure.code, failure.error["message"], failure.error["hint"]

    files = ["restore", point["id"], "--output", host.dir / "work" / "out"]
    in_place = ["restore", point["id"], "--in-place", "--yes"]
    as_vm = ["restore", point["id"], "--as", "other"]
    code, _, hint = fails("backup", "guest")
    assert (code, "private='no'" in hint, "--exclude vda" in hint) == ("secret-private", True, True)
    assert fails(*in_place)[0] == "secret-private"
    shown = vmkeep.json("vm", "show", "guest")["vm"]
    assert "is private" in shown["disks"][0]["problem"]

    host.connection.secretLookupByUUIDString(secret.uuid).undefine()
    code, _, hint = fails("backup", "guest")
    assert (code, "virsh secret-define" in hint) == ("secret-missing", True)
    told = [fails(*words) for words in (files, in_place, as_vm)]
    assert [code for code, _, _ in told] == ["secret-missing"] * 3
    assert "--decrypt" in told[0][2]
    assert_left_alone(vm, state=VmState.OFF, checkpoints_before=[point["checkpoint"]])

    # The value is lost for ever: what comes back is encrypted with a new one.
    new = host.secret("another value", secret_uuid=secret.uuid)
    failure = vmkeep.fails("backup", "guest")
    assert (failure.code, failure.error["path"]) == ("wrong-key", str(vm.disk_path("vda")))
    output = host.dir / "work" / "encrypted"
    restored = _restore(vmkeep, point, output, "--format", "raw")
    assert {path.name for path in output.iterdir()} == {"vda.luks", "domain.xml"}
    assert any(secret.uuid in warning for warning in restored["warnings"])
    image = read_offline_image(output / "vda.luks", "luks", new.value)
    assert_images_equal(image, truth.images["vda"])
    out = host.dir / "work" / "plain"
    vmkeep.restore(point, out, "--decrypt")  # without libvirt
    truth.assert_files(out)
