"""`vmkeep vm clone`, `vm rename` and `tpm clone`: second VMs and new names, with the real libvirt, QEMU and swtpm."""

from __future__ import annotations

import hashlib
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.crash.bed import KILLED, Trap, Zygote
from tests.rig import Disk, Host, MiB, NvIndexMissingError, Vm, images
from tests.rig.cli import Vmkeep
from tests.turns import EVERY, sampled

pytestmark = pytest.mark.system

_STORED = b"seals the guest's disks"
_VALUE = b"opens the state of the TPM"


def encrypted(secret: str) -> str:
    return f"<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"


def inactive(vm: Vm) -> str:
    return vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)


def files_of(vm: Vm) -> dict[str, str]:
    """Return the hash of every file that a VM is made of."""
    paths = [disk.path for disk in vm.disks() if disk.path is not None]
    paths += [path for path in vm.tpm_directory.rglob("*") if path.is_file()]
    paths += [vm.nvram_path] if vm.nvram_path.exists() else []
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def everything(host: Host) -> set[str]:
    """Return every file of the host that a clone could leave behind, and every VM and secret."""
    found = {str(path) for path in (host.dir / "disks").rglob("*")}
    for folder in ("swtpm", "qemu/nvram"):
        found |= {str(path) for path in host.path(f"/var/lib/libvirt/{folder}").rglob("*")}
    return found | {each.UUIDString() for each in host.connection.listAllDomains()} | set(host.secrets())


def qemu_io(path: Path, image_format: str, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", image_format, *words, str(path)], check=True, capture_output=True)


def same_content(one: Vm, other: Vm, host: Host) -> None:
    """Fail unless each disk of two VMs that are off reads the same."""
    for disk in one.disks():
        twin = other.disk(disk.target)
        assert disk.path is not None
        assert twin.path is not None
        raws = [host.dir / "work" / name for name in ("one.raw", "other.raw")]
        for each, raw in zip((disk, twin), raws, strict=True):
            assert each.path is not None
            images.convert_to_raw(each.path, raw, each.format)
        images.assert_images_equal(raws[1], raws[0], disk.target)


@pytest.fixture
def original(host: Host) -> Iterator[Vm]:
    """A VM with UEFI, a TPM, a qcow2 disk on another image, and a raw one."""
    disks = host.dir / "disks"
    base, top, raw = disks / "base.qcow2", disks / "guest-vda.qcow2", disks / "guest-vdb.raw"
    images.make_empty(base, "qcow2", 8 * MiB)
    qemu_io(base, "qcow2", "write -P 0x11 0 3M")
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(top)]
    subprocess.run(create, check=True)
    qemu_io(top, "qcow2", "write -P 0x22 1M 100k", "write -z 2M 64k", "write -P 0x33 8000k 192k")
    images.make_empty(raw, "raw", 5 * MiB + 512)
    qemu_io(raw, "raw", "write -P 0x44 4M 1049088")
    vm = host.define("guest", disks=[Disk("vda", path=top), Disk("vdb", format="raw", path=raw)])
    vm.start(paused=True)
    vm.destroy()
    vm.change_nvram()
    vm.store_in_tpm(_STORED)
    yield vm
    host.clear()


