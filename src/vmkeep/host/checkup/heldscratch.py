"""Scratch files that a VM's QEMU still has open although their backup is over and nobody finds them any more.

libvirtd that is killed after a job has ended, and before it has closed the scratch, forgets it: seen with libvirt 11.3.
The file was removed with the job; its room on the file system comes back when QEMU closes it, at the VM's end if nobody
has it done before.
"""

from __future__ import annotations

import os
import re
from typing import Final

from vmkeep.errors import HypervisorError
from vmkeep.host.vm.openimages import OpenImage, open_images
from vmkeep.hypervisor import Domain
from vmkeep.hypervisor.blocknodes import BlockNodes

_HELD: Final = re.compile(r"(?P<path>/.*/\.[^/]+\.[0-9a-f]{12}\.scratch) \(deleted\)", re.DOTALL)
_BLOCK_BYTES: Final = 512
_MOST_ROUNDS: Final = 16
"""One closes a node at least; a scratch file has two."""


def held_scratch(domain: Domain) -> dict[str, int]:
    """Return the removed scratch files that QEMU holds, by path, with the bytes that they take; empty beside a job.

    None are told of where QEMU's files cannot be seen (``open_images``).
    """
    if domain.backup_socket() is not None:
        return {}
    opened = open_images(domain.name, domain.uuid, domain.uri)
    held = {}
    for image in () if opened is None else opened.images:
        found = _HELD.fullmatch(image.path)
        if found is not None and image.writable:
            held[found["path"]] = _bytes(image)
    return held


def let_go(domain: Domain, path: str) -> None:
    """Have QEMU close a scratch file that it holds. The caller holds the VM's lock; raises HypervisorError."""
    if path not in held_scratch(domain):
        return  # it has done so
    graph = BlockNodes(domain)
    for _ in range(_MOST_ROUNDS):
        nodes = [node.name for node in graph.nodes() if node.path == path]
        if not nodes:
            return
        # The node of the format uses that of the file, so one of them can be closed at any time.
        refused: list[HypervisorError] = []
        for node in nodes:
            try:
                graph.close(node)
            except HypervisorError as error:
                refused.append(error)
        if len(refused) == len(nodes):
            raise refused[0]
    raise HypervisorError(f"QEMU says that it closed {path}, and lists it still", vm=domain.name, path=path)


def _bytes(image: OpenImage) -> int:
    try:
        return os.stat(image.way).st_blocks * _BLOCK_BYTES  # noqa: PTH116  the kernel's own link, followed
    except OSError:
        return 0  # closed meanwhile
