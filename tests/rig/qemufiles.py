"""What a guest's QEMU has open by the kernel's word, and an image changed behind libvirt's back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import libvirt_qemu

from tests.rig.errors import RigError
from tests.rig.vm import Vm


def qemu_process(vm: Vm) -> Path:
    """Return the directory in /proc, as seen from outside the host, of the VM's QEMU."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"qemu-system" in words[0] and vm.uuid.encode() in words:
                return process
    raise RigError(f"{vm.name} has no QEMU")


def images_open(vm: Vm) -> dict[Path, bool]:
    """Return the files of the host's own directory that QEMU has open, each with whether it may write to it."""
    process = qemu_process(vm)
    found: dict[Path, bool] = {}
    for link in (process / "fd").iterdir():
        try:
            path = link.readlink()
            lines = (process / "fdinfo" / link.name).read_text().splitlines()
        except OSError:
            continue
        if path.is_relative_to(vm.host.dir):
            flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
            found[path] = found.get(path, False) or flags & os.O_ACCMODE != os.O_RDONLY
    return found


def images_written(vm: Vm) -> set[Path]:
    """Return those that it may write to."""
    return {path for path, writable in images_open(vm).items() if writable}


def execute(vm: Vm, command: str, **arguments: object) -> Any:
    """Carry out a command of QEMU's own monitor."""
    order = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(vm.domain, order, 0))
    if "error" in answer:
        raise RigError(f"{vm.name}: {command}: {answer['error']}")
    return answer["return"]


def put_on_overlays(vm: Vm, overlays: dict[str, Path]) -> None:
    """Have QEMU write to new qcow2 overlays, of which libvirt knows nothing: as after the death of libvirtd."""
    actions = []
    for target, overlay in overlays.items():
        disk = vm.disk(target)
        assert disk.path is not None
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", disk.format, "-b", str(disk.path), str(overlay)]
        subprocess.run(command, check=True)
        about = disk.path.stat()
        shutil.chown(overlay, about.st_uid, about.st_gid)
        file = {"driver": "file", "filename": str(overlay), "auto-read-only": True, "discard": "unmap"}
        execute(vm, "blockdev-add", **file, **{"node-name": f"astray-{target}-storage"})
        node = {"driver": "qcow2", "file": f"astray-{target}-storage", "backing": None}
        execute(vm, "blockdev-add", **node, **{"node-name": f"astray-{target}-format"})
        data = {"node": node_of(vm, disk.path), "overlay": f"astray-{target}-format"}
        actions.append({"type": "blockdev-snapshot", "data": data})
    execute(vm, "transaction", actions=actions)


def node_of(vm: Vm, path: Path) -> str:
    """Return the name of the node by which a disk of the VM is on an image: its format's where it has one."""
    nodes = {node["node-name"]: node["file"] for node in execute(vm, "query-named-block-nodes", flat=True)}
    mine = sorted(str(name) for name, file in nodes.items() if file == str(path) and name.startswith("libvirt-"))
    return mine[0]  # "-format" comes before "-storage"


def pivoted_behind_libvirt(vm: Vm, target: str, copy: Path) -> None:
    """Have QEMU write to a new copy of a disk's image, of which libvirt knows nothing, and close the image."""
    disk, size = vm.disk(target), vm.domain.blockInfo(target)[0]
    assert disk.path is not None
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(copy), str(size)], check=True)
    about = disk.path.stat()
    shutil.chown(copy, about.st_uid, about.st_gid)
    file = {"driver": "file", "filename": str(copy), "auto-read-only": True, "discard": "unmap"}
    execute(vm, "blockdev-add", **file, **{"node-name": "copy-storage"})
    execute(vm, "blockdev-add", driver="qcow2", file="copy-storage", **{"node-name": "copy-format"})
    old, job = node_of(vm, disk.path), "behind"
    arguments = {"job-id": job, "device": old, "target": "copy-format", "sync": "full"}
    execute(vm, "blockdev-mirror", **arguments)
    _wait_for(vm, job, "ready")
    execute(vm, "job-complete", id=job)
    _wait_for(vm, job, None)
    execute(vm, "blockdev-del", **{"node-name": old})
    execute(vm, "blockdev-del", **{"node-name": old.replace("-format", "-storage")})


def _wait_for(vm: Vm, job: str, status: str | None) -> None:
    deadline = time.monotonic() + 20
    while {each["id"]: each["status"] for each in execute(vm, "query-jobs")}.get(job) != status:
        if time.monotonic() > deadline:
            raise RigError(f"{vm.name}: the job {job} does not become {status or 'done'}")
        time.sleep(0.01)
