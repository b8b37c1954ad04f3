"""What may be going on with a VM when a backup is asked for: a row names one, and promises what happens meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt

from tests.rig import VmState
from tests.system.offline import opened
from tests.zoo.stage import Stage

_Context = Callable[[Stage], contextlib.AbstractContextManager[None]]
_CORRUPT_BYTE, _CORRUPT = 79, 2  # incompatible features, bit 1 (QEMU, docs/interop/qcow2.txt)


@dataclass(frozen=True, slots=True)
class Condition:
    """``context`` makes it so and ends it; it needs the VM running or off."""

    context: _Context
    off: bool = False
    job: bool = False  # it is a backup job, which must outlive our command


@contextlib.contextmanager
def _paused(stage: Stage) -> Iterator[None]:
    stage.vm.suspend()
    try:
        yield
    finally:
        stage.vm.resume()


@contextlib.contextmanager
def _another_backup(stage: Stage) -> Iterator[None]:
    with stage.vm.own_backup_job([next(iter(stage.laid))]):
        yield


@contextlib.contextmanager
def _block_copy(stage: Stage) -> Iterator[None]:
    """A mirror that is ready and goes on until somebody ends it."""
    target = next(iter(stage.laid))
    copy = stage.directory / "mirror.qcow2"
    words = ["virsh", "blockcopy", stage.vm.name, target, "--dest", str(copy), "--format", "qcow2", "--transient-job"]
    stage.host.run([*words, "--wait"], check=True)
    try:
        yield
    finally:
        stage.vm.domain.blockJobAbort(target)
        copy.unlink(missing_ok=True)


@contextlib.contextmanager
def _crashed(stage: Stage) -> Iterator[None]:
    """The guest says so through its pvpanic device, and QEMU stays."""
    stage.vm.monitor("o /b 0x505 1")
    deadline = time.monotonic() + 20
    while stage.vm.domain.state()[0] != libvirt.VIR_DOMAIN_CRASHED:
        assert time.monotonic() < deadline, "the VM does not crash"
        time.sleep(0.05)
    try:
        yield
    finally:
        stage.vm.destroy()
        stage.start()


@contextlib.contextmanager
def _managed_save(stage: Stage) -> Iterator[None]:
    stage.start()
    stage.vm.domain.managedSave()
    try:
        yield
    finally:
        stage.vm.domain.managedSaveRemove()


@contextlib.contextmanager
def _image_open(stage: Stage) -> Iterator[None]:
    """Some program that is no VM has the image open for writing."""
    with opened(next(iter(stage.laid.values())).path):
        yield


@contextlib.contextmanager
def _image_missing(stage: Stage) -> Iterator[None]:
    path = next(iter(stage.laid.values())).path
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@contextlib.contextmanager
def _image_corrupt(stage: Stage) -> Iterator[None]:
    """QEMU has marked it so."""
    path = next(iter(stage.laid.values())).path
    before = _change_byte(path, lambda byte: byte | _CORRUPT)
    try:
        yield
    finally:
        _change_byte(path, lambda _byte: before)


def _change_byte(path: Path, change: Callable[[int], int]) -> int:
    with path.open("r+b") as file:
        file.seek(_CORRUPT_BYTE)
        (before,) = file.read(1)
        file.seek(_CORRUPT_BYTE)
        file.write(bytes([change(before)]))
    return int(before)


@contextlib.contextmanager
def _foreign_checkpoint(stage: Stage) -> Iterator[None]:
    """Another tool's checkpoint, which must outlive every command of ours."""
    stage.host.run(["virsh", "checkpoint-create-as", stage.vm.name, "foreign"], check=True)
    yield
    assert "foreign" in [each.getName() for each in stage.vm.domain.listAllCheckpoints()]


@contextlib.contextmanager
def _foreign_snapshot(stage: Stage) -> Iterator[None]:
    words = ["virsh", "snapshot-create-as", stage.vm.name, "foreign", "--disk-only"]
    stage.host.run(words, check=True)
    yield
    assert "foreign" in [each.getName() for each in stage.vm.domain.listAllSnapshots()]


@contextlib.contextmanager
def _foreign_internal_snapshot(stage: Stage) -> Iterator[None]:
    assert stage.vm.state() is VmState.OFF
    stage.host.run(["virsh", "snapshot-create-as", stage.vm.name, "foreign"], check=True)
    yield
    assert "foreign" in [each.getName() for each in stage.vm.domain.listAllSnapshots()]


@contextlib.contextmanager
def _another_definition(stage: Stage) -> Iterator[None]:
    """What the VM will be at its next start is not what it is: it lacks a description and has another memory."""
    root = stage.vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    stage.host.connection.defineXML(root.replace("<vcpu ", "<title>another</title><vcpu ", 1))
    yield


@contextlib.contextmanager
def _transient(stage: Stage) -> Iterator[None]:
    """The VM has lost its definition, and is gone when it stops. Afterwards it gets it back."""
    definition = stage.vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    stage.vm.domain.undefineFlags(
        libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    )
    try:
        yield
    finally:
        stage.host.connection.defineXML(definition)


CONDITIONS = {
    "paused": Condition(_paused),
    "another backup": Condition(_another_backup, job=True),
    "block copy": Condition(_block_copy),
    "crashed": Condition(_crashed),
    "another definition": Condition(_another_definition),
    "foreign checkpoint": Condition(_foreign_checkpoint),
    "foreign snapshot": Condition(_foreign_snapshot),
    "transient": Condition(_transient),
    "managed save": Condition(_managed_save, off=True),
    "image open": Condition(_image_open, off=True),
    "image missing": Condition(_image_missing, off=True),
    "image corrupt": Condition(_image_corrupt, off=True),
    "foreign internal snapshot": Condition(_foreign_internal_snapshot, off=True),
}
