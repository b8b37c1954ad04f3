"""vmkeep's home on a full disk: VMs start through the gate, a capture says what it could not, and nothing is torn."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Iterator

import libvirt
import pytest

from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep

pytestmark = pytest.mark.system


@pytest.fixture
def vmkeep(host: Host) -> Vmkeep:
    return Vmkeep(host)


@pytest.fixture(params=["with the repository", "alone"])
def vm(host: Host, vmkeep: Vmkeep, request: pytest.FixtureRequest) -> Iterator[Vm]:
    """A VM that is off, of which a point was taken, with the home on a small disk of its own."""
    host.run(["mount", "-t", "tmpfs", "-o", "size=32m,mode=0700", "tmpfs", vmkeep.home], check=True)
    try:
        if request.param == "alone":
            vmkeep.json("init", "--repository", host.dir / "work" / "repository")
        vm = host.define("guest", disks=[Disk("vda", MiB)])
        vm.start(paused=True)
        vm.destroy()
        vmkeep.backup("guest")
        vmkeep.json("hook", "install")
        yield vm
        vmkeep.json("hook", "remove")
    finally:
        host.run(["umount", "--lazy", vmkeep.home], check=True)


def fill(host: Host, vmkeep: Vmkeep) -> None:
    host.run(["sh", "-c", f"dd if=/dev/zero of={vmkeep.home}/filler bs=4k 2>/dev/null; true"], check=True)


def contents(vmkeep: Vmkeep) -> list[str]:
    versions = vmkeep.json("state", "versions", "guest", "--kind", "tpm")["versions"]
    return [each["sha256"] for each in versions]


def test_capture_says_so_the_vm_starts_and_nothing_is_torn(host: Host, vmkeep: Vmkeep, vm: Vm) -> None:
    before = contents(vmkeep)
    first = vm.tpm_state()
    vm.change_tpm()
    now = vm.tpm_state()
    fill(host, vmkeep)
    failed = vmkeep.fails("state", "capture", "guest")
    assert failed.code == "no-space"
    assert "full" in failed.error["message"]
    assert contents(vmkeep) == before
    vm.start(paused=True)
    vm.destroy()
    permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    permall.unlink()
    with pytest.raises(libvirt.libvirtError, match="missing"):
        vm.start(paused=True)  # what it refuses, it refuses all the same
    permall.write_bytes(now)
    findings = json.loads(vmkeep.run("--json", "doctor").stdout)["doctor"]["findings"]
    assert not {finding["code"] for finding in findings} & {"catalogue-unusable", "flows-unusable", "gate-broken"}

    host.run(["rm", vmkeep.home / "filler"], check=True)
    assert vmkeep.json("verify", "--all")["ok"]
    vmkeep.json("state", "capture", "guest")
    assert contents(vmkeep) == [hashlib.sha256(now).hexdigest(), hashlib.sha256(first).hexdigest()]
    assert vmkeep.json("verify", "--all")["ok"]


def test_watch_tells_it_and_keeps_the_newest_when_there_is_room_again(host: Host, vmkeep: Vmkeep, vm: Vm) -> None:
    watch = vmkeep.start("watch")
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        assert watch.stdout is not None
        for line in watch.stdout:
            lines.put(line)

    threading.Thread(target=listen, daemon=True).start()
    try:
        vm.change_tpm()
        assert "new" in json.loads(lines.get(timeout=30))
        fill(host, vmkeep)
        vm.change_tpm()
        assert "full" in json.loads(lines.get(timeout=30))["warning"]
        host.run(["rm", vmkeep.home / "filler"], check=True)
        vm.change_tpm()
        new = json.loads(lines.get(timeout=30))["new"]
        assert hashlib.sha256(vm.tpm_state()).hexdigest() in {each["sha256"] for each in new}
        watch.terminate()
        assert watch.wait(10) == 0
    finally:
        watch.kill()
        watch.communicate()
