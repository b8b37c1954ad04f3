"""An overlay that QEMU writes to and libvirt does not know, written into the image below it while the guest runs.

QEMU's own job does it (an active commit), begun through the monitor. Whoever dies meanwhile leaves a job of a name that
tells its disk, and the next one goes on with it: it waits while it runs, lets it end when it is ready, and finds out
what came of it when it is over. Nothing is removed here, and a failed job leaves the guest on the overlay.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vmkeep.errors import HypervisorError, VmBusy
from vmkeep.host.vm.openimages import open_images
from vmkeep.hypervisor import Domain
from vmkeep.hypervisor.blocknodes import CONCLUDED, READY, BlockNode, BlockNodes

_STEP_SECONDS: Final = 0.02
# QEMU closes an image that its job left within some milliseconds.
_CLOSING_SECONDS: Final = 10.0
_JOB: Final = "vmkeep-merge-"
# What QEMU calls an image without a format of its own, by its file or device.
_PLAIN: Final = ("raw", "file", "host_device")


def merge_overlay(
    domain: Domain,
    target: str,
    image: str,
    overlay: str,
    *,
    uri: str,
    stop: Callable[[], None],
    merged: Callable[[], None] = lambda: None,
) -> None:
    """Put the guest from ``overlay`` back on ``image``, with all that it wrote, and have QEMU close the overlay.

    An overlay that QEMU has open and nothing uses is only closed. ``merged`` is called when a job has merged it and
    QEMU writes to the image, before anything of the job is forgotten. Raises HypervisorError, VmBusy, and what ``stop``
    raises; the job then goes on, and the next call with it.
    """
    nodes, job = BlockNodes(domain), _JOB + target
    found = nodes.job(job)
    if found is None and not _writes(domain, uri, image):
        top, base = _node(nodes, domain, overlay), _node(nodes, domain, image)
        nodes.commit(job, top.name, base.name)
        found = nodes.job(job)
    while found is not None and found.status != CONCLUDED:
        stop()
        if found.status == READY:
            nodes.complete(job)
        time.sleep(_STEP_SECONDS)
        found = nodes.job(job)
    if found is not None and (found.error is not None or not _writes(domain, uri, image)):
        nodes.dismiss(job)
        raise HypervisorError(
            f"{overlay} of disk {target} could not be merged into {image}: {found.error or 'its job was ended early'}",
            vm=domain.name,
            disk=target,
            path=overlay,
            hint="The guest runs on the overlay as before, and nothing is lost as long as it is not stopped. Put right "
            "what QEMU says, then run `vmkeep doctor --fix` again.",
        )
    if not _writes(domain, uri, image):
        raise VmBusy(f"QEMU is not on {image} yet", vm=domain.name, disk=target, path=image)
    if found is not None:
        merged()
        nodes.dismiss(job)
    _close(nodes, domain, overlay, uri)


def _writes(domain: Domain, uri: str, image: str) -> bool:
    opened = open_images(domain.name, domain.uuid, uri)
    return opened is not None and opened.writes(image)


def _close(nodes: BlockNodes, domain: Domain, overlay: str, uri: str) -> None:
    """Have QEMU close an overlay. Raises HypervisorError while something uses it."""
    mine = [node for node in nodes.nodes() if node.path is not None and _same(node.path, overlay)]
    # Closing the format's node first: it uses the file's.
    for node in sorted(mine, key=lambda node: node.driver in _PLAIN):
        nodes.close(node.name)
    deadline = time.monotonic() + _CLOSING_SECONDS
    while (opened := open_images(domain.name, domain.uuid, uri)) is None or opened.has(overlay):
        if time.monotonic() > deadline:
            raise VmBusy(f"QEMU still has {overlay} open", vm=domain.name, path=overlay)
        time.sleep(_STEP_SECONDS)


def _node(nodes: BlockNodes, domain: Domain, path: str) -> BlockNode:
    """Return the node of an image: its format's, or that of the plain file or device where it has no other."""
    found = [node for node in nodes.nodes() if node.path is not None and _same(node.path, path)]
    found.sort(key=lambda node: (node.driver in _PLAIN, node.driver != "raw"))
    if not found:
        raise HypervisorError(f"QEMU has no image {path}", vm=domain.name, path=path)
    return found[0]


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def remove_closed(domain: Domain, overlay: str, uri: str) -> None:
    """Remove an overlay that is proved to be open nowhere in the VM's QEMU, if it runs."""
    opened = open_images(domain.name, domain.uuid, uri)
    if opened is not None and opened.has(overlay):
        raise VmBusy(f"QEMU has {overlay} open", vm=domain.name, path=overlay)
    Path(overlay).unlink(missing_ok=True)
