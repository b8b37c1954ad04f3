"""The secret that a vTPM's state is encrypted with: sealed in the point, and back with the VM, never in plain text.

The judge is swtpm itself: it opens the state with the value that libvirt has after the restore, and finds in the TPM
what was stored there.
"""

from __future__ import annotations

import base64
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Disk, Host, KiB, MiB, RigError, Vm
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth

pytestmark = pytest.mark.system

_VALUE = b"not-to-be-found-anywhere-\xff\x00\x01-in-plain"  # no text, as a key may be
_FORMS = (_VALUE, base64.b64encode(_VALUE), _VALUE.hex().encode(), _VALUE[:20])
_STORED = b"seals the guest's disks"


def backend(secret: str) -> str:
    return f"<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"


@dataclass(frozen=True, slots=True)
class Kept:
    """A VM with an encrypted TPM in which something is stored, off, and its point."""

    vm: Vm
    secret: str
    point: dict[str, Any]
    truth: Truth


def keep(host: Host, vmkeep: Vmkeep, value: bytes = _VALUE, *, private: bool = False) -> Kept:
    secret = host.define_secret(value, private=private)
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB)], tpm_backend=backend(secret))
    vm.start(paused=True)
    vm.destroy()
    vm.store_in_tpm(_STORED, key=value)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=256 * KiB, seed=1)
    point = vmkeep.backup("guest", "--debug")
    vm.destroy()
    return Kept(vm, secret, point, Truth.of(vm))


def assert_opens(vm: Vm, secrets: dict[str, bytes], secret: str) -> None:
    """Fail unless the VM starts, and its TPM opens with what libvirt has and holds what was stored."""
    assert secrets[secret] == _VALUE
    vm.start(paused=True)
    vm.destroy()
    assert vm.load_from_tpm(len(_STORED), key=secrets[secret]) == _STORED


def undefine_secret(host: Host, secret: str) -> None:
    host.connection.secretLookupByUUIDString(secret).undefine()


@contextmanager
def watched_processes() -> Iterator[set[bytes]]:
    """Collect the arguments and environments of every process that runs meanwhile."""
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.01):
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


def test_secret_comes_back_with_the_vm_and_is_nowhere_in_plain_text(host: Host, vmkeep: Vmkeep) -> None:
    with watched_processes() as seen:
        kept = keep(host, vmkeep)
        assert kept.point["secrets"] == [{"usage": "vtpm", "uuid": kept.secret}]
        assert kept.point["warnings"] == []
        assert vmkeep.json("vm", "show", "guest")["vm"]["complete"] is True
        kept.vm.delete()
        undefine_secret(host, kept.secret)
        output = vmkeep.json("--debug", "restore", kept.point["id"], "--as", "guest")["restored"]

    assert (output["warnings"], output["identity"], output["tpm"]) == ([], "same", "same")
    back = host.vm("guest")
    kept.truth.assert_vm(back)
    assert_opens(back, host.secrets(), kept.secret)
    xml = host.connection.secretLookupByUUIDString(kept.secret).XMLDesc()
    assert "<secret ephemeral='no' private='no'>" in xml
    assert "<usage type='vtpm'>\n    <name>tpm</name>" in xml
    assert vmkeep.json("verify", "--all")["ok"] is True
    # Catalogue, flows, logs, repository; arguments and environments; and the test would see it if it were there.
    assert list((vmkeep.home / "logs").iterdir()) != []
    assert places_of_value(vmkeep.home, host.path("/var/log")) == []
    assert not any(form in words for words in seen for form in _FORMS)
    assert places_of_value(host.path("/etc/libvirt")) != []
    with closing(sqlite3.connect(vmkeep.home / "flows.sqlite")) as flows:
        assert kept.secret in "".join(flows.iterdump())  # what flows do hold: its UUID


def test_secret_opens_the_tpm_on_another_host(host: Host, vmkeep: Vmkeep, second_host: Host) -> None:
    kept = keep(host, vmkeep)
    passphrase, exported = host.dir / "work" / "passphrase", host.dir / "work" / "key.txt"
    passphrase.write_text("correct horse\n")
    vmkeep.json("key", "export", "--passphrase-file", passphrase, "--output", exported)
    there = Vmkeep(second_host)
    there.json("key", "import", exported, "--passphrase-file", passphrase)
    there.json("init", "--repository", host.dir / "home" / "repository", "--adopt")
    assert there.json("points")["points"] == [kept.point]
    # Another VM there has a secret of the same usage, which libvirt gives to one only.
    other = second_host.define_secret(b"another one")
    there.json("restore", kept.point["id"], "--as", "guest", "--disks-dir", second_host.dir / "disks")

    secrets = second_host.secrets()
    assert secrets == {kept.secret: _VALUE, other: b"another one"}
    assert_opens(second_host.vm("guest"), secrets, kept.secret)
    assert places_of_value(second_host.dir / "home") == []


def test_private_secret_is_not_in_the_point_and_that_is_said(host: Host, vmkeep: Vmkeep) -> None:
    kept = keep(host, vmkeep, private=True)
    (warning,) = kept.point["warnings"]
    assert f"secret {kept.secret}, which is private" in warning
    assert kept.point["secrets"] == []
    assert vmkeep.json("vm", "show", "guest")["vm"]["problems"] == [warning]
    assert not (vmkeep.home / "repository" / "envelopes").exists()
    findings = vmkeep.json("doctor", "guest")["doctor"]["findings"]
    assert [each["severity"] for each in findings if each["code"] == "tpm-not-kept"] == ["note"]
    kept.vm.delete()
    undefine_secret(host, kept.secret)
    warnings = vmkeep.json("restore", kept.point["id"], "--as", "guest")["restored"]["warnings"]
    assert warnings[0] == warning
    assert "cannot start before it is defined" in warnings[1]
    with pytest.raises(RigError, match="exit status 37"):
        vmkeep.json("doctor", "guest")


