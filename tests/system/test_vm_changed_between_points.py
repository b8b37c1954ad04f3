"""The VM itself is changed between points: rebooted, transient, undefined, renamed, its disk moved, migrated."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rig import Disk, Host, KiB, MiB, Vm, VmState
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth

pytestmark = pytest.mark.system

_INCREMENTAL = ("incremental", "incremental")


class _History:
    """Points of one VM with the truth about each, all compared at the end."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._seed = 0
        self._kept: list[tuple[dict[str, Any], Truth]] = []

    def keep(self, vmkeep: Vmkeep) -> dict[str, tuple[str, str]]:
        """Change both disks, take a point and return mode and reason of each disk."""
        self._seed += 1
        if self._vm.state() is not VmState.OFF:
            for target in ("vda", "vdb"):
                self._vm.write_random(target, start=self._seed * 256 * KiB, length=64 * KiB, seed=self._seed)
                self._vm.write_zeroes(target, start=self._seed * 64 * KiB, length=64 * KiB)
        point = vmkeep.backup(self._vm.name)
        self._kept.append((point, Truth.of(self._vm)))
        return {disk["target"]: (disk["mode"], disk["reason"]) for disk in point["disks"]}

    def bytes_read(self) -> int:
        return sum(int(disk["bytes_read"]) for disk in self._kept[-1][0]["disks"])

    def assert_kept(self, vmkeep: Vmkeep) -> None:
        """Fail unless every point is exactly what was there at its instant."""
        parent = vmkeep.host.dir / "work" / "points"
        parent.mkdir()
        outputs = vmkeep.restore_all([point for point, _ in self._kept], parent)
        for (_, truth), output in zip(self._kept, outputs, strict=True):
            truth.assert_files(output)


def _running(host: Host) -> Vm:
    """A VM with firmware and TPM that keep still."""
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 8 * MiB)])
    vm.start(paused=True)
    for target in ("vda", "vdb"):
        vm.write_random(target, start=4 * MiB, length=2 * MiB, seed=77)
    return vm


def _all_incremental(modes: dict[str, tuple[str, str]]) -> bool:
    return set(modes.values()) == {_INCREMENTAL}


def test_vm_that_is_rebooted_transient_and_defined_again_stays_incremental(host: Host, vmkeep: Vmkeep) -> None:
    vm = _running(host)
    history = _History(vm)
    history.keep(vmkeep)
    vm.resume()
    vm.reset()
    vm.settle()
    vm.suspend()
    assert _all_incremental(history.keep(vmkeep))
    definition = vm.domain.XMLDesc(2)  # inactive
    host.run(["virsh", "undefine", "guest", "--checkpoints-metadata", "--keep-nvram", "--keep-tpm"])
    if vm.domain.isPersistent():  # libvirt 9.0 refuses the undefinition of a running VM that has a TPM to keep
        host.run(["virsh", "undefine", "guest", "--checkpoints-metadata", "--keep-nvram"], check=True)
    assert not vm.domain.isPersistent()
    transient = history.keep(vmkeep)
    host.connection.defineXML(definition)
    assert vm.domain.isPersistent()
    assert _all_incremental(transient)
    assert _all_incremental(history.keep(vmkeep))
    history.assert_kept(vmkeep)


def test_vm_that_is_undefined_and_defined_again_with_its_files_stays_incremental(host: Host, vmkeep: Vmkeep) -> None:
    vm = _running(host)
    history = _History(vm)
    history.keep(vmkeep)
    vm.destroy()
    definition = vm.domain.XMLDesc(2)
    tpm = {path: path.read_bytes() for path in [vm.tpm_directory / "tpm2" / "tpm2-00.permall"]}
    host.run(["virsh", "undefine", "guest", "--checkpoints-metadata", "--keep-nvram"], check=True)
    host.connection.defineXML(definition)
    for path, content in tpm.items():  # libvirt 9.0 takes the TPM state along; its user had a copy
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert _all_incremental(history.keep(vmkeep))
    vm.start(paused=True)
    assert _all_incremental(history.keep(vmkeep))
    history.assert_kept(vmkeep)


def test_renamed_vm_is_known_by_its_uuid(host: Host, vmkeep: Vmkeep) -> None:
    vm = _running(host)
    history = _History(vm)
    history.keep(vmkeep)
    vm.destroy()
    for checkpoint in vm.domain.listAllCheckpoints():  # or libvirt refuses to rename
        host.run(["virsh", "checkpoint-delete", "guest", checkpoint.getName(), "--metadata"], check=True)
    nvram = vm.nvram_path
    host.run(["virsh", "domrename", "guest", "renamed"], check=True)
    vm.name = "renamed"
    if vm.nvram_path != nvram:  # the name is in the path that libvirt 9.0 chooses
        nvram.rename(vm.nvram_path)
    vm.start(paused=True)
    assert _all_incremental(history.keep(vmkeep))
    assert history.bytes_read() == 2 * 128 * KiB - 2 * 64 * KiB  # what was made zero is not read
    history.assert_kept(vmkeep)


def test_disk_moved_by_a_block_copy_costs_only_that_disk(host: Host, vmkeep: Vmkeep) -> None:
    vm = _running(host)
    history = _History(vm)
    history.keep(vmkeep)
    place = str(host.dir / "disks" / "moved.qcow2")
    copy = ["virsh", "blockcopy", "guest", "vda", "--dest", place, "--format", "qcow2", "--transient-job"]
    host.run([*copy, "--wait", "--pivot"], check=True)
    modes = history.keep(vmkeep)
    assert modes["vda"][0] == "full"
    assert modes["vdb"] == _INCREMENTAL
    assert _all_incremental(history.keep(vmkeep))
    history.assert_kept(vmkeep)


def test_vm_that_migrates_away_and_back_is_never_read_against_a_wrong_base(
    host: Host, second_host: Host, vmkeep: Vmkeep
) -> None:
    """Both hosts see the disks under the same path, as on shared storage."""
    vm = _running(host)
    history = _History(vm)
    history.keep(vmkeep)
    vm.resume()  # QEMU gives the images back to a VM that was migrated while suspended only when it resumes
    vm.settle()
    _migrate(host, second_host)
    away = Vm(second_host, vm.uuid, vm.name)
    for target in ("vda", "vdb"):
        away.write_random(target, start=7 * MiB, length=64 * KiB, seed=5)
    _migrate(second_host, host)
    vm.suspend()
    modes = history.keep(vmkeep)
    # Migration takes the bitmaps of images on shared storage along, and leaves the checkpoints behind.
    assert _all_incremental(modes), modes
    assert _all_incremental(history.keep(vmkeep))
    history.assert_kept(vmkeep)


def _migrate(source: Host, destination: Host) -> None:
    incoming = destination.dir / "jobs" / "incoming.sock"
    incoming.unlink(missing_ok=True)
    command = ["virsh", "migrate", "--live", "--persistent", "--undefinesource", "--p2p", "--unsafe", "guest"]
    source.run([*command, destination.outer_uri, "--migrateuri", f"unix://{incoming}"], check=True)
