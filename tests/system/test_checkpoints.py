"""`vmkeep checkpoint` on one running VM, beside virsh: the same forest, the same text, and nothing half done."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep
from tests.system.held import held_in_its_copy
from tests.system.momentbed import edit, forest, kept_file, remove_bitmap_in_qemu, text, virsh

pytestmark = pytest.mark.system

VNC = "<graphics type='vnc' passwd='sesame'><listen type='none'/></graphics>"
FOREST = {"a": None, "B": "a", "c": "B", "d": "a"}
LISTS = [[], ["--roots"], ["--leaves"], ["--no-leaves", "--from", "a"], ["--from", "a", "--descendants"]]
DRAWINGS = [[], ["--from", "a"], ["--from", "a", "--descendants"]]


@pytest.fixture(scope="module")
def guest(session_host: Host) -> Iterator[Vm]:
    """A running VM with two qcow2 disks and a raw one. It is made once: no test of this module uses ``host``."""
    disks = [Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB), Disk("vdc", 4 * MiB, format="raw")]
    vm = session_host.define("guest", disks=disks, firmware="bios", tpm=False, memory_mib=32, device_xml=(VNC,))
    vm.start(paused=True)
    yield vm
    session_host.clear()


@pytest.fixture
def vm(guest: Vm, session_host: Host, tmp_path: Path) -> Iterator[Vm]:
    """The VM with four checkpoints by virsh, two of them siblings: a has B and d, B has c."""
    for name, disks in (("a", "vda vdb"), ("B", "vda"), ("c", "vda vdb"), ("d", "vda")):
        specs = [word for disk in disks.split() for word in ("--diskspec", disk)]
        virsh(session_host, "checkpoint-create-as", "guest", name, *specs)
    moved = tmp_path / "d.xml"
    moved.write_text(definition(session_host, "d").replace("<name>c</name>", "<name>a</name>"))
    virsh(session_host, "checkpoint-create", "guest", moved, "--redefine")
    yield guest
    for checkpoint in guest.domain.listAllCheckpoints():
        checkpoint.delete()


@pytest.fixture
def vmkeep(session_host: Host, tmp_path: Path) -> Vmkeep:
    return Vmkeep(session_host, home=tmp_path / "home")


def definition(host: Host, name: str, *options: str) -> str:
    return virsh(host, "checkpoint-dumpxml", "guest", name, "--security-info", *options)


def dirty(vmkeep: Vmkeep, name: str) -> dict[str, int]:
    """Return what changed since a checkpoint in each disk whose bitmap is sound."""
    xml = text(vmkeep, "checkpoint", "dumpxml", "guest", name, "--size", "--no-domain")
    disks = etree.fromstring(xml).iterfind("disks/disk[@size]")
    return {str(disk.get("name")): int(str(disk.get("size"))) for disk in disks}


def deleted(vmkeep: Vmkeep, *words: str) -> list[str]:
    names: list[str] = vmkeep.json("checkpoint", "delete", "guest", *words)["deleted"]["checkpoints"]
    return names


def test_lists_and_drawings_are_the_text_of_virsh(vm: Vm, vmkeep: Vmkeep) -> None:
    host = vm.host
    assert forest(vmkeep) == FOREST
    for options in LISTS:
        theirs = virsh(host, "checkpoint-list", "guest", "--name", *options)
        assert text(vmkeep, "checkpoint", "list", "guest", "--name", *options) == theirs, options
    for options in DRAWINGS:
        theirs = virsh(host, "checkpoint-list", "guest", "--tree", *options)
        assert text(vmkeep, "checkpoint", "list", "guest", "--tree", *options) == theirs, options
    assert text(vmkeep, "checkpoint", "list", "guest", "--name", "--topological").split() == ["a", "B", "c", "d"]


def test_what_is_told_of_one_is_what_virsh_tells(vm: Vm, vmkeep: Vmkeep) -> None:
    host = vm.host
    assert (
        text(vmkeep, "checkpoint", "parent", "guest", "c").strip()
        == virsh(host, "checkpoint-parent", "guest", "c").strip()
    )
    for options in (
        [],
        ["--no-domain"],
        ["--security-info"],
        ["--xpath", "//disk|//@id"],
        ["--xpath", "//disk", "--wrap"],
    ):
        theirs = virsh(host, "checkpoint-dumpxml", "guest", "B", *options)
        assert text(vmkeep, "checkpoint", "dumpxml", "guest", "B", *options).rstrip() == theirs.rstrip(), options
    shown = vmkeep.json("checkpoint", "info", "guest", "a")["checkpoint"]
    assert (shown["children"], shown["descendants"]) == (["B", "d"], 3)
    assert shown["disks"] == [{"target": "vda", "bitmap": "a"}, {"target": "vdb", "bitmap": "a"}]
    listed = text(vmkeep, "checkpoint", "list", "guest", "--parent").splitlines()
    assert [line.split() for line in listed][1][0::4] == ["a", "vdb"]
    assert vmkeep.run("checkpoint", "parent", "guest", "a").returncode == 8
    for words in (["info", "guest", "gone"], ["list", "guest", "--from", "gone"]):
        failure = vmkeep.fails("checkpoint", *words)
        assert (failure.code, failure.error["vm"]) == ("moment-not-found", "guest"), words


def test_a_new_checkpoint_takes_what_can_hold_a_bitmap(guest: Vm, vmkeep: Vmkeep, tmp_path: Path) -> None:
    created = vmkeep.run("checkpoint", "create", "guest", "one", "--description", "the <first>")
    assert created.stdout == "checkpoint one of guest created: vda, vdb\n"
    assert created.stderr == "vmkeep: disk vdc is left out, because its format is raw, which holds no bitmaps\n"
    # libvirt itself would refuse that VM a checkpoint of all disks.
    with pytest.raises(libvirt.libvirtError, match="unsupported for storage type raw"):
        guest.domain.checkpointCreateXML("<domaincheckpoint/>")
    document = tmp_path / "two.xml"
    document.write_text("<domaincheckpoint><name>two</name><disks><disk name='vdb'/></disks></domaincheckpoint>")
    vmkeep.json("checkpoint", "create", "guest", "--xml", document)
    printed = text(vmkeep, "checkpoint", "create", "guest", "x", "--diskspec", "vda", "--print-xml")
    assert "<disk name='vda' checkpoint='bitmap' bitmap='x'/>" in printed
    unnamed = vmkeep.json("checkpoint", "create", "guest", "--diskspec", "vda")["checkpoint"]["name"]
    assert forest(vmkeep) == {"one": None, "two": "one", unnamed: "two"}
    guest.write("vda", start=0, length=MiB)
    assert dirty(vmkeep, "one") == {"vda": MiB, "vdb": 0}
    assert dirty(vmkeep, "two") == {"vdb": 0}
    for words, code in (
        (["x", "--diskspec", "vdc"], "moment-invalid"),
        (["x", "--diskspec", "vdz"], "moment-invalid"),
        (["x", "--diskspec", "vda", "--diskspec", str(guest.disk_path("vda"))], "moment-invalid"),
        (["x", "--diskspec", "vda,bitmap=other"], "moment-invalid"),
        (["x", "--diskspec", "vda,checkpoint=no"], "moment-invalid"),
        (["not/a/name"], "moment-invalid"),
        (["one"], "moment-exists"),
    ):
        failure = vmkeep.fails("checkpoint", "create", "guest", *words)
        assert (failure.code, failure.error["vm"]) == (code, "guest"), words
    assert deleted(vmkeep, "one", "--children") == [unnamed, "two", "one"]


def test_a_name_whose_bitmap_was_left_is_refused_and_nothing_is_made(vm: Vm, vmkeep: Vmkeep) -> None:
    assert "forgotten" in text(vmkeep, "checkpoint", "delete", "guest", "c", "--metadata")
    failure = vmkeep.fails("checkpoint", "create", "guest", "c", "--diskspec", "vda")
    assert failure.code == "moment-exists"
    assert "bitmap of that name" in failure.error["hint"]
    assert forest(vmkeep) == {"a": None, "B": "a", "d": "a"}
    virsh(vm.host, "checkpoint-create-as", "guest", "c2", "--diskspec", "vda")
    assert deleted(vmkeep, "c2") == ["c2"]
    for target in ("vda", "vdb"):
        remove_bitmap_in_qemu(vm, "c", target)


def test_deletions_leave_a_whole_forest_and_the_bitmaps_of_the_others(vm: Vm, vmkeep: Vmkeep) -> None:
    vm.write("vda", start=MiB, length=MiB)
    sizes = {name: dirty(vmkeep, name) for name in ("a", "c", "d")}
    assert sizes["a"]["vda"] == MiB
    assert deleted(vmkeep, "B") == ["B"]
    assert forest(vmkeep) == {"a": None, "c": "a", "d": "a"}
    assert {name: dirty(vmkeep, name) for name in ("a", "c", "d")} == sizes
    assert deleted(vmkeep, "a", "--children-only") == ["d", "c"]
    assert forest(vmkeep) == {"a": None}
    assert dirty(vmkeep, "a") == sizes["a"]
    assert deleted(vmkeep, "a", "--children-only") == []
    assert deleted(vmkeep, "a", "--children") == ["a"]
    assert text(vmkeep, "checkpoint", "list", "guest") == "no checkpoints\n"


def test_a_checkpoint_that_lost_a_bitmap_is_deleted_with_the_others(vm: Vm, vmkeep: Vmkeep) -> None:
    remove_bitmap_in_qemu(vm, "c", "vda")
    with pytest.raises(libvirt.libvirtError, match="not found in backing chain"):
        vm.domain.checkpointLookupByName("c").delete()
    assert dirty(vmkeep, "c") == {"vdb": 0}
    assert deleted(vmkeep, "a", "--children") == ["d", "c", "B", "a"]
    # The bitmap that was there went too: its name is free again.
    text(vmkeep, "checkpoint", "create", "guest", "c", "--diskspec", "vdb")


def test_checkpoints_come_and_go_beside_a_backup_job_of_somebody_else(vm: Vm, vmkeep: Vmkeep) -> None:
    with vm.own_backup_job(["vda"], since="B"):
        assert deleted(vmkeep, "B") == ["B"]
        text(vmkeep, "checkpoint", "create", "guest", "e", "--diskspec", "vda")
        assert forest(vmkeep)["e"] == "d"


def test_a_redefined_checkpoint_keeps_its_domain_and_its_passwords(vm: Vm, vmkeep: Vmkeep, tmp_path: Path) -> None:
    whole = definition(vm.host, "c")
    assert "passwd='sesame'" in whole
    document = tmp_path / "c.xml"
    for options in (["--no-domain"], []):
        document.write_text(text(vmkeep, "checkpoint", "dumpxml", "guest", "c", *options))
        assert "sesame" not in document.read_text()
        text(vmkeep, "checkpoint", "redefine", "guest", document, "--validate")
        assert definition(vm.host, "c") == whole
    assert forest(vmkeep) == FOREST


def test_redefining_what_cannot_be_is_refused_before_libvirt_is_asked(vm: Vm, vmkeep: Vmkeep, tmp_path: Path) -> None:
    whole = definition(vm.host, "a", "--no-domain")
    document = tmp_path / "x.xml"
    parent = "<parent><name>{}</name></parent><creationTime>"
    for changed, words in (
        (whole.replace("<creationTime>", parent.format("c")), "parent B would create cycle to a"),
        (whole.replace("<creationTime>", parent.format("gone")), "parent gone for moment a not found"),
        (whole.replace("<creationTime>", parent.format("a")), "as its own parent"),
        (whole.replace("creationTime", "createdTime"), "cannot hold <createdTime>"),
        (whole[:-5], "not well-formed"),
    ):
        document.write_text(changed)
        failure = vmkeep.fails("checkpoint", "redefine", "guest", document)
        assert failure.code == "moment-invalid"
        assert words in failure.error["message"]
    document.write_text(whole.replace("<name>a<", "<name>ghost<").replace("bitmap='a'", "bitmap='ghost'"))
    failure = vmkeep.fails("checkpoint", "redefine", "guest", document, "--validate")
    assert (failure.code, failure.status) == ("checkpoint-broken", 24)
    assert "'ghost'" in failure.error["message"]
    assert vmkeep.fails("checkpoint", "redefine", "guest", tmp_path / "none").code == "host-file-missing"
    assert forest(vmkeep) == FOREST


def test_an_edit_is_taken_or_kept_in_a_file(vm: Vm, vmkeep: Vmkeep) -> None:
    words = ("checkpoint", "edit", "guest", "B")
    added = edit(vmkeep, *words, sed="s,<creationTime>,<description>by hand</description><creationTime>,")
    assert added.stdout == "checkpoint B of guest redefined\n"
    assert vmkeep.json("checkpoint", "info", "guest", "B")["checkpoint"]["description"] == "by hand"
    assert "passwd='sesame'" in definition(vm.host, "B")
    for sed, status, said in (
        ("s,<name>B<,<name>Z<,", 2, "cannot be renamed to 'Z'"),
        ("s,<name>a<,<name>c<,", 2, "parent c would create cycle to B"),
        ('s,name=.vda.,name="vdz",', 2, "vdz"),
    ):
        refused = edit(vmkeep, *words, sed=sed)
        assert refused.returncode == status
        assert said in refused.stderr
        kept = kept_file(refused.stderr)
        assert sed.split(",")[2] in kept.read_text()
        kept.unlink()
        kept.parent.rmdir()
    assert edit(vmkeep, *words, sed="").stdout == "checkpoint B of guest was not changed\n"
    assert forest(vmkeep) == FOREST


def test_an_import_that_is_ended_midway_is_taken_back_and_one_that_is_killed_goes_on(
    vm: Vm, vmkeep: Vmkeep, tmp_path: Path
) -> None:
    file = tmp_path / "many.json"
    text(vmkeep, "checkpoint", "export", "guest", file)
    document = json.loads(file.read_text())
    names = [f"n{number}" for number in range(60)]
    for name, parent in zip(names, ["c", *names], strict=False):
        head = f"<domaincheckpoint><name>{name}</name><parent><name>{parent}</name></parent>"
        disks = "<disks><disk name='vda' checkpoint='no'/></disks>"
        xml = f"{head}<creationTime>1</creationTime>{disks}</domaincheckpoint>"
        document["moments"].append({"name": name, "xml": xml})
    file.write_text(json.dumps(document))
    assert _signalled(vmkeep, vm, file, signal.SIGINT) == 130
    assert forest(vmkeep) == FOREST
    assert _signalled(vmkeep, vm, file, signal.SIGKILL) == -signal.SIGKILL
    listed = set(forest(vmkeep))
    assert FOREST.keys() < listed < {*FOREST, *names}
    done = vmkeep.json("checkpoint", "import", "guest", file)["imported"]
    assert set(done["equal"]) == listed
    assert set(forest(vmkeep)) == {*FOREST, *names}


def _signalled(vmkeep: Vmkeep, vm: Vm, file: Path, number: signal.Signals) -> int:
    """Start an import, send it a signal when it has begun, and return its exit status."""
    with vmkeep.start("checkpoint", "import", "guest", file) as process:
        while len(vm.domain.listAllCheckpoints()) < len(FOREST) + 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        os.kill(process.pid, number)
        process.communicate(timeout=120)
    return process.returncode


def test_while_a_backup_runs_changes_are_refused_and_looking_is_not(vm: Vm, vmkeep: Vmkeep) -> None:
    vm.write("vda", start=0, length=4 * MiB)
    vmkeep.json("init")
    with held_in_its_copy(vm, vmkeep) as process:
        for words in (["create", "guest", "x", "--diskspec", "vda"], ["delete", "guest", "a"]):
            failure = vmkeep.fails("checkpoint", *words)
            assert (failure.code, failure.error["vm"]) == ("vm-busy", "guest")
        # Names alone: QEMU answers about bitmaps only when a client that stands still has taken its reply.
        assert set(FOREST) <= set(text(vmkeep, "checkpoint", "list", "guest", "--name").split())
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert '"kind": "full"' in output


def test_what_the_next_point_is_read_against_is_deleted_only_after_a_yes(guest: Vm, vmkeep: Vmkeep) -> None:
    base = vmkeep.backup("guest")["checkpoint"]
    failure = vmkeep.fails("checkpoint", "delete", "guest", base)
    assert (failure.code, "--yes" in failure.error["message"]) == ("invalid-request", True)
    assert forest(vmkeep) == {base: None}
    assert deleted(vmkeep, base, "--yes") == [base]
    point = vmkeep.backup("guest")
    reasons = {disk["target"]: disk["reason"] for disk in point["disks"]}
    assert reasons["vda"] == reasons["vdb"] == "checkpoint-lost"
    assert guest.host.connection.isAlive()
