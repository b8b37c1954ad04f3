"""`vmkeep state`: the state files of VMs on the host, beside the versions that are kept of them."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Started, Vmkeep

pytestmark = pytest.mark.system


def standings(vmkeep: Vmkeep, *vms: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(state["vm"], state["kind"]): state for state in vmkeep.json("state", "list", *vms)["states"]}


def two_versions(vm: Vm, vmkeep: Vmkeep) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Take a point, change TPM and NVRAM, and take another; return both, and the first TPM state."""
    vm.start(paused=True)
    vm.destroy()
    first = vmkeep.backup(vm.name)
    old = vm.tpm_state()
    vm.change_nvram()
    vm.change_tpm()
    return first, vmkeep.backup(vm.name), old


def test_state_that_is_older_lost_or_only_in_swtpms_backup_is_told_with_what_puts_it_back(
    host: Host, vmkeep: Vmkeep
) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    vm.start(paused=True)
    vm.destroy()
    assert {state["standing"] for state in standings(vmkeep).values()} == {"not-kept"}
    first, second, old = two_versions(vm, vmkeep)
    permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    newest = permall.read_bytes()
    now = standings(vmkeep)
    assert [(state["standing"], state["version"], state["remedy"]) for state in now.values()] == [
        ("current", 2, None)
    ] * 2

    permall.write_bytes(old)
    tpm = standings(vmkeep, "guest")["guest", "tpm"]
    assert (tpm["standing"], tpm["version"], tpm["newest"]["version"]) == ("superseded", 1, 2)
    assert tpm["remedy"] == "vmkeep state restore guest --kind tpm"

    # As swtpm 0.11 leaves it, which keeps the state before the last write, and takes it when the file is gone.
    permall.rename(permall.with_name("tpm2-00.permall.bak"))
    tpm = standings(vmkeep)["guest", "tpm"]
    assert (tpm["standing"], tpm["from_backup"], tpm["version"]) == ("superseded", True, 1)
    doctor = json.loads(vmkeep.run("--json", "doctor").stdout)["doctor"]
    told = {finding["code"]: finding for finding in doctor["findings"]}
    assert "tpm2-00.permall.bak" in told["tpm-missing"]["message"]
    permall.with_name("tpm2-00.permall.bak").unlink()
    tpm = standings(vmkeep)["guest", "tpm"]
    assert (tpm["standing"], tpm["version"]) == ("missing", None)
    shown = vmkeep.run("state", "list").stdout
    assert "vmkeep state restore guest --kind tpm" in shown

    assert vmkeep.fails("tpm", "restore", "guest", "--point", second["id"], "--version", "2").code == "invalid-request"
    vmkeep.json("tpm", "restore", "guest", "--point", second["id"], "--yes")
    assert permall.read_bytes() == newest
    assert {state["standing"] for state in standings(vmkeep).values()} == {"current"}
    vmkeep.json("restore", first["id"], "--in-place", "--yes")  # which is no accident
    assert {(state["standing"], state["version"]) for state in standings(vmkeep).values()} == {("current", 1)}


