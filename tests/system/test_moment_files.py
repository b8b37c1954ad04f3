"""Checkpoints and snapshots as one file: to another host, to a VM that was stopped, and all of it or nothing.

Snapshots, and checkpoints of a VM that is off, are looked at with the same VMs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep
from tests.system.momentbed import edit, forest, remove_bitmap_in_qemu, text, virsh
from tests.system.offline import bitmaps, qemu_img

pytestmark = pytest.mark.system

VNC = "<graphics type='vnc' passwd='sesame'><listen type='none'/></graphics>"


def define(host: Host, *targets: str) -> Vm:
    disks = [Disk(target, 4 * MiB) for target in targets]
    return host.define("guest", disks=disks, firmware="bios", tpm=False, memory_mib=32, device_xml=(VNC,))


def checkpoints(vmkeep: Vmkeep, *names: str) -> None:
    for name in names:
        virsh(vmkeep.host, "checkpoint-create-as", "guest", name)


def change_file(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value["moments"])
    path.write_text(json.dumps(value))


def test_checkpoints_go_to_another_host_with_their_vm(
    host: Host, vmkeep: Vmkeep, second_host: Host, tmp_path: Path
) -> None:
    vm = define(host, "vda")
    vm.start(paused=True)
    checkpoints(vmkeep, "a", "b")
    vm.write("vda", start=0, length=MiB)
    checkpoints(vmkeep, "c")
    file = tmp_path / "checkpoints.json"
    assert "3 checkpoints" in text(vmkeep, "checkpoint", "export", "guest", file)
    assert (file.stat().st_mode & 0o777, "sesame" in file.read_text()) == (0o600, False)
    assert vmkeep.fails("checkpoint", "export", "guest", file).code == "target-exists"
    assert text(vmkeep, "checkpoint", "export", "guest") == file.read_text()
    text(vmkeep, "checkpoint", "export", "guest", file, "--security-info", "--force")
    assert (file.stat().st_mode & 0o777, "passwd='sesame'" in file.read_text()) == (0o600, True)
    assert list(tmp_path.iterdir()) == [file]

    # The disks are the same file here as there, as on shared storage.
    other = Vmkeep(second_host)
    definition = virsh(host, "dumpxml", "guest", "--inactive", "--security-info")
    vm.destroy()
    second_host.connection.defineXML(definition)
    virsh(second_host, "start", "guest", "--paused")
    assert forest(other) == {}
    change_file(file, list.reverse)
    done = other.json("checkpoint", "import", "guest", file, "--validate")["imported"]
    assert done == {"vm": "guest", "redefined": ["a", "b", "c"], "equal": []}
    assert forest(other) == {"a": None, "b": "a", "c": "b"}
    sizes = virsh(second_host, "checkpoint-dumpxml", "guest", "b", "--size", "--no-domain")
    assert f"size='{MiB}'" in sizes
    for name in "abc":
        theirs = virsh(second_host, "checkpoint-dumpxml", "guest", name, "--security-info")
        assert theirs in [moment["xml"] for moment in json.loads(file.read_text())["moments"]]
    again = other.json("checkpoint", "import", "guest", file, "--validate")["imported"]
    assert again == {"vm": "guest", "redefined": [], "equal": ["a", "b", "c"]}
    # A new checkpoint goes on from the one that is current, as it did at home.
    virsh(second_host, "checkpoint-create-as", "guest", "d")
    assert forest(other)["d"] == "c"

    # A file that libvirt refuses in the middle leaves nothing, and neither does one whose bitmaps are not there.
    virsh(second_host, "checkpoint-delete", "guest", "b", "--children", "--metadata")
    change_file(file, lambda moments: moments.sort(key=lambda moment: moment["name"]))

    def lose_a_bitmap(moments: list[dict[str, str]]) -> None:
        ghost = {
            "name": "g",
            "xml": moments[2]["xml"].replace("<name>c<", "<name>g<").replace("bitmap='c'", "bitmap='g'"),
        }
        moments.append(ghost)

    change_file(file, lose_a_bitmap)
    failure = other.fails("checkpoint", "import", "guest", file, "--validate")
    assert (failure.code, "'g'" in failure.error["message"]) == ("checkpoint-broken", True)
    assert forest(other) == {"a": None}
    change_file(file, lambda moments: moments.pop(0))
    failure = other.fails("checkpoint", "import", "another", file)
    assert failure.code == "vm-not-found"
    virsh(second_host, "checkpoint-delete", "guest", "a", "--metadata")
    failure = other.fails("checkpoint", "import", "guest", file)
    assert (failure.code, "parent a of b is missing" in failure.error["message"]) == ("moment-invalid", True)
    assert other.fails("snapshot", "import", "guest", file).code == "moments-foreign"
    assert forest(other) == {}


def test_what_would_kill_libvirtd_is_refused_until_it_was_restarted(second_host: Host) -> None:
    vmkeep = Vmkeep(second_host)
    vm = define(second_host, "vda")
    vm.start(paused=True)
    checkpoints(vmkeep, "a", "b", "c", "d")
    definition = virsh(second_host, "checkpoint-dumpxml", "guest", "c")
    remove_bitmap_in_qemu(vm, "c", "vda")
    deletion = second_host.run(["virsh", "checkpoint-delete", "guest", "a", "--children"])
    assert "bitmap 'c' not found" in deletion.stderr  # and b is gone
    assert text(vmkeep, "checkpoint", "list", "guest", "--name", "--topological").split() == ["a", "c"]
    assert text(vmkeep, "checkpoint", "list", "guest", "--name", "--from", "a", "--descendants") == ""
    file = second_host.dir / "work" / "c.xml"
    file.write_text(definition.replace("<name>b</name>", "<name>a</name>"))
    for words in (
        ["delete", "guest", "a"],
        ["delete", "guest", "c", "--metadata"],
        ["create", "guest", "e"],
        ["redefine", "guest", file],
    ):
        failure = vmkeep.fails("checkpoint", *words)
        assert (failure.code, failure.status) == ("relations-torn", 30)
        assert "systemctl restart libvirtd" in failure.error["hint"]
    for command in (["backup", "guest"], ["checkpoint", "repair", "guest"]):
        assert vmkeep.fails(*command).code == "relations-torn"
    assert second_host.connection.isAlive()
    second_host.restart_libvirtd()
    text(vmkeep, "checkpoint", "redefine", "guest", file)
    assert forest(vmkeep) == {"a": None, "c": "a"}
    text(vmkeep, "checkpoint", "delete", "guest", "a", "--children")
    assert forest(vmkeep) == {}


def test_checkpoints_of_a_transient_vm_come_back_after_its_stop(host: Host, vmkeep: Vmkeep, tmp_path: Path) -> None:
    vm = define(host, "vda")
    vm.start(paused=True)
    definition = virsh(host, "dumpxml", "guest", "--inactive", "--security-info")
    checkpoints(vmkeep, "a", "b")
    file = tmp_path / "checkpoints.json"
    text(vmkeep, "checkpoint", "export", "guest", file)
    vm.domain.undefineFlags(0)
    vm.write("vda", start=0, length=MiB)
    vm.destroy()
    assert host.connection.listAllDomains() == []
    (tmp_path / "guest.xml").write_text(definition)
    virsh(host, "create", tmp_path / "guest.xml", "--paused")
    assert forest(vmkeep) == {}
    text(vmkeep, "checkpoint", "import", "guest", file, "--validate")
    assert forest(vmkeep) == {"a": None, "b": "a"}
    assert f"size='{MiB}'" in text(vmkeep, "checkpoint", "dumpxml", "guest", "a", "--size")
    host.connection.defineXML(definition)  # so that it is there to be removed


def test_checkpoints_of_a_vm_that_is_off_go_with_their_bitmaps(host: Host, vmkeep: Vmkeep, tmp_path: Path) -> None:
    vm = define(host, "vda", "vdb")
    vm.start(paused=True)
    checkpoints(vmkeep, "a", "b")
    virsh(host, "checkpoint-create-as", "guest", "c", "--diskspec", "vda")
    overlay = host.dir / "disks" / "overlay.qcow2"
    below = vm.disk_path("vda")
    spec = f"vda,snapshot=external,file={overlay}"
    virsh(host, "snapshot-create-as", "guest", "s", "--disk-only", "--diskspec", spec, "--diskspec", "vdb,snapshot=no")
    virsh(host, "snapshot-delete", "guest", "s", "--metadata")
    vm.destroy()
    assert [sorted(bitmaps(image)) for image in (overlay, below, vm.disk_path("vdb"))] == [
        ["a", "b", "c"],
        ["a", "b", "c"],
        ["a", "b"],
    ]
    for words in (["create", "guest", "x"], ["dumpxml", "guest", "a", "--size"]):
        failure = vmkeep.fails("checkpoint", *words)
        assert (failure.code, failure.status) == ("vm-off", 18)
    file = tmp_path / "checkpoints.json"
    text(vmkeep, "checkpoint", "export", "guest", file)
    assert vmkeep.fails("checkpoint", "import", "guest", file, "--validate").code == "vm-off"

    # The disk that b is in as well cannot be reached: c is gone, b and a are whole.
    hidden = vm.disk_path("vdb").rename(tmp_path / "hidden.qcow2")
    failure = vmkeep.fails("checkpoint", "delete", "guest", "a", "--children")
    assert (failure.code, failure.status) == ("deletion-stopped", 37)
    assert "deleted checkpoints: 'c'; not deleted: 'b', 'a'" in failure.error["message"]
    assert "--metadata" in failure.error["hint"]
    hidden.rename(vm.disk_path("vdb"))
    assert forest(vmkeep) == {"a": None, "b": "a"}
    assert virsh(host, "checkpoint-list", "guest", "--name", "--topological").split() == ["a", "b"]  # libvirtd lives
    assert sorted(bitmaps(below)) == sorted(bitmaps(overlay)) == ["a", "b"]

    text(vmkeep, "checkpoint", "delete", "guest", "b")
    assert bitmaps(below) == bitmaps(overlay) == bitmaps(vm.disk_path("vdb")) == ["a"]
    text(vmkeep, "checkpoint", "delete", "guest", "a", "--metadata")
    assert forest(vmkeep) == {}
    assert bitmaps(below) == bitmaps(overlay) == bitmaps(vm.disk_path("vdb")) == ["a"]
    # Somebody removed a bitmap by hand: what is left of the checkpoint goes all the same.
    change_file(file, lambda moments: moments.__delitem__(slice(1, None)))
    text(vmkeep, "checkpoint", "import", "guest", file)
    qemu_img("bitmap", "--remove", vm.disk_path("vdb"), "a")
    text(vmkeep, "checkpoint", "delete", "guest", "a")
    assert (forest(vmkeep), bitmaps(below), bitmaps(overlay)) == ({}, [], [])


def test_snapshots_are_listed_edited_and_carried_as_checkpoints_are(host: Host, vmkeep: Vmkeep, tmp_path: Path) -> None:
    vm = define(host, "vda")
    virsh(host, "snapshot-create-as", "guest", "off")
    vm.start(paused=True)
    virsh(host, "snapshot-create-as", "guest", "Live", "--description", "with memory")
    spec = f"vda,snapshot=external,file={host.dir}/disks/o.qcow2"
    virsh(host, "snapshot-create-as", "guest", "disk", "--disk-only", "--diskspec", spec)
    whole = {"off": None, "Live": "off", "disk": "Live"}
    assert forest(vmkeep, "snapshot") == whole
    assert text(vmkeep, "snapshot", "tree", "guest") == virsh(host, "snapshot-list", "guest", "--tree")
    for options in (*(["--active"], ["--disk-only", "--inactive"], ["--external"], ["--no-metadata"], ["--current"]),):
        theirs = virsh(host, "snapshot-list", "guest", "--name", *options)
        assert text(vmkeep, "snapshot", "list", "guest", "--name", *options) == theirs, options
    assert text(vmkeep, "snapshot", "current", "guest", "--name").split() == ["disk"]
    assert text(vmkeep, "snapshot", "parent", "guest", "--current").split() == ["Live"]
    shown = vmkeep.json("snapshot", "info", "guest", "--current")["snapshot"]
    assert (shown["state"], shown["location"], shown["current"]) == ("disk-snapshot", "external", True)

    # What an edit changes is what was typed: the place of the snapshot, and which one is current, stay.
    edit(vmkeep, "snapshot", "edit", "guest", "disk", sed="s,<state>,<description>edited</description><state>,")
    refused = edit(vmkeep, "snapshot", "edit", "guest", "Live", sed="s,<name>Live<,<name>live<,")
    assert "neither --rename nor --clone" in refused.stderr
    renamed = edit(vmkeep, "snapshot", "edit", "guest", "Live", "--rename", sed="s,<name>Live<,<name>live<,")
    assert renamed.stdout == "snapshot live of guest redefined\n"
    assert forest(vmkeep, "snapshot") == {"off": None, "live": "off", "disk": "live"}
    edit(vmkeep, "snapshot", "edit", "guest", "disk", "--rename", sed="s,<name>disk<,<name>Disk<,")
    assert text(vmkeep, "snapshot", "current", "guest", "--name").split() == ["Disk"]
    edit(vmkeep, "snapshot", "edit", "guest", "live", "--clone", sed="s,<name>live<,<name>twin<,")
    whole = {"off": None, "live": "off", "twin": "off", "Disk": "live"}
    assert forest(vmkeep, "snapshot") == whole
    assert vmkeep.json("snapshot", "info", "guest", "Disk")["snapshot"]["description"] == "edited"

    # Forgotten as a whole and taken in again, with the same one current.
    before = {name: virsh(host, "snapshot-dumpxml", "guest", name, "--security-info") for name in whole}
    assert "passwd='sesame'" in before["live"]
    file = tmp_path / "snapshots.json"
    text(vmkeep, "snapshot", "export", "guest", file, "--security-info")
    gone = vmkeep.json("snapshot", "delete", "guest", "off", "--children", "--metadata")["deleted"]
    assert gone["snapshots"] == ["twin", "Disk", "live", "off"]
    assert forest(vmkeep, "snapshot") == {}
    text(vmkeep, "snapshot", "import", "guest", file)
    assert forest(vmkeep, "snapshot") == whole
    assert {name: virsh(host, "snapshot-dumpxml", "guest", name, "--security-info") for name in whole} == before
    assert virsh(host, "snapshot-current", "guest", "--name").split() == ["Disk"]

    # The current one moves only when it is said, and is not moved by a file.
    text(vmkeep, "snapshot", "current", "guest", "live")
    text(vmkeep, "snapshot", "import", "guest", file)
    assert virsh(host, "snapshot-current", "guest", "--name").split() == ["live"]
    document = tmp_path / "disk.xml"
    document.write_text(before["Disk"])
    text(vmkeep, "snapshot", "redefine", "guest", document, "--current", "--validate")
    assert virsh(host, "snapshot-current", "guest", "--name").split() == ["Disk"]
    assert virsh(host, "snapshot-dumpxml", "guest", "Disk", "--security-info") == before["Disk"]

    # A deletion that libvirt carries out: the overlay is committed, and its snapshot gone.
    spec = f"vda,snapshot=external,file={host.dir}/disks/last.qcow2"
    virsh(host, "snapshot-create-as", "guest", "last", "--disk-only", "--diskspec", spec)
    vm.write("vda", start=0, length=MiB, pattern=0x5A)
    truth = vm.read_image("vda")
    text(vmkeep, "snapshot", "delete", "guest", "--current")
    assert forest(vmkeep, "snapshot") == whole
    assert vm.disk_path("vda").name == "o.qcow2"
    assert vm.read_image("vda") == truth
    # What libvirt does not carry out is told with its reason, and nothing of it was done.
    failure = vmkeep.fails("snapshot", "delete", "guest", "live", "--children")
    assert (failure.code, "'Disk'" in failure.error["message"]) == ("hypervisor-error", True)
    assert forest(vmkeep, "snapshot") == whole