def test_clone_is_the_original_with_an_identity_of_its_own(original: Vm, host: Host, vmkeep: Vmkeep) -> None:
    before, definition = files_of(original), inactive(original)
    assert vmkeep.fails("vm", "clone", "guest", "other").code == "choice-required"
    cloned = vmkeep.json("vm", "clone", "guest", "other", "--tpm", "copy", "--yes")["cloned"]
    assert (files_of(original), inactive(original)) == (before, definition)
    assert (cloned["tpm"], cloned["nvram"], cloned["secret"]) == ("copy", "copy", None)
    assert "cannot tell them apart" in cloned["warnings"][0]
    other = host.vm("other")
    assert other.uuid == cloned["vm_uuid"] != original.uuid
    shown = vmkeep.json("vm", "show", "other")["vm"]
    assert (shown["clone_of"], shown["clone_of_uuid"]) == ("guest", original.uuid)
    same_content(original, other, host)
    info = ["qemu-img", "info", "--output=json", str(other.disk("vda").path)]
    assert "backing" not in subprocess.run(info, check=True, capture_output=True, text=True).stdout
    assert (other.tpm_state(), other.nvram()) == (original.tpm_state(), original.nvram())
    kept = vmkeep.json("state", "list", "other")["states"]
    assert [(each["kind"], each["standing"]) for each in kept] == [("nvram", "current"), ("tpm", "current")]
    assert [each["version"] for each in vmkeep.json("state", "versions", "other")["versions"]] == [1, 1]

    for vm in (original, other):
        vm.start(paused=True)
    refused = vmkeep.fails("vm", "clone", "guest", "third", "--tpm", "new")
    assert refused.code == "vm-running"
    assert "`vmkeep backup guest`, then `vmkeep restore guest@latest --as third`" in refused.error["hint"]
    for vm in (original, other):
        vm.destroy()
    assert other.load_from_tpm(len(_STORED)) == _STORED
    assert vmkeep.fails("vm", "clone", "guest", "other", "--tpm", "new").code == "target-exists"
    assert vmkeep.fails("vm", "clone", "guest", "a/b", "--tpm", "new").code == "invalid-request"


def test_clone_with_new_state_begins_with_none_of_the_original(original: Vm, host: Host, vmkeep: Vmkeep) -> None:
    vmkeep.json("hook", "install")
    folder = host.dir / "disks" / "apart"
    folder.mkdir()
    try:
        words = ("--tpm", "new", "--nvram", "new", "--disks-dir", folder)
        cloned = vmkeep.json("vm", "clone", "guest", "other", *words)["cloned"]
        assert all(Path(disk["path"]).parent == folder for disk in cloned["disks"])
        other = host.vm("other")
        assert not other.tpm_directory.exists()
        assert not other.nvram_path.exists()
        other.start(paused=True)
        other.destroy()
    finally:
        vmkeep.json("hook", "remove")
    assert other.nvram() != original.nvram()
    with pytest.raises(NvIndexMissingError):
        other.load_from_tpm(len(_STORED))
    without = vmkeep.json("vm", "clone", "guest", "third", "--tpm", "none")["cloned"]
    assert without["tpm"] == "none"
    assert "<tpm" not in inactive(host.vm("third"))


