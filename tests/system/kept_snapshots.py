"""Snapshots of libvirt in tests, with the truth about what the VM was at each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.rig import Vm
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot: what the VM was at its instant, on which images, and the file with its memory."""

    name: str
    truth: Truth
    images: dict[str, Path]
    memory: Path | None = None


def take(
    vm: Vm,
    vmkeep: Vmkeep | None,
    name: str,
    *,
    memory: bool = False,
    internal: bool = False,
    uefi: bool = True,
    tpm: bool = True,
) -> Taken:
    """Make a snapshot of a VM that keeps still: with ``vmkeep`` by that, else by virsh, which keeps no state files."""
    truth = Truth.of(vm, uefi=uefi, tpm=tpm)
    images = {disk.target: disk.path for disk in vm.disks() if disk.path is not None}
    file = vm.host.dir / "disks" / f"{name}.memory" if memory else None
    if vmkeep is not None:
        how = ["--memspec", f"file={file}"] if memory else ["--internal"] if internal else []
        vmkeep.json("snapshot", "create", vm.name, name, *how)
    else:
        how = ["--memspec", f"file={file},snapshot=external"] if memory else [] if internal else ["--disk-only"]
        vm.host.run(["virsh", "snapshot-create-as", vm.name, name, *how], check=True)
    return Taken(name, truth, images, file)


def names(vm: Vm) -> list[str]:
    return sorted(snapshot.getName() for snapshot in vm.domain.listAllSnapshots())


def current(vm: Vm) -> str:
    return str(vm.domain.snapshotCurrent().getName())
