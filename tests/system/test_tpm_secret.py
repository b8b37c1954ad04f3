"""The secret that a vTPM's state is encrypted with: sealed in the point, and back with the VM, never in plain text.

The judge is swtpm itself: it opens the state with the value that libvirt has after the restore, and finds in the TPM
what was stored there.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.rig import Disk, Host, KiB, MiB, NvIndexMissingError, Vm
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth

pytestmark = pytest.mark.system

_VALUE = b"not-to-be-found-anywhere-\xff\x00\x01-in-plain"  # no text, as a key may be
_FORMS = (_VALUE, base64.b64encode(_VALUE), _VALUE.hex().encode(), _VALUE[:20])
_STORED = b"seals the guest's disks"


def backend(secret: str) -> str:
    return f"<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"


@dataclass(slots=True)
class Kept:
    """A VM with an encrypted TPM in which something is stored, and its point; one for all tests of this module."""

    host: Host
    vmkeep: Vmkeep
    secret: str
    point: dict[str, Any]
    truth: Truth
    restored: dict[str, Any]
    seen: set[bytes]  # arguments and environments of all processes while the point was taken and restored

    @property
    def vm(self) -> Vm:
        return self.host.vm("guest")

    def lose(self) -> None:
        """Remove the VM and its secret."""
        with contextlib.suppress(libvirt.libvirtError):
            self.vm.delete()
        self.lose_secret()

    def lose_secret(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self.host.connection.secretLookupByUUIDString(self.secret).undefine()

    def as_it_was(self) -> Vm:
        """Return the VM, off and as the point has it, with its secret."""
        self.lose()
        self.vmkeep.json("restore", str(self.point["id"]), "--as", "guest")
        return self.vm


def encrypted_vm(host: Host, name: str, secret: str) -> Vm:
    vm = host.define(name, disks=[Disk("vda", 4 * MiB)], tpm_backend=backend(secret))
    vm.start(paused=True)
    vm.destroy()
    return vm


@pytest.fixture(scope="module")
def kept(session_host: Host) -> Iterator[Kept]:
    session_host.clear()
    vmkeep = Vmkeep(session_host, forked=False)  # its arguments are looked at
    secret = session_host.define_secret(_VALUE)
    vm = encrypted_vm(session_host, "guest", secret)
    vm.store_in_tpm(_STORED, key=_VALUE)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=256 * KiB, seed=1)
    with watched_processes() as seen:
        point = vmkeep.backup("guest", "--debug")
        vm.destroy()
        truth = Truth.of(vm)
        kept = Kept(session_host, vmkeep, secret, point, truth, {}, seen)
        kept.lose()
        kept.restored = vmkeep.json("--debug", "restore", point["id"], "--as", "guest")["restored"]
    yield kept
    session_host.clear()


def assert_opens(vm: Vm, secrets: dict[str, bytes], secret: str) -> None:
    """Fail unless the VM starts, and its TPM opens with what libvirt has and holds what was stored."""
    assert secrets[secret] == _VALUE
    vm.start(paused=True)
    vm.destroy()
    assert vm.load_from_tpm(len(_STORED), key=secrets[secret]) == _STORED


@contextmanager
def watched_processes() -> Iterator[set[bytes]]:
    """Collect the arguments and environments of every process that runs meanwhile."""
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        seen.add((process / name).read_bytes())
                    except OSError:
                        continue  # it has ended

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def places_of_value(*directories: Path) -> list[Path]:
    return [
        path
        for directory in directories
        for path in directory.rglob("*")
        if path.is_file() and any(form in path.read_bytes() for form in _FORMS)
    ]


def test_secret_comes_back_with_the_vm(kept: Kept) -> None:
    assert kept.point["secrets"] == [{"usage": "vtpm", "uuid": kept.secret}]
    assert kept.point["warnings"] == []
    assert (kept.restored["warnings"], kept.restored["identity"], kept.restored["tpm"]) == ([], "same", "same")
    kept.truth.assert_vm(kept.vm)
    assert_opens(kept.vm, kept.host.secrets(), kept.secret)
    xml = kept.host.connection.secretLookupByUUIDString(kept.secret).XMLDesc()
    assert "<secret ephemeral='no' private='no'>" in xml
    assert "<usage type='vtpm'>\n    <name>tpm</name>" in xml
    assert kept.vmkeep.json("vm", "show", "guest")["vm"]["complete"] is True
    tpm = kept.vmkeep.json("state", "show", "guest")["state"]["kinds"]["tpm"]
    assert (tpm["encrypted"], tpm["secret"]) == (True, {"uuid": kept.secret, "point": kept.point["id"], "pin": None})


def test_secret_is_nowhere_in_plain_text(kept: Kept) -> None:
    """Catalogue, flows, logs, repository; arguments and environments; and the test would see it if it were there."""
    assert len(list((kept.vmkeep.home / "logs").iterdir())) == 2
    assert places_of_value(kept.vmkeep.home, kept.host.path("/var/log")) == []
    assert not any(form in words for words in kept.seen for form in _FORMS)
    assert any(b"restore" in words for words in kept.seen)
    assert not any(form in json.dumps([kept.point, kept.restored]).encode() for form in _FORMS)
    assert places_of_value(kept.host.path("/etc/libvirt")) != []
    with closing(sqlite3.connect(kept.vmkeep.home / "flows.sqlite")) as flows:
        assert kept.secret in "".join(flows.iterdump())  # what flows do hold: its UUID
    assert kept.vmkeep.json("verify", "--all")["ok"] is True


def test_secret_opens_the_tpm_on_another_host(kept: Kept, second_host: Host) -> None:
    work = kept.host.dir / "work"
    (work / "passphrase").write_text("correct horse\n")
    kept.vmkeep.json("key", "export", "--passphrase-file", work / "passphrase", "--output", work / "key.txt")
    there = Vmkeep(second_host)
    there.json("key", "import", work / "key.txt", "--passphrase-file", work / "passphrase")
    there.json("init", "--repository", kept.vmkeep.home / "repository", "--adopt", "--yes")
    points = (each.json("points")["points"] for each in (there, kept.vmkeep))
    assert len({str([{**point, "made_by": point["made_by"]["key"]} for point in listed]) for listed in points}) == 1
    # Another VM there has a secret of the same usage, which libvirt gives to one only.
    other = second_host.define_secret(b"another one")
    there.json("restore", kept.point["id"], "--as", "guest", "--disks-dir", second_host.dir / "disks")

    secrets = second_host.secrets()
    assert secrets == {kept.secret: _VALUE, other: b"another one"}
    assert_opens(second_host.vm("guest"), secrets, kept.secret)
    assert places_of_value(second_host.dir / "home") == []


def test_lost_secret_comes_back_in_place_and_by_doctor(kept: Kept) -> None:
    vm, vmkeep = kept.as_it_was(), kept.vmkeep
    vm.store_in_tpm(b"later", index=1, key=_VALUE)
    kept.lose_secret()
    restored = vmkeep.json("restore", kept.point["id"], "--in-place", "--yes")["restored"]
    assert restored["states"] == ["nvram", "tpm"]
    assert "does not have" in vmkeep.json("point", "show", restored["safety"])["point"]["warnings"][0]
    kept.truth.assert_vm(vm)
    assert_opens(vm, kept.host.secrets(), kept.secret)

    kept.lose_secret()
    # One that is defined and has lost its value is as good as none.
    kept.host.connection.secretDefineXML(
        f"<secret><uuid>{kept.secret}</uuid><usage type='vtpm'><name>other</name></usage></secret>"
    )
    fixed = vmkeep.json("doctor", "--fix", "guest")["doctor"]
    assert "tpm-secret-missing" in [each["code"] for each in fixed["fixed"]]
    assert kept.host.secrets() == {kept.secret: _VALUE}
    kept.lose_secret()
    (finding,) = [
        each
        for each in vmkeep.fails("doctor", "guest").document["doctor"]["findings"]  # type: ignore[index]
        if each["code"] == "tpm-secret-missing"
    ]
    assert (finding["fixable"], finding["severity"]) == (True, "problem")
    assert kept.point["id"] in finding["message"]
    vmkeep.json("doctor", "--fix", "guest")
    assert_opens(vm, kept.host.secrets(), kept.secret)


def test_secret_with_another_value_is_not_replaced(kept: Kept) -> None:
    host, vmkeep = kept.host, kept.vmkeep
    vm = kept.as_it_was()
    host.connection.secretLookupByUUIDString(kept.secret).setValue(b"another value")
    in_place = vmkeep.fails("restore", kept.point["id"], "--in-place", "--yes")
    kept.truth.assert_vm(vm)
    vm.delete()
    as_vm = vmkeep.fails("restore", kept.point["id"], "--as", "guest")

    for failure in (in_place, as_vm):
        assert (failure.code, failure.status, failure.error["vm"]) == ("target-exists", 6, "guest")
        assert f"the secret {kept.secret} already, with another value" in failure.error["message"]
        assert not any(form in json.dumps(failure.error).encode() for form in _FORMS)
    assert host.secrets() == {kept.secret: b"another value"}
    assert host.connection.listAllDomains() == []
    assert list((host.dir / "disks").iterdir()) == []
    # A blank TPM needs no particular value: it is made with the one that is there.
    vmkeep.json("restore", kept.point["id"], "--as", "guest", "--tpm", "new")
    kept.vm.start(paused=True)
    kept.vm.destroy()
    with pytest.raises(NvIndexMissingError):
        kept.vm.load_from_tpm(len(_STORED), key=b"another value")
    assert host.secrets() == {kept.secret: b"another value"}


def test_failed_restore_takes_the_secret_away_again(kept: Kept) -> None:
    host = kept.host
    kept.lose()
    # libvirt refuses the definition, after the secret was defined: its emulator is not there.
    emulator = "/usr/bin/qemu-system-x86_64"
    host.run(["mount", "--bind", "/dev/null", emulator], check=True)
    try:
        host.restart_libvirtd()
        failure = kept.vmkeep.fails("restore", kept.point["id"], "--as", "guest")
    finally:
        host.run(["umount", emulator], check=True)
        host.restart_libvirtd()
    assert failure.code == "hypervisor-error"
    assert host.secrets() == {}
    assert host.connection.listAllDomains() == []


def test_files_hold_the_secret_only_when_asked(kept: Kept) -> None:
    vmkeep, work = kept.vmkeep, kept.host.dir / "work"
    told = vmkeep.json("restore", kept.point["id"], "--output", work / "out")["restored"]["warnings"]
    kept.truth.assert_files(work / "out")  # and no other file
    assert len(told) == 1
    assert kept.secret in told[0]
    assert "--secrets" in told[0]
    restored = vmkeep.json("restore", kept.point["id"], "--output", work / "plain", "--secrets")["restored"]
    files = [work / "plain" / f"secret-{kept.secret}.{extension}" for extension in ("xml", "base64")]
    assert restored["warnings"] == []
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600, 0o600]
    vm = kept.as_it_was()
    kept.lose_secret()
    kept.host.run(["virsh", "secret-define", files[0]], check=True)
    kept.host.run(["virsh", "secret-set-value", kept.secret, "--file", files[1]], check=True)
    assert_opens(vm, kept.host.secrets(), kept.secret)


def test_exported_state_holds_the_secret_that_opens_it(kept: Kept) -> None:
    vmkeep, work = kept.vmkeep, kept.host.dir / "work"
    (key,) = (vmkeep.home / "keys").glob("*.key")
    exported = vmkeep.json("state", "export", "guest", "--to", work / "guest.state", "--key", key)["exported"]
    assert (exported["secrets"], exported["warnings"]) == ([kept.secret], [])
    assert not any(form in (work / "guest.state").read_bytes() for form in _FORMS)
    # The key is one of this installation, so it is found.
    result = vmkeep.run("--json", "state", "import", work / "guest.state")
    assert kept.secret in json.loads(result.stderr)["notices"][0]
    vmkeep.json("state", "import", work / "guest.state", "--output", work / "state", "--secrets")
    (version,) = [each for each in exported["versions"] if each["kind"] == "tpm"]
    assert hashlib.sha256((work / "state" / "tpm2-00.permall").read_bytes()).hexdigest() == version["sha256"]
    assert base64.b64decode((work / "state" / f"secret-{kept.secret}.base64").read_bytes()) == _VALUE
    kept.lose_secret()
    kept.host.run(["virsh", "secret-define", work / "state" / f"secret-{kept.secret}.xml"], check=True)


def test_private_secret_is_not_in_the_point_and_that_is_said(kept: Kept) -> None:
    host, vmkeep = kept.host, kept.vmkeep
    secret = host.define_secret(b"private", name="closed", private=True)
    vm = encrypted_vm(host, "closed", secret)
    point = vmkeep.backup("closed")
    (warning,) = point["warnings"]
    assert f"secret {secret}, which is private" in warning
    assert point["secrets"] == []
    assert vmkeep.json("vm", "show", "closed")["vm"]["problems"] == [warning]
    assert not (vmkeep.home / "repository" / "envelopes" / point["id"]).exists()
    findings = vmkeep.json("doctor", "closed")["doctor"]["findings"]
    assert [each["severity"] for each in findings if each["code"] == "tpm-not-kept"] == ["note"]
    vm.delete()
    host.connection.secretLookupByUUIDString(secret).undefine()
    warnings = vmkeep.json("restore", point["id"], "--as", "closed")["restored"]["warnings"]
    assert warnings[0] == warning
    assert "cannot start before it is defined" in warnings[1]


def test_deleted_point_takes_its_secret_along(kept: Kept) -> None:
    envelopes = kept.vmkeep.home / "repository" / "envelopes"
    assert kept.point["id"] in [path.name for path in envelopes.iterdir()]
    kept.vmkeep.backup("guest")  # against the one that goes nothing is read then
    kept.vmkeep.json("point", "delete", kept.point["id"], "--yes", "--grace", "0")
    assert kept.point["id"] not in [path.name for path in envelopes.iterdir()]
