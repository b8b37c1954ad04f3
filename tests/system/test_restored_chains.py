"""What a guest reads through the chain that libvirt puts together is what its images hold: whichever way left them."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import libvirt
import pytest

from tests.crash.bed import KILLED, Outcome, Trap, Zygote
from tests.rig import Disk, Host, MiB, Vm, assert_images_equal
from tests.rig.cli import Vmkeep
from tests.system.history import Forked
from tests.system.offline import qemu_img
from tests.system.truth import Truth

pytestmark = pytest.mark.system

_SAVE = "vmkeep.host.records.restore:RestoreJournal.save"


def _definition(vm: Vm) -> str:
    return vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)


def _assert_guest_reads(vm: Vm, vmkeep: Vmkeep, truth: Truth) -> None:
    """Fail unless the started VM, and the points of it off and running, hold just that in their disks."""
    stopped = vmkeep.backup("guest")
    vm.start(paused=True)
    for target, image in truth.images.items():
        assert_images_equal(vm.read_image(target), image, f"{target} of the started VM")
    running = vmkeep.backup("guest", "--full")
    vm.destroy()
    for point in (stopped, running):
        output = vm.host.dir / "work" / point["id"]
        Truth(truth.images, vm.tpm_state(), vm.nvram()).assert_files(vmkeep.restore(point, output))


def _on_overlays(host: Host, vmkeep: Vmkeep) -> tuple[Vm, dict[str, Any], Truth, Truth]:
    """A VM that is off, on the overlays of a snapshot; a point from before with its truth, and the truth of now.

    libvirt has written <backingStore>, as it does at a snapshot of a running VM, and takes its word at a start.
    """
    vm = host.define("guest", disks=[Disk("vda", 12 * MiB), Disk("vdb", 4 * MiB)])
    vm.start(paused=True)
    vm.write("vda", start=2 * MiB, length=1 * MiB, pattern=0x11)
    point, then = vmkeep.backup("guest"), Truth.of(vm)
    vm.write("vda", start=8 * MiB, length=1 * MiB, pattern=0x22)
    vm.write("vdb", start=1 * MiB, length=1 * MiB, pattern=0x33)
    vmkeep.json("snapshot", "create", "guest")
    vm.destroy()
    now = Truth.of(vm)
    assert _definition(vm).count("<backingStore") >= 2
    return vm, point, then, now


def test_image_made_anew_is_read_alone_although_the_definition_named_what_was_below_the_old_one(
    host: Host, forked: Forked
) -> None:
    vmkeep = forked
    vm, point, then, now = _on_overlays(host, vmkeep)
    overlays = {target: vm.disk_path(target) for target in ("vda", "vdb")}
    overlays["vda"].rename(overlays["vda"].with_suffix(".aside"))  # the disk that the VM is parked by
    qemu_img("resize", "-q", overlays["vdb"], str(5 * MiB))

    restored = vmkeep.json("restore", point["id"], "--in-place", "--yes")["restored"]
    told = "\n".join(restored["warnings"])
    assert ("vda was missing" in told, "vdb was of another size" in told) == (True, True)
    assert "<backingStore" not in _definition(vm)
    # The state that was left is no latest point, wherever one is asked for, and it is named.
    asked = vmkeep.json("point", "show", "guest@latest")["point"]
    assert (asked["id"], asked["newer_safety_points"]) == (point["id"], [restored["safety"]])
    assert restored["safety"] in vmkeep.run("point", "show", "guest@latest").stderr
    verified = vmkeep.json("verify", "guest@latest")
    assert ([each["point"] for each in verified["verified"]], verified["newer_safety_points"]) == (
        [point["id"]],
        [restored["safety"]],
    )
    (listed,) = vmkeep.json("vm", "list")["vms"]
    assert listed["last_point"]["id"] == point["id"]
    _assert_guest_reads(vm, vmkeep, then)

    # The way back makes the grown disk anew once more; it holds all of it by itself then.
    vmkeep.json("restore", restored["safety"], "--in-place", "--yes", "--only", "vdb")
    vm.start(paused=True)
    assert vm.read_image("vdb")[: 4 * MiB] == now.images["vdb"]
    assert_images_equal(vm.read_image("vda"), then.images["vda"], "vda")
    vm.destroy()
    assert vmkeep.json("verify", "--all")["ok"] is True


def test_restore_that_is_killed_or_fails_leaves_the_chain_of_the_images_that_it_left(
    host: Host, forked: Forked, zygote: Zygote
) -> None:
    vm, point, then, _now = _on_overlays(host, forked)
    before, overlay = _definition(vm), vm.disk_path("vda")
    qemu_img("resize", "-q", overlay, str(13 * MiB))
    grown = Truth.of(vm)

    def restore(*traps: Trap) -> Outcome:
        return zygote.run(["restore_in_place", point["id"], "guest", None], traps=traps)

    # What fails when the new image is in its place already is taken back: old image, old chain.
    held = Trap("before", "vmkeep.host.restores.in_place:publish_items", "hold")
    zygote.start(["restore_in_place", point["id"], "guest", None], traps=[held])
    zygote.wait_reached()
    (staged,) = (path for path in vm.tpm_directory.parent.glob(".*") if path.is_dir())
    shutil.rmtree(staged)
    zygote.go.touch()
    assert zygote.finish().error["code"] == "host-file-missing"
    assert _definition(vm) == before
    vm.start(paused=True)
    for target, image in grown.images.items():
        assert_images_equal(vm.read_image(target), image, target)
    vm.destroy()
    # What is killed goes forward: new image, and nothing below it.
    for place in (("after", "vmkeep.host.restores.in_place:publish_items"), ("after", f"{_SAVE}#3")):
        assert restore(Trap(*place)).status == KILLED
        assert len(zygote.run(["look"]).recovered) == 1
        vm.start(paused=True)
        for target, image in then.images.items():
            assert_images_equal(vm.read_image(target), image, f"{target}, killed {place}")
        vm.destroy()
        assert "<backingStore" not in re.search(r"<disk .*?</disk>", _definition(vm), re.DOTALL)[0]  # type: ignore[index]
        overlay.unlink()
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", host.dir / "disks" / "guest-vda.qcow2", overlay)
        qemu_img("resize", "-q", overlay, str(13 * MiB))
        host.connection.defineXML(before)


def test_disk_that_its_guest_sees_otherwise_than_its_image_says_is_refused_and_found(
    host: Host, forked: Forked
) -> None:
    """With <backingStore/> the guest reads zeroes where the image names a base; a tool reads the base."""
    vm, point, _then, _now = _on_overlays(host, forked)
    whole = _definition(vm)
    base, alias = host.dir / "disks" / "guest-vda.qcow2", host.dir / "disks" / "alias.qcow2"
    store = re.compile(r"<backingStore type='file'>.*?</backingStore>", re.DOTALL)
    element = store.search(whole)
    assert element is not None
    wrong = {
        "lets nothing stand below": "<backingStore/>",
        "takes": element[0].replace("'qcow2'", "'raw'"),
        "puts": element[0].replace(str(base), str(host.dir / "disks" / "guest-vdb.qcow2")),
    }
    for words, replaced in wrong.items():
        host.connection.defineXML(store.sub(replaced, whole, count=1))
        refused = forked.fails("backup", "guest")
        assert (refused.code, refused.error["disk"]) == ("disk-unsupported", "vda")
        assert words in refused.error["message"]
        assert "<backingStore>" in refused.error["hint"]
        # Its safety point would not be what the guest saw.
        unsafe = forked.fails("restore", point["id"], "--in-place", "--yes")
        assert unsafe.code == "disk-unsupported"
        assert "safety point" in unsafe.error["message"]
        assert "--exclude" not in unsafe.error["hint"]
        assert _findings(forked, "disk-not-kept") == ["vda"], words
    # The same image by another name, and a definition that says less than the images, are as good as before.
    alias.symlink_to(base)
    for good in (element[0].replace(str(base), str(alias)), ""):
        host.connection.defineXML(store.sub(good, whole, count=1))
        assert _findings(forked, "disk-not-kept") == []
        forked.backup("guest")
    # While the VM runs QEMU has the right chain open; the definition of its next start is what is wrong.
    vm.start(paused=True)
    host.connection.defineXML(store.sub("<backingStore/>", whole, count=1))
    assert _findings(forked, "definition-differs") == ["vda"]
    forked.backup("guest")


def _findings(vmkeep: Vmkeep, code: str) -> list[str]:
    """Return the disks that the findings of this code name."""
    result = vmkeep.run("--json", "doctor")
    found = [finding for finding in json.loads(result.stdout)["doctor"]["findings"] if finding["code"] == code]
    return [disk for finding in found for disk in ("vda", "vdb") if f"disk {disk}" in finding["message"]]
