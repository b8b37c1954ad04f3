"""What no point can be made of is refused by name, and the VM does not notice."""

from __future__ import annotations

import pytest

from tests.rig import Disk, Host, MiB, VmState
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth, assert_left_alone

pytestmark = pytest.mark.system


def test_disk_that_cannot_be_kept_is_refused_by_name(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB)], tpm=False, device_xml=[_directory_disk(host)])
    vm.start()
    failure = vmkeep.fails("backup", "guest")

    assert (failure.code, failure.status) == ("disk-unsupported", 12)
    assert (failure.error["vm"], failure.error["disk"]) == ("guest", "vdb")
    assert "--exclude vdb" in failure.error["hint"]
    assert failure.document is None
    assert_left_alone(vm)
    assert vmkeep.json("points")["points"] == []
    shown = vmkeep.json("vm", "show", "guest")["vm"]
    assert shown["complete"] is False
    assert any("vdb" in problem for problem in shown["problems"])


def test_every_disk_that_cannot_be_kept_is_named_at_once(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB)], tpm=False)
    for target in ("vda", "vdb"):
        vm.disk_path(target).unlink()
    failure = vmkeep.fails("backup", "guest")

    assert failure.code == "disk-unsupported"
    assert "vda" in failure.error["message"]
    assert "vdb" in failure.error["message"]
    assert_left_alone(vm, state=VmState.OFF)


def test_one_vm_that_fails_does_not_keep_the_others_from_being_kept(host: Host, vmkeep: Vmkeep) -> None:
    good = host.define("good", disks=[Disk("vda", 4 * MiB)])
    bad = host.define("bad", disks=[Disk("vda", 4 * MiB)], tpm=False, device_xml=[_directory_disk(host)])
    gone = host.define("gone", disks=[Disk("vda", 4 * MiB)], tpm=False)
    gone.disk_path("vda").unlink()
    good.start(paused=True)
    bad.start(paused=True)
    failure = vmkeep.fails("backup", "--all")

    assert (failure.code, failure.status) == ("incomplete", 37)
    assert failure.document is not None
    assert list(failure.document) == ["points", "failed", "skipped"]
    (point,) = failure.document["points"]
    assert point["vm"] == "good"
    assert {each["vm"]: each["error"]["code"] for each in failure.document["failed"]} == {
        "bad": "disk-unsupported",
        "gone": "disk-unsupported",
    }
    Truth.of(good).assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
    assert_left_alone(bad, state=VmState.PAUSED)
    assert set(vmkeep.json("backup", "good", "good")["point"]) == set(point)  # named twice is one


def test_several_vms_at_one_command_are_listed(host: Host, vmkeep: Vmkeep) -> None:
    vms = [host.define(name, disks=[Disk("vda", 4 * MiB)], tpm=False) for name in ("one", "two")]
    for vm in vms:
        vm.start(paused=True)
    document = vmkeep.json("backup", "one", "two")

    assert [point["vm"] for point in document["points"]] == ["one", "two"]
    assert document["failed"] == []


def _directory_disk(host: Host, target: str = "vdb") -> str:
    """A disk that QEMU makes of a directory; nothing can be read of it that would be a disk again."""
    directory = host.dir / "disks" / "directory"
    directory.mkdir(exist_ok=True)
    return (
        f"<disk type='dir' device='disk'><driver name='qemu' type='fat'/><source dir='{directory}'/>"
        f"<target dev='{target}' bus='virtio'/><readonly/></disk>"
    )