def test_failure_at_any_step_leaves_nothing_of_a_clone(host: Host, vmkeep: Vmkeep, zygote: Zygote) -> None:
    secret = host.define_secret(_VALUE)
    vm = host.define("guest", disks=[Disk("vda", MiB)], firmware="bios", tpm_backend=encrypted(secret))
    vm.start(paused=True)
    vm.destroy()
    vm.store_in_tpm(_STORED, key=_VALUE)
    before = everything(host)
    steps = ("copy", "publish", "define", "note")
    clone = ("--json", "vm", "clone", "guest", "other", "--tpm", "copy", "--yes")
    for step, when in sampled([(step, when) for step in steps for when in ("before", "after")], 2):
        zygote.start_command(
            *clone, traps=[Trap(when, f"vmkeep.flows.clone_vm:{step}", "fail")], env=vmkeep.environment
        )
        assert zygote.printed().status == 34, (step, when)
        assert everything(host) == before, (step, when)
    pins, new = vmkeep.home / "repository" / "pins", ("--json", "vm", "clone", "guest", "other", "--tpm", "new")
    held = set(pins.glob("*"))
    for step, when in sampled([(step, when) for step in ("new_key", "define") for when in ("before", "after")], 1):
        trap = Trap(when, f"vmkeep.flows.clone_vm:{step}", "fail")
        zygote.start_command(*new, traps=[trap], env=vmkeep.environment)
        assert zygote.printed().status == 34, (step, when)
        assert (everything(host), set(pins.glob("*"))) == (before, held), (step, when)
    # Killed before all was copied, nothing stays; killed afterwards, the next command finishes it.
    for step, when in sampled([("copy", "before"), ("copy", "after"), ("publish", "after"), ("define", "after")], 2):
        trap = Trap(when, f"vmkeep.flows.clone_vm:{step}")
        zygote.start_command(*clone, traps=[trap], env=vmkeep.environment)
        assert zygote.printed().status == KILLED, (step, when)
        vmkeep.run("doctor", "--fix")
        if step == "copy":
            assert everything(host) == before, (step, when)
        else:
            host.vm("other").delete()
            host.connection.secretLookupByUUIDString((set(host.secrets()) - {secret}).pop()).undefine()
            assert everything(host) == before, (step, when)

    copied = vmkeep.json("vm", "clone", "guest", "other", "--tpm", "copy", "--yes")["cloned"]
    blank = vmkeep.json("vm", "clone", "guest", "third", "--tpm", "new")["cloned"]
    values = host.secrets()
    assert _VALUE not in (values[copied["secret"]], values[blank["secret"]])
    # The key of the blank one is kept although the VM was never started.
    assert vmkeep.json("tpm", "show", "third")["tpm"]["device"]["secret_kept_in"] is not None
    assert all("value of the original's" not in each for each in copied["warnings"])
    assert len({secret, copied["secret"], blank["secret"]}) == 3
    for name in ("other", "third"):
        host.vm(name).start(paused=True)
        host.vm(name).destroy()
    assert host.vm("other").load_from_tpm(len(_STORED), key=values[copied["secret"]]) == _STORED


@pytest.fixture
def sharing(host: Host) -> Iterator[Path]:
    """A folder on a file system that shares blocks between files."""
    image, mount = host.dir / "work" / "sharing.img", host.dir / "disks" / "sharing"
    mount.mkdir()
    with image.open("wb") as stream:
        stream.truncate(128 * MiB)
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
    host.run(["mount", "-o", "loop", image, mount], check=True)
    yield mount
    host.run(["umount", "--lazy", mount], check=True)
    image.unlink()


def test_disks_share_their_blocks_where_the_file_system_can(host: Host, vmkeep: Vmkeep, sharing: Path) -> None:
    top, raw = sharing / "guest-vda.qcow2", sharing / "guest-vdb.raw"
    script = (
        f"qemu-img create -q -f qcow2 {top} 8M && qemu-io -c 'write -P 0x11 0 3M' {top} >/dev/null && "
        f"truncate -s 2M {raw} && qemu-io -f raw -c 'write -P 0x22 1M 64k' {raw} >/dev/null"
    )
    host.run(["sh", "-c", script], check=True)
    disks = [Disk("vda", path=top), Disk("vdb", format="raw", path=raw)]
    host.define("guest", disks=disks, firmware="bios", tpm=False)
    vmkeep.backup("guest")
    cloned = vmkeep.json("vm", "clone", "guest", "other")["cloned"]
    assert [disk["shared"] for disk in cloned["disks"]] == [True, True]
    for one, disk in zip((top, raw), cloned["disks"], strict=True):
        kind = one.suffix[1:]
        host.run(["qemu-img", "compare", "-q", "-f", kind, "-F", kind, one, disk["path"]], check=True)
    info = host.run(["qemu-img", "info", cloned["disks"][0]["path"]], check=True).stdout
    assert "bitmaps" not in info
    assert "bitmaps" in host.run(["qemu-img", "info", top], check=True).stdout
    first = vmkeep.backup("other")
    assert [disk["reason"] for disk in first["disks"]] == ["no-base", "no-bitmaps"]