def test_versions_are_listed_with_what_keeps_them_also_of_a_vm_that_is_gone(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    first, second, _ = two_versions(vm, vmkeep)
    third = vmkeep.backup("guest")  # in which nothing of the state is new
    uuid = vm.uuid
    vm.delete()
    for name in ("guest", uuid):
        versions = vmkeep.json("state", "versions", name)["versions"]
        told = [(each["kind"], each["version"], each["current"], sorted(each["held_by"])) for each in versions]
        newest = sorted([second["id"], third["id"]])
        assert told == [
            ("nvram", 2, True, newest),
            ("nvram", 1, False, [first["id"]]),
            ("tpm", 2, True, newest),
            ("tpm", 1, False, [first["id"]]),
        ]
    only = vmkeep.json("state", "versions", "guest", "--kind", "tpm")["versions"]
    assert {each["kind"] for each in only} == {"tpm"}
    vmkeep.json("point", "delete", first["id"], "--yes")
    (held_by,) = [each["held_by"] for each in vmkeep.json("state", "versions", "guest", "--kind", "tpm")["versions"]][
        1:
    ]
    assert held_by == []
    assert vmkeep.fails("state", "versions", "nobody").error["code"] == "vm-not-found"
    assert vmkeep.fails("state", "versions", "guest", "--kind", "disk").error["code"] == "invalid-request"


def test_state_that_cannot_be_read_is_told_and_the_others_are_listed(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    two_versions(vm, vmkeep)
    permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    permall.unlink()
    os.mkfifo(permall)
    document = vmkeep.json("state", "list")
    by_kind = {state["kind"]: state for state in document["states"]}
    assert (by_kind["tpm"]["standing"], by_kind["nvram"]["standing"]) == ("unread", "current")
    assert str(permall.relative_to(vm.tpm_directory)) in document["problems"][0]


def test_state_that_changed_is_kept_without_a_point_and_comes_back(booting_host: Host) -> None:
    host, vmkeep = booting_host, Vmkeep(booting_host)
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    vm.start(paused=True)
    vm.destroy()
    vmkeep.backup("guest")
    vm.change_nvram()
    vm.change_tpm()
    between = vm.tpm_state(), vm.nvram()

    (captured,) = vmkeep.json("state", "capture", "guest")["captured"]
    assert [(each["kind"], each["version"]) for each in captured["new"]] == [("nvram", 2), ("tpm", 2)]
    assert vmkeep.json("state", "capture", "--all")["captured"][0]["new"] == []
    assert {state["standing"] for state in standings(vmkeep).values()} == {"current"}
    held = {(each["kind"], each["version"]): each["held_by"] for each in versions_of(vmkeep, "guest")}
    assert held["tpm", 2] == []

    # Of a VM that runs the TPM alone: QEMU writes the variables in place.
    vm.start()
    vm.settle()
    assert vm.tpm_state() != between[0]  # its firmware has never run before
    (captured,) = vmkeep.json("state", "capture", "guest")["captured"]
    assert captured["read"] == ["tpm"]
    assert [(each["kind"], each["version"]) for each in captured["new"]] == [("tpm", 3)]
    vm.destroy()

    # The next point refers to what was captured, and stores it no second time.
    newest = vm.tpm_state()
    vmkeep.backup("guest")
    assert len([each for each in versions_of(vmkeep, "guest") if each["kind"] == "tpm"]) == 3
    vmkeep.json("state", "restore", "guest", "--kind", "tpm", "--version", "2", "--yes")
    assert vm.tpm_state() == between[0]
    vmkeep.json("nvram", "restore", "guest", "--version", "2", "--yes")
    assert vm.nvram() == between[1]
    # The next capture meets what was put there on purpose: it counts as the newest from then on.
    vmkeep.json("state", "capture", "guest")
    assert [each["version"] for each in versions_of(vmkeep, "guest") if each["current"]] == [4, 4]
    vmkeep.json("state", "restore", "guest", "--kind", "tpm", "--version", "3", "--yes")
    assert vm.tpm_state() == newest


def test_what_no_point_names_is_found_again_when_the_catalogue_is_lost(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    vm.start(paused=True)
    vm.destroy()
    point = vmkeep.backup("guest")
    first = vm.tpm_state(), vm.nvram()
    vmkeep.json("snapshot", "create", "guest", "before")
    contents = []
    for _ in range(2):
        vm.change_tpm()
        vm.change_nvram()
        vmkeep.json("state", "capture", "guest")
        contents.append(vm.tpm_state())
    vmkeep.json("point", "delete", point["id"], "--yes")
    told = versions_of(vmkeep, "guest")
    assert [(each["kind"], each["version"], each["kept"]) for each in told] == [
        ("nvram", 3, True),
        ("nvram", 2, True),
        ("nvram", 1, False),
        ("tpm", 3, True),
        ("tpm", 2, True),
        ("tpm", 1, False),
    ]
    vmkeep.backup("guest")  # through which they go back
    told = versions_of(vmkeep, "guest")
    for path in vmkeep.home.glob("catalog.sqlite*"):
        path.unlink()
    vmkeep.json("init", "--adopt")
    assert [{**each, "created": ""} for each in versions_of(vmkeep, "guest")] == [
        {**each, "created": ""} for each in told
    ]
    vmkeep.json("state", "restore", "guest", "--kind", "tpm", "--version", "2", "--yes")
    assert vm.tpm_state() == contents[0]
    vmkeep.json("snapshot", "revert", "guest", "before", "--yes")
    assert (vm.tpm_state(), vm.nvram()) == first
    assert not vmkeep.json("verify", "--all")["findings"]

    # Gone for good: while the host has it, it is not.
    assert vmkeep.fails("vm", "forget", "guest", "--yes").code == "target-exists"
    vm.delete()
    forgotten = vmkeep.json("vm", "forget", "guest", "--days", "30", "--yes")["forgotten"]
    kept = {(each["kind"], each["version"]) for each in versions_of(vmkeep, "guest") if each["kept"]}
    assert (forgotten["points"], forgotten["versions"]) == (len(vmkeep.json("points")["points"]), len(kept))
    assert kept >= {("tpm", 1), ("tpm", 2)}  # the third is in a point
    assert vmkeep.fails("vm", "forget", "nobody", "--yes").code == "vm-not-found"


def test_state_that_swtpm_does_not_load_is_not_kept(host: Host, vmkeep: Vmkeep) -> None:
    secret = host.define_secret(b"of the TPM")
    backend = f"<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"
    vm = host.define("guest", disks=[Disk("vda", MiB)], tpm_backend=backend)
    vm.start(paused=True)
    vm.destroy()
    vmkeep.json("state", "capture", "guest")
    permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    good = permall.read_bytes()
    half = len(good) // 2
    for bad in (good[:-7], good[:half] + bytes(len(good) - half), good[:600] + b"!" + good[601:]):
        permall.write_bytes(bad)
        failed = vmkeep.fails("state", "capture", "guest")
        assert failed.code == "state-torn"
        assert "secret" in failed.error["message"]
    (tpm,) = vmkeep.json("state", "versions", "guest", "--kind", "tpm")["versions"]
    assert (tpm["version"], tpm["current"]) == (1, True)
    (vmkeep.home / "vmkeep.toml").write_text('trial_start = "off"\n')
    (captured,) = vmkeep.json("state", "capture", "guest")["captured"]
    assert [(each["kind"], each["version"]) for each in captured["new"]] == [("tpm", 2)]
    assert vmkeep.fails("state", "try", "guest").code == "state-torn"
    assert vmkeep.json("state", "try", "guest", "--version", "1") == {"version": 1, "loads": True, "why": None}
    assert vmkeep.fails("state", "try", "guest", "--version", "3").code == "invalid-request"
    # With the value that is kept with it, whatever libvirt has by now.
    host.connection.secretLookupByUUIDString(secret).setValue(b"another")
    assert vmkeep.json("state", "try", "guest", "--version", "1")["loads"] is True


def test_capture_makes_no_blank_torn_or_older_state_the_newest(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    _, _, old = two_versions(vm, vmkeep)
    permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    newest = permall.read_bytes()
    for content in (b"", bytes(len(newest)), newest[:100]):
        permall.write_bytes(content)
        assert vmkeep.fails("state", "capture", "guest").code == "state-torn"
    permall.write_bytes(old)
    result = vmkeep.run("--json", "state", "capture", "guest")
    assert "TPM state is version 1, and 2 is the newest" in result.stderr
    result = vmkeep.run("--json", "snapshot", "create", "guest", "rolled-back")
    assert "TPM state is version 1, and 2 is the newest" in result.stderr
    permall.unlink()
    assert vmkeep.fails("state", "capture", "guest").code == "host-file-missing"
    host.define("other", disks=[Disk("vda", MiB)], firmware="bios", tpm=False)
    failure = vmkeep.fails("state", "capture", "--all")
    assert (failure.code, failure.document) == ("host-file-missing", {"captured": [], "failed": [failure.error]})
    assert [each["version"] for each in versions_of(vmkeep, "guest") if each["current"]] == [2, 2]
    permall.write_bytes(newest)
    assert {state["standing"] for state in standings(vmkeep).values()} == {"current"}
    doctor = json.loads(vmkeep.run("--json", "doctor").stdout)["doctor"]
    told = {finding["code"]: finding["message"] for finding in doctor["findings"]}
    assert "2 times" in told["state-not-captured"]
    assert f"is not at /var/lib/libvirt/swtpm/{vm.uuid}/" in told["state-not-captured"]
    assert vmkeep.json("state", "capture", "guest")["captured"][0]["recovered"]
    doctor = json.loads(vmkeep.run("--json", "doctor").stdout)["doctor"]
    assert "state-not-captured" not in {finding["code"] for finding in doctor["findings"]}


def versions_of(vmkeep: Vmkeep, vm: str) -> list[dict[str, Any]]:
    versions = vmkeep.json("state", "versions", vm)["versions"]
    assert isinstance(versions, list)
    return versions


def test_watch_keeps_what_changes_and_catches_up_with_what_it_missed(booting_host: Host) -> None:
    host, vmkeep = booting_host, Vmkeep(booting_host)
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    vm.start(paused=True)
    vm.destroy()
    vm.change_tpm()
    with _watching(vmkeep) as watch:
        assert watch.kept() == {("nvram", 1), ("tpm", 1)}  # what it missed
        vm.change_tpm()
        changed = time.monotonic()
        assert watch.kept() == {("tpm", 2)}
        assert time.monotonic() - changed < 4
        host.restart_libvirtd()
        vm.start()
        vm.settle()
        assert {kind for kind, _ in watch.kept_until(vm.tpm_state())} == {"tpm"}  # QEMU writes the variables in place
        vm.destroy()
        assert "nvram" in {kind for kind, _ in watch.kept()}
        assert {state["standing"] for state in standings(vmkeep).values()} == {"current"}
        watch.process.kill()

    vm.change_nvram()
    with _watching(vmkeep) as watch:
        assert {kind for kind, _ in watch.kept()} == {"nvram"}
        # What is torn or lost makes no version, and is told once.
        permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
        newest = permall.read_bytes()
        permall.write_bytes(newest[:50])
        assert "guest" in watch.warned()
        permall.unlink()
        assert "is not at" in watch.warned()
        permall.write_bytes(newest)
        vmkeep.backup("guest")  # which holds the VM for a while
        vm.change_tpm()
        assert {kind for kind, _ in watch.kept()} == {"tpm"}
        watch.process.terminate()
        assert watch.process.wait(10) == 0


class _Watching:
    def __init__(self, process: Started) -> None:
        self.process = process
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def line(self) -> dict[str, Any]:
        line = json.loads(self._lines.get(timeout=30))
        assert isinstance(line, dict)
        return line

    def captured(self) -> list[dict[str, Any]]:
        """Wait for the next capture that it tells."""
        while "new" not in (line := self.line()):
            pass
        new = line["new"]
        assert isinstance(new, list)
        return new

    def kept(self) -> set[tuple[str, int]]:
        return {(new["kind"], new["version"]) for new in self.captured()}

    def kept_until(self, content: bytes) -> set[tuple[str, int]]:
        """Wait until a content is captured; return all that was until then."""
        found: set[tuple[str, int]] = set()
        while True:
            new = self.captured()
            found |= {(each["kind"], each["version"]) for each in new}
            if hashlib.sha256(content).hexdigest() in {each["sha256"] for each in new}:
                return found

    def warned(self) -> str:
        """Wait for the next warning."""
        while "warning" not in (line := self.line()):
            pass
        return str(line["warning"])


@contextmanager
def _watching(vmkeep: Vmkeep) -> Iterator[_Watching]:
    with vmkeep.start("watch") as process:
        try:
            yield _Watching(process)
        finally:
            process.kill()
