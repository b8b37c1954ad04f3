"""QEMU's block layer asked and changed behind libvirt's back, through the monitor command that libvirt passes on.

libvirt marks a VM on which this was used as tainted (``custom-monitor``), and says so once in its log. So it is used
only to put right what libvirt itself does not know of: an overlay on which it put a disk before it was killed.
Everything here was tried with libvirt 9.0 (QEMU 7.2) and 11.3 (QEMU 10.0): jobs and nodes with names that are not
libvirt's are left alone by it, also when it is restarted meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import libvirt_qemu

from vmkeep.errors import HypervisorError
from vmkeep.hypervisor.domain import Domain
from vmkeep.hypervisor.translation import libvirt_errors, shortened
from vmkeep.values import dataclass

T = TypeVar("T")

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
        doing = "list its images"
        with _understood(doing, self._domain.name):
            found = _known(self._execute(doing, "query-named-block-nodes", flat=True), list)
            return tuple(
                BlockNode(_field(node, "node-name", str), _field(node, "drv", str), _path(_field(node, "file", str)))
                for node in found
            )

    def job(self, name: str) -> BlockJob | None:
        """Return the job of that name."""
        doing = "list its jobs"
        with _understood(doing, self._domain.name):
            for job in _known(self._execute(doing, "query-jobs"), list):
                if _field(job, "id", str) == name:
                    done, total = (max(0, _field(job, f"{which}-progress", int)) for which in ("current", "total"))
                    said = shortened(_field(job, "error", str)) if "error" in job else None
                    return BlockJob(name, _field(job, "status", str), said, done, total)
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

    def _execute(self, doing: str, command: str, **arguments: object) -> object:
        order = json.dumps({"execute": command, "arguments": arguments})
        with libvirt_errors(f"have QEMU {doing}", self._domain.name):
            text = libvirt_qemu.qemuMonitorCommand(self._domain.handle, order, 0)
        with _understood(doing, self._domain.name):
            answer = _known(json.loads(text), dict)
            if "error" in answer:
                said = shortened(_field(answer["error"], "desc", str))
                raise HypervisorError(f"QEMU could not {doing}: {said}", vm=self._domain.name)
            return _field(answer, "return", object)


@contextmanager
def _understood(doing: str, vm: str) -> Iterator[None]:
    """Translate what comes of an answer that is none: the guest may have taken QEMU over."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise HypervisorError(
            f"QEMU gave an answer that cannot be understood, asked to {doing}",
            vm=vm,
            hint="Restart the VM, so that it has a new QEMU. A guest that took its QEMU over can make it say anything.",
        ) from error


def _known(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"no {kind.__name__}")
    return value


def _field(value: object, name: str, kind: type[T]) -> T:
    held = _known(value, dict)
    if name not in held:
        raise ValueError(f"no {name}")
    return _known(held[name], kind)


def _path(name: str) -> str | None:
    """Return the path in QEMU's name of a node: plain, or of what it stands on when it was opened by options."""
    options: object = name
    if name.startswith("json:"):
        try:
            options = json.loads(name.removeprefix("json:"))
        except (ValueError, RecursionError):
            return None
    while isinstance(options, dict):
        named = options.get("filename")
        options = named if isinstance(named, str) else options.get("file")
    return options if isinstance(options, str) and options.startswith("/") and _is_name(options) else None


def _is_name(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
