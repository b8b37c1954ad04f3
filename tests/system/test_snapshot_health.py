"""`vmkeep snapshot health` on real hosts: what libvirt's snapshots say is kept, held against what is there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.rig import Disk, Host, MiB, Vm, VmState
from tests.system.history import Forked
from tests.system.offline import opened, qemu_img

pytestmark = pytest.mark.system


def bios_vm(host: Host) -> Vm:
    """A paused VM without UEFI variables, of which libvirt makes internal snapshots."""
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB), Disk("vdb", 2 * MiB)], tpm=False, firmware="bios")
    vm.start(paused=True)
    return vm


def health(forked: Forked) -> dict[str, dict[str, Any]]:
    """Return the health of the VM's snapshots by name, when the exit status is right."""
    result = forked.run("--json", "snapshot", "health", "guest")
    assert result.stdout, result.stderr
    document = json.loads(result.stdout)["snapshot_health"]
    judged = {snapshot["snapshot"]: snapshot for snapshot in document["snapshots"]}
    bad = [each for each in judged.values() if each["health"] != "sound"]
    assert document["ok"] is (bad == [])
    assert result.returncode == (37 if bad else 0), result.stderr
    return judged


def parts(snapshot: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {part["name"]: (part["location"], part["health"]) for part in snapshot["parts"]}


def why(snapshot: dict[str, Any], name: str) -> str:
    return next(str(part["why"]) for part in snapshot["parts"] if part["name"] == name)


def test_internal_snapshot_with_memory_is_sound_until_an_image_loses_it(host: Host, forked: Forked) -> None:
    vm = bios_vm(host)
    assert health(forked) == {}
    host.run(["virsh", "snapshot-create-as", "guest", "inside"], check=True)
    for state in (VmState.PAUSED, VmState.OFF):
        if state is VmState.OFF:
            vm.destroy()
        told = health(forked)["inside"]
        inside = ("internal", "sound")
        assert parts(told) == {"vda": inside, "vdb": inside, "memory": inside}
    with opened(vm.disk_path("vdb")):
        told = health(forked)["inside"]
        assert (told["health"], parts(told)["vdb"]) == ("unknown", ("internal", "unknown"))
    qemu_img("snapshot", "-d", "inside", vm.disk_path("vdb"))
    told = health(forked)["inside"]
    assert parts(told)["vdb"] == ("internal", "broken")
    assert parts(told)["vda"] == ("internal", "sound")
    qemu_img("snapshot", "-d", "inside", vm.disk_path("vda"))
    assert parts(health(forked)["inside"])["memory"] == ("internal", "broken")
    assert "broken" in forked.run("snapshot", "health", "guest").stdout


def test_external_snapshots_are_sound_as_long_as_their_images_stay_unwritten_and_stood_on(
    host: Host, forked: Forked
) -> None:
    vm = bios_vm(host)
    first = {target: vm.disk_path(target) for target in ("vda", "vdb")}
    memory = host.dir / "disks" / "outer.mem"
    host.run(["virsh", "snapshot-create-as", "guest", "outer", "--memspec", f"file={memory}"], check=True)
    second = vm.disk_path("vda")
    command = ["virsh", "snapshot-create-as", "guest", "later", "--disk-only", "--diskspec", "vdb,snapshot=no"]
    host.run(command, check=True)
    outside = ("external", "sound")
    told = health(forked)
    assert list(told) == ["outer", "later"]
    assert parts(told["outer"]) == {"vda": outside, "vdb": outside, "memory": outside}
    assert parts(told["later"]) == {"vda": outside}
    memory.rename(memory.with_suffix(".aside"))
    assert parts(health(forked)["outer"])["memory"] == ("external", "broken")
    memory.touch()
    assert "empty" in why(health(forked)["outer"], "memory")
    memory.with_suffix(".aside").rename(memory)
    vm.destroy()
    definition = vm.domain.XMLDesc(2)
    aside = second.with_suffix(".aside")
    second.rename(aside)  # the overlay of the one, and what holds the data of the other
    told = health(forked)
    assert parts(told["outer"])["vda"] == ("external", "broken")
    assert parts(told["later"])["vda"] == ("external", "broken")
    assert parts(told["outer"])["vdb"] == outside
    aside.rename(second)
    overlay = vm.disk_path("vdb")
    host.connection.defineXML(definition.replace(str(overlay), str(first["vdb"])))
    assert "overwritten" in why(health(forked)["outer"], "vdb")
    host.connection.defineXML(definition)
    assert all(snapshot["health"] == "sound" for snapshot in health(forked).values())
    qemu_img("rebase", "-u", "-b", "", overlay)
    assert "stands on" in why(health(forked)["outer"], "vdb")