def test_secret_with_another_value_is_not_replaced(host: Host, vmkeep: Vmkeep) -> None:
    kept = keep(host, vmkeep)
    host.connection.secretLookupByUUIDString(kept.secret).setValue(b"another value")
    in_place = vmkeep.fails("restore", kept.point["id"], "--in-place", "--yes")
    kept.vm.delete()
    before = {path: path.read_bytes() for path in host.path("/etc/libvirt").rglob("*") if path.is_file()}
    as_vm = vmkeep.fails("restore", kept.point["id"], "--as", "guest")

    for failure in (in_place, as_vm):
        assert (failure.code, failure.status, failure.error["vm"]) == ("target-exists", 6, "guest")
        assert f"the secret {kept.secret} already, with another value" in failure.error["message"]
    assert host.secrets() == {kept.secret: b"another value"}
    assert host.connection.listAllDomains() == []
    assert list((host.dir / "disks").iterdir()) == []
    assert {path: path.read_bytes() for path in before} == before
    # A blank TPM needs no particular value: it is made with the one that is there.
    vmkeep.json("restore", kept.point["id"], "--as", "guest", "--tpm", "new")
    back = host.vm("guest")
    back.start(paused=True)
    back.destroy()
    with pytest.raises(RigError, match="no such index"):
        back.load_from_tpm(len(_STORED), key=b"another value")
    assert host.secrets() == {kept.secret: b"another value"}


def test_lost_secret_comes_back_in_place_and_by_doctor(host: Host, vmkeep: Vmkeep) -> None:
    kept = keep(host, vmkeep)
    kept.vm.store_in_tpm(b"later", index=1, key=_VALUE)
    undefine_secret(host, kept.secret)
    restored = vmkeep.json("restore", kept.point["id"], "--in-place", "--yes")["restored"]
    assert restored["states"] == ["nvram", "tpm"]
    assert "does not have" in vmkeep.json("point", "show", restored["safety"])["point"]["warnings"][0]
    kept.truth.assert_vm(kept.vm)
    assert_opens(kept.vm, host.secrets(), kept.secret)

    undefine_secret(host, kept.secret)
    (finding,) = [
        each
        for each in vmkeep.fails("doctor", "guest").document["doctor"]["findings"]  # type: ignore[index]
        if each["code"] == "tpm-secret-missing"
    ]
    assert (finding["fixable"], finding["severity"]) == (True, "problem")
    assert kept.point["id"] in finding["message"]
    fixed = vmkeep.json("doctor", "--fix", "guest")["doctor"]
    assert "tpm-secret-missing" in [each["code"] for each in fixed["fixed"]]
    assert fixed["findings"] == [each for each in fixed["findings"] if each["severity"] != "problem"]
    assert_opens(kept.vm, host.secrets(), kept.secret)
    # One that is defined and has lost its value gets it again.
    undefine_secret(host, kept.secret)
    host.connection.secretDefineXML(
        f"<secret><uuid>{kept.secret}</uuid><usage type='vtpm'><name>other</name></usage></secret>"
    )
    vmkeep.json("doctor", "--fix", "guest")
    assert host.secrets() == {kept.secret: _VALUE}


def test_files_hold_the_secret_only_when_asked(host: Host, vmkeep: Vmkeep) -> None:
    kept = keep(host, vmkeep)
    out = host.dir / "work" / "out"
    told = vmkeep.json("restore", kept.point["id"], "--output", out)["restored"]["warnings"]
    kept.truth.assert_files(out)  # and no other file
    assert len(told) == 1
    assert kept.secret in told[0]
    assert "--secrets" in told[0]
    plain = host.dir / "work" / "plain"
    restored = vmkeep.json("restore", kept.point["id"], "--output", plain, "--secrets")["restored"]
    files = [plain / f"secret-{kept.secret}.{extension}" for extension in ("xml", "base64")]
    assert restored["warnings"] == []
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600, 0o600]
    undefine_secret(host, kept.secret)
    host.run(["virsh", "secret-define", files[0]], check=True)
    host.run(["virsh", "secret-set-value", kept.secret, "--file", files[1]], check=True)
    assert_opens(kept.vm, host.secrets(), kept.secret)
    vmkeep.json("point", "delete", kept.point["id"], "--yes")
    assert list((vmkeep.home / "repository" / "envelopes").iterdir()) == []


def test_failed_restore_takes_the_secret_away_again(host: Host, vmkeep: Vmkeep) -> None:
    kept = keep(host, vmkeep)
    kept.vm.delete()
    undefine_secret(host, kept.secret)
    # libvirt refuses the definition: the machine type is not known to a QEMU that is not there.
    emulator = "/usr/bin/qemu-system-x86_64"
    host.run(["mount", "--bind", "/dev/null", emulator], check=True)
    try:
        host.restart_libvirtd()
        failure = vmkeep.fails("restore", kept.point["id"], "--as", "guest")
    finally:
        host.run(["umount", emulator], check=True)
        host.restart_libvirtd()
    assert failure.code == "hypervisor-error"
    assert host.secrets() == {}
    assert host.connection.listAllDomains() == []