def test_what_two_vms_cannot_both_have_is_other_in_the_clone(host: Host, vmkeep: Vmkeep) -> None:
    port = "<graphics type='vnc' port='5987' autoport='no' listen='127.0.0.1'/>"
    serial = f"<serial type='file'><source path='{host.dir}/work/guest.log'/><target port='0'/></serial>"
    nic = "<interface type='user'><mac address='52:54:00:11:22:33'/></interface>"
    disk = Disk("vda", MiB, format="raw")
    vm = host.define("guest", disks=[disk], firmware="bios", tpm=False, device_xml=(port, serial, nic))
    cloned = vmkeep.json("vm", "clone", "guest", "other")["cloned"]
    assert any("other.log" in told for told in cloned["warnings"])
    other = host.vm("other")
    for each in (vm, other):
        each.start(paused=True)
    macs = [set(re.findall(r"mac address='([^']*)'", each.xml())) for each in (vm, other)]
    assert all(macs)
    assert not macs[0] & macs[1]
    vm.destroy()
    socket = host.dir / "work" / "nbd"
    image = str(vm.disk("vda").path)
    writing = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-k", str(socket), image])
    try:
        while not socket.exists():
            time.sleep(0.02)
        assert vmkeep.fails("vm", "clone", "guest", "third").code == "vm-busy"
    finally:
        writing.terminate()
        writing.wait()


@pytest.mark.skipif(not EVERY, reason="each key takes seconds to derive (VMKEEP_CRASH_ALL=1)")
@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_encrypted_disk_is_encrypted_anew_with_the_same_passphrase(
    host: Host, vmkeep: Vmkeep, image_format: str
) -> None:
    secret = host.secret("opens the disk")
    disk = Disk("vda", MiB, format=image_format, secret=secret)
    vm = host.define("guest", disks=[disk], firmware="bios", tpm=False)
    vm.start(paused=True)
    vm.write("vda", start=0, length=64 << 10)
    vm.destroy()
    vmkeep.json("vm", "clone", "guest", "other")
    one, twin = vm.disk("vda").path, host.vm("other").disk("vda").path
    assert one is not None
    assert twin is not None
    plain = [images.read_offline_image(path, image_format, secret.value) for path in (one, twin)]
    assert plain[0] == plain[1]
    assert any(plain[0])
    assert one.read_bytes() != twin.read_bytes()
    host.vm("other").start(paused=True)


def test_vm_keeps_all_that_is_its_own_under_another_name(host: Host, vmkeep: Vmkeep, zygote: Zygote) -> None:
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB)])
    vm.start(paused=True)
    vm.change_nvram()
    point = vmkeep.backup("guest")
    assert vmkeep.fails("vm", "rename", "guest", "after").code == "vm-running"
    vm.destroy()
    host.define("taken", disks=[Disk("vda", MiB)], firmware="bios", tpm=False)
    assert vmkeep.fails("vm", "rename", "guest", "taken").code == "target-exists"
    vmkeep.json("snapshot", "create", "guest", "before")
    variables, names = vm.nvram(), {path.name for path in vm.nvram_path.parent.iterdir()}
    checkpoints = [each.getName() for each in vm.domain.listAllCheckpoints()]
    assert checkpoints

    places = [(step, when) for step in ("rename", "note") for when in ("before", "after")]
    for step, when in sampled(places, 2):
        trap = Trap(when, f"vmkeep.flows.rename_vm:{step}", "fail")
        zygote.start_command("--json", "vm", "rename", "guest", "after", traps=[trap], env=vmkeep.environment)
        assert zygote.printed().status == 34, (step, when)
        assert vm.domain.name() == "guest", (step, when)
        assert {path.name for path in vm.nvram_path.parent.iterdir()} == names, (step, when)
        assert [each.getName() for each in vm.domain.listAllCheckpoints()] == checkpoints, (step, when)
    (step, when), *_ = sampled(places, 1)
    trap = Trap(when, f"vmkeep.flows.rename_vm:{step}")
    zygote.start_command("--json", "vm", "rename", "guest", "after", traps=[trap], env=vmkeep.environment)
    assert zygote.printed().status == KILLED
    told = vmkeep.run("doctor", "--fix").stdout
    assert vm.domain.name() == "after", (step, when, told)

    host.restart_libvirtd()
    vm.name = "after"
    assert [each.getName() for each in vm.domain.listAllCheckpoints()] == checkpoints
    assert vm.domain.snapshotListNames() == ["before"]
    assert vm.nvram() == variables
    shown = vmkeep.json("vm", "show", "after")["vm"]
    assert (shown["uuid"], shown["last_point"]["id"]) == (vm.uuid, point["id"])
    assert [each["standing"] for each in vmkeep.json("state", "list", "after")["states"]] == ["current", "current"]
    assert [each["id"] for each in vmkeep.json("points", "after")["points"]] == [point["id"]]
    vm.start(paused=True)
    assert vm.nvram() == variables
    assert [disk["mode"] for disk in vmkeep.backup("after")["disks"]] == ["incremental"]


