"""QEMU's block layer asked and changed behind libvirt's back, through the monitor command that libvirt passes on.

libvirt marks a VM on which this was used as tainted (``custom-monitor``), and says so once in its log. So it is used
only to put right what libvirt itself does not know of: an overlay on which it put a disk before it was killed.
Everything here was tried with libvirt 9.0 (QEMU 7.2) and 11.3 (QEMU 10.0): jobs and nodes with names that are not
libvirt's are left alone by it, also when it is restarted meanwhile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import libvirt_qemu

from vmkeep.errors import HypervisorError
from vmkeep.hypervisor.domain import Domain
from vmkeep.hypervisor.translation import libvirt_errors

CONCLUDED: Final = "concluded"
READY: Final = "ready"


@dataclass(frozen=True, slots=True)
class BlockNode:
    """A node of QEMU's block graph. ``path`` is the file or device that it is on; None when it is on no local one."""

    name: str
    driver: str
    path: str | None


@dataclass(frozen=True, slots=True)
class BlockJob:
    """A job of QEMU's. ``status`` is QEMU's word; ``error`` is what ended one that is concluded; None for success."""

    name: str
    status: str
    error: str | None
    done_bytes: int
    total_bytes: int


class BlockNodes:
    """The block graph of one running VM. Methods raise HypervisorError with QEMU's words."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def nodes(self) -> tuple[BlockNode, ...]:
        """Return all nodes that have a name."""
        found = self._execute("list its images", "query-named-block-nodes", flat=True)
        return tuple(BlockNode(str(node["node-name"]), str(node["drv"]), _path(str(node["file"]))) for node in found)

    def job(self, name: str) -> BlockJob | None:
        """Return the job of that name."""
        for job in self._execute("list its jobs", "query-jobs"):
            if job["id"] == name:
                done, total = int(job["current-progress"]), int(job["total-progress"])
                return BlockJob(name, str(job["status"]), job.get("error"), done, total)
        return None

    def commit(self, name: str, top: str, base: str) -> None:
        """Begin to write the node ``top``, which the guest writes to, with all above ``base`` into ``base``.

        The job stays when it is done, until it is dismissed: who dies meanwhile finds out what came of it.
        """
        arguments = {"job-id": name, "device": top, "base-node": base, "auto-finalize": True, "auto-dismiss": False}
        self._execute("begin to merge", "block-commit", **arguments)

    def complete(self, name: str) -> None:
        """Let a job that is ready put the guest on the base."""
        self._execute("end the merging", "job-complete", id=name)

    def dismiss(self, name: str) -> None:
        """Forget a job that is concluded."""
        self._execute("dismiss the job", "job-dismiss", id=name)

    def close(self, node: str) -> None:
        """Close a node that nothing uses; QEMU refuses for one that is used."""
        self._execute("close the image", "blockdev-del", **{"node-name": node})

    def _execute(self, doing: str, command: str, **arguments: object) -> Any:
        order = json.dumps({"execute": command, "arguments": arguments})
        with libvirt_errors(f"have QEMU {doing}", self._domain.name):
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(self._domain.handle, order, 0))
        if "error" in answer:
            said = answer["error"].get("desc", "no reason")
            raise HypervisorError(f"QEMU could not {doing}: {said}", vm=self._domain.name)
        return answer["return"]


def _path(name: str) -> str | None:
    """Return the path in QEMU's name of a node: plain, or of what it stands on when it was opened by options."""
    if name.startswith("/"):
        return name
    if not name.startswith("json:"):
        return None
    try:
        options = json.loads(name.removeprefix("json:"))
    except ValueError:
        return None
    while isinstance(options, dict):
        if isinstance(options.get("filename"), str):
            return str(options["filename"])
        options = options.get("file")
    return options if isinstance(options, str) and options.startswith("/") else None
