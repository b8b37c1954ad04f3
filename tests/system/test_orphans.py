"""`vmkeep orphans`: state on the host that belongs to no VM, found and deleted, with the real libvirt."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from typing import Any
from uuid import uuid4

import libvirt
import pytest

from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep

pytestmark = pytest.mark.system

_KEEP = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
_METADATA = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA


def orphans(vmkeep: Vmkeep) -> dict[str, dict[str, Any]]:
    document = vmkeep.json("orphans", "list")
    assert document["problems"] == []
    return {orphan["kind"]: orphan for orphan in document["orphans"]}


def run_once(host: Host, name: str, **of_vm: Any) -> Vm:
    vm = host.define(name, disks=[Disk("vda", MiB)], **of_vm)
    vm.start(paused=True)
    vm.destroy()
    return vm


def test_what_an_undefined_vm_left_is_told_with_what_is_kept_of_it_and_deleted_whole(
    host: Host, vmkeep: Vmkeep
) -> None:
    vm = run_once(host, "guest")
    other = run_once(host, "other")
    vmkeep.backup("guest")
    assert orphans(vmkeep) == {}
    nvram, tpm = vm.nvram_path, vm.tpm_directory
    content = vm.tpm_state()
    vm.domain.undefineFlags(_KEEP | _METADATA)
    found = orphans(vmkeep)
    assert set(found) == {"tpm", "nvram"}
    for kind, orphan in found.items():
        assert (orphan["vm"], orphan["vm_uuid"], orphan["kept"], orphan["in_use"]) == ("guest", vm.uuid, True, False)
        assert {file["kept"] for file in orphan["files"]} <= {"newest", "empty"}, kind
    (main,) = [file for file in found["tpm"]["files"] if file["sha256"] == hashlib.sha256(content).hexdigest()]
    assert main["path"] == f"/var/lib/libvirt/swtpm/{vm.uuid}/tpm2/tpm2-00.permall"
    assert (main["version"], main["size_bytes"]) == (1, len(content))
    doctor = json.loads(vmkeep.run("--json", "doctor").stdout)["doctor"]
    (told,) = [finding for finding in doctor["findings"] if finding["code"] == "orphaned-state"]
    assert (told["severity"], told["remedy"]) == ("note", "vmkeep orphans list")
    assert "2" in told["message"]

    deleted = vmkeep.json("orphans", "delete", "--all-kept", "--yes")["deleted"]
    assert {path for each in deleted for path in each["removed"]} >= {main["path"], found["nvram"]["path"]}
    assert not nvram.exists()
    assert not tpm.exists()
    assert other.tpm_directory.exists()
    assert other.nvram_path.exists()
    assert orphans(vmkeep) == {}


def test_what_no_version_has_is_not_deleted_unless_that_is_said(host: Host, vmkeep: Vmkeep) -> None:
    vm = run_once(host, "guest")
    vmkeep.backup("guest")
    vm.change_tpm()
    vm.domain.undefineFlags(_KEEP | _METADATA)
    found = orphans(vmkeep)
    assert (found["tpm"]["kept"], found["nvram"]["kept"]) == (False, True)
    refused = vmkeep.fails("orphans", "delete", vm.uuid, "--yes")
    assert (refused.code, refused.error["path"]) == ("invalid-request", found["tpm"]["path"])
    assert "--unkept" in refused.error["hint"]
    vmkeep.json("orphans", "delete", "--all-kept", "--yes")
    assert set(orphans(vmkeep)) == {"tpm"}
    shown = vmkeep.run("orphans", "list").stdout
    assert found["tpm"]["path"] in shown
    strange = vm.tpm_directory / "tpm2" / "somebody's"
    strange.mkdir()
    failed = vmkeep.fails("orphans", "delete", vm.uuid, "--unkept", "--yes")
    assert (failed.code, failed.status) == ("incomplete", 37)
    assert failed.document is not None
    (deleted,) = failed.document["deleted"]
    assert [path.rpartition("/")[2] for path in deleted["removed"]] == ["tpm2-00.permall", ".lock"]
    assert len(deleted["left"]) == 2
    strange.rmdir()
    vmkeep.json("orphans", "delete", vm.uuid, "--unkept", "--yes")
    assert not vm.tpm_directory.exists()


def test_vm_undefined_with_its_state_leaves_nothing(host: Host, vmkeep: Vmkeep) -> None:
    vm = run_once(host, "guest")
    vm.undefine()
    assert orphans(vmkeep) == {}
    assert vmkeep.json("orphans", "list")["secrets"] == []


def test_state_of_a_vm_that_is_defined_runs_or_is_named_by_a_snapshot_or_saved_is_no_orphan(
    host: Host, vmkeep: Vmkeep
) -> None:
    def elsewhere(root: Any) -> None:
        os_element = root.find("os")
        os_element.append(root.makeelement("nvram", {}))
        os_element.find("nvram").text = "/var/lib/libvirt/qemu/nvram/of-another-name.fd"

    vm = run_once(host, "guest", edit=elsewhere)
    assert vmkeep.fails("orphans", "delete", vm.uuid, "--yes").code == "invalid-request"
    xml = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    snapshot = "<domainsnapshot><name>before</name><memory snapshot='no'/></domainsnapshot>"
    vm.domain.snapshotCreateXML(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    vm.host.connection.defineXML(vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).replace("of-another-name", "new"))
    assert orphans(vmkeep) == {}, "a snapshot names it"
    vm.domain.undefineFlags(_KEEP | _METADATA)
    assert set(orphans(vmkeep)) == {"tpm", "nvram"}
    host.connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)  # a transient VM
    assert orphans(vmkeep) == {}
    host.connection.defineXML(xml)
    vm.domain.managedSave()
    assert orphans(vmkeep) == {}


def test_state_that_a_swtpm_has_and_secrets_are_told_and_not_deleted(host: Host, vmkeep: Vmkeep) -> None:
    vm = run_once(host, "guest")
    secret = host.define_secret(b"value", name="gone-vm")
    vm.domain.undefineFlags(_KEEP)
    assert vmkeep.json("orphans", "list")["secrets"] == [{"uuid": secret, "usage": "gone-vm"}]
    assert "virsh secret-undefine" in vmkeep.fails("orphans", "delete", secret, "--yes").error["hint"]
    directory = f"/var/lib/libvirt/swtpm/{vm.uuid}/tpm2"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}", "--ctrl", "type=unixio,path=/run/x.sock"]
    swtpm = host.popen([*command, "--flags", "startup-clear"])
    try:
        for _ in range(100):
            if host.path("/run/x.sock").exists():
                break
            subprocess.run(["sleep", "0.05"], check=True)
        assert orphans(vmkeep)["tpm"]["in_use"]
        assert vmkeep.fails("orphans", "delete", vm.uuid, "--unkept", "--yes").code == "vm-busy"
    finally:
        swtpm.terminate()
        swtpm.communicate()
    vmkeep.json("orphans", "delete", vm.uuid, "--unkept", "--yes")
    assert not vm.tpm_directory.exists()


def test_what_an_operation_has_beside_and_other_names_are_nobodys_orphans(host: Host, vmkeep: Vmkeep) -> None:
    swtpm, nvram = host.path("/var/lib/libvirt/swtpm"), host.path("/var/lib/libvirt/qemu/nvram")
    swtpm.mkdir(exist_ok=True)
    nvram.mkdir(exist_ok=True, parents=True)
    restored = str(uuid4())
    for name in (restored, f".{restored}.0123456789ab.published", f".{uuid4()}.0123456789ab.replaced", "of-somebody"):
        (swtpm / name).mkdir()
    for name in (".new_VARS.fd.0123456789ab.partial", "new_VARS.fd", ".hidden"):
        (nvram / name).write_bytes(b"x")
    (swtpm / str(uuid4())).symlink_to("/etc")
    os.mkfifo(nvram / "pipe_VARS.fd")
    assert orphans(vmkeep) == {}
    odd = os.fsdecode(b'odd\n\x1b[31m"\xff\xe2\x80\xae_VARS.fd')
    (nvram / odd).write_bytes(b"y")
    assert orphans(vmkeep)["nvram"]["path"] == f"/var/lib/libvirt/qemu/nvram/{odd}"
    assert "\x1b" not in vmkeep.run("orphans", "list").stdout
    vmkeep.json("orphans", "delete", f"/var/lib/libvirt/qemu/nvram/{odd}", "--unkept", "--yes")
    assert orphans(vmkeep) == {}


def test_version_that_nothing_holds_any_more_keeps_nothing(host: Host, vmkeep: Vmkeep) -> None:
    vm = run_once(host, "guest")
    vmkeep.json("state", "capture", "guest")
    (vmkeep.home / "vmkeep.toml").write_text('state_versions = "last=1"\n')
    old = vm.tpm_state()
    vm.change_tpm()
    vmkeep.json("state", "capture", "guest")
    permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    newest = permall.read_bytes()
    vm.domain.undefineFlags(_KEEP)
    assert {kind: orphan["kept"] for kind, orphan in orphans(vmkeep).items()} == {"tpm": True, "nvram": True}
    permall.write_bytes(old)
    assert not orphans(vmkeep)["tpm"]["kept"]
    permall.write_bytes(newest)
    assert orphans(vmkeep)["tpm"]["kept"]
    vmkeep.json("orphans", "delete", "--all-kept", "--yes")
    assert orphans(vmkeep) == {}


def test_what_is_kept_of_an_orphan_never_becomes_the_newest_and_deleting_it_loses_nothing(
    host: Host, vmkeep: Vmkeep
) -> None:
    vm = run_once(host, "guest")
    vmkeep.json("state", "capture", "guest")
    vm.change_tpm()
    orphan = hashlib.sha256(vm.tpm_state()).hexdigest()
    vm.domain.undefineFlags(_KEEP)
    (kept,) = vmkeep.json("orphans", "keep", vm.uuid)["kept"]
    (new,) = kept["new"]
    assert (new["sha256"], new["version"], new["conflict"], kept["left"]) == (orphan, 1, True, [])
    assert vmkeep.json("orphans", "keep", vm.uuid)["kept"][0]["new"] == []
    versions = vmkeep.json("state", "versions", vm.uuid, "--kind", "tpm")["versions"]
    assert [(each["sha256"] == orphan, each["current"], each["conflict"]) for each in versions] == [
        (False, True, False),
        (True, False, True),
    ]
    tpm = orphans(vmkeep)["tpm"]
    assert (tpm["kept"], [file["kept"] for file in tpm["files"] if file["sha256"] == orphan]) == (True, ["conflict"])
    vmkeep.json("orphans", "delete", vm.uuid, "--yes")
    # Also when the catalogue is lost.
    for path in vmkeep.home.glob("catalog.sqlite*"):
        path.unlink()
    vmkeep.json("init", "--adopt")
    found = vmkeep.json("state", "versions", vm.uuid, "--kind", "tpm")["versions"]
    assert {(each["sha256"], each["current"]) for each in found} == {
        (each["sha256"], each["current"]) for each in versions
    }


def test_orphan_of_a_vm_that_nothing_is_known_of_is_its_first_version(host: Host, vmkeep: Vmkeep) -> None:
    vm = run_once(host, "guest")
    defined = vm.xml()
    nvram = "/var/lib/libvirt/qemu/nvram/guest_VARS.fd"
    vm.domain.undefineFlags(_KEEP)
    vmkeep.json("orphans", "keep", vm.uuid)
    (tpm,) = vmkeep.json("state", "versions", vm.uuid)["versions"]
    assert (tpm["kind"], tpm["version"], tpm["current"]) == ("tpm", 1, True)
    assert vmkeep.fails("orphans", "keep", nvram).code == "invalid-request"
    assert vmkeep.fails("orphans", "keep", vm.uuid, "--vm", str(uuid4())).code == "invalid-request"
    host.path(nvram).rename(host.path(nvram).with_name("old_VARS.fd"))
    host.connection.defineXML(defined)
    nvram = nvram.replace("guest_", "old_")
    refused = vmkeep.fails("orphans", "keep", nvram, "--vm", vm.uuid)
    assert "state capture" in refused.error["hint"], "it is defined, and would have an older state as its newest"
    vm.domain.undefineFlags(_KEEP)
    (kept,) = vmkeep.json("orphans", "keep", nvram, "--vm", vm.uuid)["kept"]
    assert [(new["kind"], new["conflict"]) for new in kept["new"]] == [("nvram", False)]
    assert {kind: each["kept"] for kind, each in orphans(vmkeep).items()} == {"tpm": True, "nvram": True}


def test_orphan_that_was_kept_and_deleted_comes_back_by_its_content(host: Host, vmkeep: Vmkeep) -> None:
    vm = run_once(host, "guest")
    vmkeep.backup("guest")
    defined = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    newest = vm.tpm_state()
    vm.change_tpm()
    orphan = vm.tpm_state()
    vm.domain.undefineFlags(_KEEP | _METADATA)
    vmkeep.json("orphans", "keep", vm.uuid)
    vmkeep.json("orphans", "delete", vm.uuid, "--yes")
    host.connection.defineXML(defined)
    vmkeep.json("state", "restore", "guest", "--kind", "tpm", "--yes")
    assert vm.tpm_state() == newest
    wanted = hashlib.sha256(orphan).hexdigest()
    assert vmkeep.fails("state", "restore", "guest", "--version", "x", "--yes").code == "invalid-request"
    vmkeep.json("state", "restore", "guest", "--kind", "tpm", "--version", wanted[:12], "--yes")
    assert vm.tpm_state() == orphan
    (tpm,) = [state for state in vmkeep.json("state", "list")["states"] if state["kind"] == "tpm"]
    assert tpm["standing"] == "current"