def test_name_that_somebody_else_gave_is_met(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)], firmware="bios", tpm=False)
    point = vmkeep.backup("guest")
    vm.domain.rename("after")
    assert vmkeep.json("vm", "show", "after")["vm"]["last_point"]["id"] == point["id"]
    second = vmkeep.backup("after")
    assert second["vm_uuid"] == point["vm_uuid"]
    assert len(vmkeep.json("points", "after")["points"]) == 2


def test_tpm_of_a_vm_is_given_to_another_one(host: Host, vmkeep: Vmkeep, zygote: Zygote) -> None:
    secret = host.define_secret(_VALUE)
    vm = host.define("guest", disks=[Disk("vda", MiB)], firmware="bios", tpm_backend=encrypted(secret))
    other, third = (
        host.define(name, disks=[Disk("vda", MiB)], firmware="bios", tpm=False) for name in ("other", "third")
    )
    copying = ("tpm", "clone", "guest", "other", "--copy", "--yes")
    assert vmkeep.fails(*copying).code == "state-unsupported"
    vm.start(paused=True)
    vm.destroy()
    vm.store_in_tpm(_STORED, key=_VALUE)
    vm.start(paused=True)
    assert vmkeep.fails("tpm", "clone", "guest", "other").code == "invalid-request"
    assert vmkeep.fails("tpm", "clone", "other", "guest", "--new").code == "state-unsupported"
    before, definition = everything(host), inactive(other)
    steps = ("install_state", "give_secret", "note", "put_in")
    for step, when in sampled([(step, when) for step in steps for when in ("before", "after")], 2):
        trap = Trap(when, f"vmkeep.flows.clone_tpm:{step}", "fail")
        zygote.start_command("--json", *copying, traps=[trap], env=vmkeep.environment)
        assert zygote.printed().status == 34, (step, when)
        assert (everything(host), inactive(other)) == (before, definition), (step, when)

    cloned = vmkeep.json(*copying)["cloned"]
    key = host.secrets()[cloned["secret"]]
    assert key != _VALUE
    kept = vmkeep.json("state", "versions", "other")["versions"]
    assert [each["version"] for each in kept] == [2, 1]
    assert kept[1]["sha256"] == cloned["sha256"] == hashlib.sha256(vm.tpm_state()).hexdigest()
    other.start(paused=True)
    other.destroy()
    assert other.load_from_tpm(len(_STORED), key=key) == _STORED
    vmkeep.json("tpm", "remove", "other", "--yes")
    again = vmkeep.json(*copying)["cloned"]
    assert again["secret"] != cloned["secret"]
    vmkeep.run("doctor", "--fix")
    assert other.load_from_tpm(len(_STORED), key=host.secrets()[again["secret"]]) == _STORED
    blank = vmkeep.json("tpm", "clone", "guest", "third", "--new")["cloned"]
    assert host.secrets()[blank["secret"]] != _VALUE
    assert vmkeep.json("tpm", "show", "third")["tpm"]["device"]["secret_kept_in"] is not None
    third.start(paused=True)
    assert vmkeep.fails("tpm", "clone", "guest", "third", "--new").code == "vm-running"
