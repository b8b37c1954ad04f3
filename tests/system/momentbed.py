"""What the tests of checkpoints and snapshots share: virsh beside vmkeep, and QEMU's own view of bitmaps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from tests.rig import Host, Vm
from tests.rig.cli import Vmkeep

NAME = "guest"


def virsh(host: Host, *words: str | Path) -> str:
    """Return what virsh prints, without the empty line that it ends with when it is not told to be quiet."""
    return host.run(["virsh", "-q", *words], env={"LC_ALL": "C.UTF-8"}, check=True).stdout


def text(vmkeep: Vmkeep, *words: str | Path) -> str:
    """Return what a command prints that must succeed and have nothing else to say."""
    done = vmkeep.run(*words)
    assert (done.returncode, done.stderr) == (0, ""), (words, done.stdout, done.stderr)
    return done.stdout


def forest(vmkeep: Vmkeep, kind: str = "checkpoint") -> dict[str, str | None]:
    """Return every moment with its parent, as vmkeep tells it and libvirt itself."""
    listed = {moment["name"]: moment["parent"] for moment in vmkeep.json(kind, "list", NAME)[f"{kind}s"]}
    domain = vmkeep.host.connection.lookupByName(NAME)
    assert listed == {
        moment.getName(): _parent(moment)
        for moment in (domain.listAllCheckpoints() if kind == "checkpoint" else domain.listAllSnapshots())
    }
    return listed


def _parent(moment: libvirt.virDomainCheckpoint | libvirt.virDomainSnapshot) -> str | None:
    try:
        return moment.getParent().getName()
    except libvirt.libvirtError as error:
        if "does not have a parent" not in str(error):
            raise
        return None


def edit(vmkeep: Vmkeep, *words: str, sed: str) -> subprocess.CompletedProcess[str]:
    """Run a command that edits, with sed as the editor."""
    return vmkeep.run(*words, env={"EDITOR": f"sed -i '{sed}'"})


def kept_file(said: str) -> Path:
    """Return the file that a refused edit is kept in."""
    (line,) = (line for line in said.splitlines() if "is kept in " in line)
    return Path(line.partition("is kept in ")[2])


def remove_bitmap_in_qemu(vm: Vm, name: str, target: str) -> None:
    """Remove a bitmap of a running VM behind libvirt's back."""
    path = str(vm.disk_path(target))
    for node in _ask(vm, "query-named-block-nodes"):
        if node["file"] == path and any(bitmap.get("name") == name for bitmap in node.get("dirty-bitmaps", ())):
            _ask(vm, "block-dirty-bitmap-remove", node=node["node-name"], name=name)


def _ask(vm: Vm, command: str, **arguments: object) -> Any:
    answer = libvirt_qemu.qemuMonitorCommand(vm.domain, json.dumps({"execute": command, "arguments": arguments}), 0)
    return json.loads(answer)["return"]
