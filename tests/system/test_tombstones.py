"""What a removal could not delete on its host: recorded, tried again by its content alone, and proved afterwards."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import libvirt
import pytest

from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep

pytestmark = pytest.mark.system

_VALUE = b"opens the state of the TPM"


@pytest.fixture
def vm(host: Host) -> Iterator[Vm]:
    secret = host.define_secret(_VALUE)
    backend = f"<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"
    made = host.define("guest", disks=[Disk("vda", MiB)], firmware="bios", tpm_backend=backend)
    made.start(paused=True)
    made.destroy()
    yield made
    host.clear()


@contextmanager
def read_only(host: Host, place: str) -> Iterator[None]:
    """Mount a directory read-only over itself, in its host."""
    host.run(["mount", "--bind", place, place], check=True)
    host.run(["mount", "-o", "remount,bind,ro", place], check=True)
    try:
        yield
    finally:
        host.run(["umount", place], check=True)


def unwritable(vm: Vm) -> AbstractContextManager[None]:
    return read_only(vm.host, f"/var/lib/libvirt/swtpm/{vm.uuid}")


def test_state_that_could_not_be_deleted_is_deleted_later_and_only_if_it_is_that(
    host: Host, vm: Vm, vmkeep: Vmkeep, tmp_path: Path
) -> None:
    point = vmkeep.backup("guest")
    content = vm.tpm_state()
    file = f"/var/lib/libvirt/swtpm/{vm.uuid}/tpm2/tpm2-00.permall"
    with unwritable(vm):
        removed = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
        (left,) = [each for each in removed["left"] if file in each]
        assert "Read-only file system" in left
        assert (removed["secret"]["undefined"], host.secrets()) == (True, {})
        assert "<tpm" not in vm.domain.XMLDesc(2)
        assert vm.tpm_state() == content
        refused = vmkeep.fails("tombstones", "retry", "--all")
        assert (refused.code, refused.error["path"].startswith("/var/lib/libvirt/swtpm/")) == ("incomplete", True)
    (tombstone,) = vmkeep.json("tombstones", "list")["tombstones"]
    assert removed["tombstones"] == [tombstone["id"]]
    assert (tombstone["state"], tombstone["tries"], tombstone["protection"]) == ("retried", 1, "away")
    named = {each["path"]: each["sha256"] for each in tombstone["files"]}
    assert named[file] == hashlib.sha256(content).hexdigest()
    findings = json.loads(vmkeep.run("--json", "doctor", "guest").stdout)["doctor"]["findings"]
    told = {each["code"]: each["message"] for each in findings}["tombstone-open"]
    assert file in told
    assert "encrypted, and libvirt's secret is gone" in told

    # Whoever has swtpm's rights puts something else there: it is named, and stays.
    path = host.path(file)
    other = tmp_path / "other"
    other.write_bytes(content)
    path.unlink()
    path.symlink_to(other)
    assert "is a link" in vmkeep.fails("tombstones", "retry", tombstone["id"][:8]).error["message"]
    assert other.read_bytes() == content
    path.unlink()
    path.write_bytes(content + b"x")
    assert "is another file" in vmkeep.fails("tombstones", "retry", "--all").error["message"]
    assert path.read_bytes() == content + b"x"
    path.write_bytes(content)
    (tried,) = vmkeep.json("tombstones", "retry", "--all")["tried"]
    assert file in tried["removed"]
    assert (tried["tombstone"]["state"], tried["tombstone"]["ending"]) == ("settled", "deleted")
    assert not vm.tpm_directory.exists()
    assert vmkeep.json("tombstones", "list")["tombstones"] == []
    assert vmkeep.fails("tombstones", "retry", tombstone["id"]).code == "invalid-request"

    report = host.dir / "work" / "removal.txt"
    (shown,) = vmkeep.json("tpm", "removal", "show", "guest", "--text", report)["removals"]
    assert (shown["id"], shown["trusted"], shown["trust"], shown["open"]) == (removed["removal"], True, "own", [])
    outcomes = {each["path"]: each["outcome"] for each in shown["files"]}
    assert outcomes[file] == "failed"
    assert shown["secret"]["held_by"] == [{"kind": "point", "id": point["id"], "until": None}]
    (version,) = shown["versions"]
    assert (version["held_by"], version["until"]) == ([point["id"]], None)
    (fact,) = shown["facts"]
    assert (fact["event"], fact["of"], fact["trusted"]) == ("settled", shown["id"], True)
    assert {each["path"]: each["outcome"] for each in fact["files"]}[file] == "deleted"
    assert "the signature is right" in report.read_text(encoding="utf-8")
    assert vmkeep.json("verify", "--all")["ok"] is True
    assert vmkeep.json("tpm", "removal", "list")["removals"][0]["outcome"] == "deleted"

    # A TPM that came back at the same place ends the deletion of what lies there.
    vmkeep.json("tpm", "add", "guest", "--from", "1")
    with unwritable(vm):
        again = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
        assert len(again["tombstones"]) == 1
    vmkeep.json("tpm", "add", "guest", "--from", point["id"])
    assert vmkeep.json("tombstones", "list")["tombstones"] == []
    settled = vmkeep.json("tombstones", "list", "--all")["tombstones"][-1]
    assert (settled["id"], settled["ending"]) == (again["tombstones"][0], "superseded")
    assert vm.tpm_state() == content
    assert [each["outcome"] for each in vmkeep.json("tpm", "removal", "list")["removals"]] == ["has a TPM again"] * 2

    # What belongs to no VM any more is as well recorded, and tried although the VM is gone.
    vm.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    with unwritable(vm):
        vmkeep.fails("orphans", "delete", vm.uuid, "--yes")
    (orphaned,) = vmkeep.json("tombstones", "list")["tombstones"]
    assert [each["path"] for each in orphaned["files"]] == [file]
    waived = vmkeep.json("tombstones", "waive", orphaned["id"], "--yes", "--reason", "shredded")["waived"]
    assert (waived["state"], waived["why"]) == ("waived", "shredded")
    assert "root" in waived["who"]
    with unwritable(vm):
        vmkeep.fails("orphans", "delete", vm.uuid, "--yes")
    (tried,) = vmkeep.json("tombstones", "retry", "--all")["tried"]
    assert file in tried["removed"]
    assert not vm.tpm_directory.exists()


def test_secret_that_libvirt_did_not_undefine_goes_with_a_later_command_that_does_other_work(
    host: Host, vm: Vm, vmkeep: Vmkeep
) -> None:
    point = vmkeep.backup("guest")
    (secret,) = host.secrets()
    with read_only(host, "/etc/libvirt/secrets"):
        removed = vmkeep.json("tpm", "remove", "guest", "--yes")["removed"]
        assert (removed["secret"]["undefined"], len(removed["tombstones"])) == (False, 1)
        assert "did not undefine it" in removed["secret"]["stays"]
    assert not vm.tpm_directory.exists()
    listed = vmkeep.run("tombstones", "list").stdout
    assert secret in listed
    assert "in plain on the same host" in listed
    assert vmkeep.json("tpm", "removal", "list", "guest")["removals"][0]["outcome"] == "not all deleted"
    vmkeep.backup("guest")  # it is not due yet
    assert host.secrets() == {secret: _VALUE}
    with closing(sqlite3.connect(vmkeep.home / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("UPDATE tombstones SET since = '2026-01-01T00:00:00.000000+00:00'")
    vmkeep.backup("guest")
    assert host.secrets() == {}
    (shown,) = vmkeep.json("tpm", "removal", "show", removed["removal"][:8])["removals"]
    assert (shown["secret"]["outcome"], shown["open"]) == ("failed", [])
    assert [(each["event"], each["secret"]["outcome"]) for each in shown["facts"]] == [("settled", "undefined")]
    assert vmkeep.json("tombstones", "list")["tombstones"] == []
    vmkeep.json("tpm", "add", "guest", "--from", point["id"])
    assert host.secrets() == {secret: _VALUE}
