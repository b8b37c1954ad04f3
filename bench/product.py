"""vmkeep's side of every ratio: its whole commands, as its users start them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import libvirt

from bench.disks import SIZE_BYTES
from bench.measuring import Run, measured, warm_memory
from tests.rig import Host, Vm

COMMAND = Path(__file__).resolve().parent.parent / ".venv/bin/vmkeep"


def command(host: Host, *arguments: str | Path) -> Run:
    """Run one command of vmkeep with ``--json``."""
    return measured(host, [COMMAND, "--json", *arguments])


def new_repository(host: Host, vm: Vm) -> None:
    """Begin again: no catalogue, nothing known in the repository, no checkpoint on the VM."""
    shutil.rmtree(host.dir / "home")
    (host.dir / "home").mkdir(mode=0o700)
    for checkpoint in vm.domain.listAllCheckpoints():
        if vm.domain.isActive():
            checkpoint.delete()
        else:  # libvirt then forgets a checkpoint but cannot remove its bitmap
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
            image = str(vm.disk_path("vda"))
            subprocess.run(["qemu-img", "bitmap", "--remove", image, checkpoint.getName()], check=True)
    command(host, "init")


def first_point(host: Host, vm: Vm) -> Run:
    """Take the first point of a new repository, with warm memory."""
    new_repository(host, vm)
    warm_memory(host.dir / "work", SIZE_BYTES)
    return backup(host, vm)


def backup(host: Host, vm: Vm, *options: str) -> Run:
    return command(host, "backup", *options, "--", vm.name)


def restore(host: Host, point: str, output: Path, *options: str) -> Run:
    """Restore to files, with warm memory."""
    warm_memory(host.dir / "work", SIZE_BYTES)
    return command(host, "restore", point, "--output", output, *options)


def point_of(run: Run) -> dict[str, Any]:
    """Return the point that a run of ``backup`` took."""
    point = json.loads(run.output)["point"]
    assert isinstance(point, dict)
    return point


def disk_of(run: Run) -> dict[str, Any]:
    """Return what the point says of its only disk."""
    (disk,) = point_of(run)["disks"]
    assert isinstance(disk, dict)
    return disk
