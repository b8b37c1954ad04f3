"""A VM whose guest stands still for an instant: it goes on whatever happens, and its images are on the disk by then."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from vmkeep.errors import HypervisorError, VmBusy, VmkeepError
from vmkeep.hypervisor import Domain, RunState
from vmkeep.paths import open_place, reopen
from vmkeep.planning.images import ImageLayer


def as_text(moment: datetime) -> str:
    """Return a moment as points record it: ISO 8601 in UTC with microseconds."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def resume_guest(domain: Domain) -> None:
    """Resume a VM that was suspended for an instant; one that stopped meanwhile needs nothing."""
    try:
        domain.resume()
    except VmkeepError:
        # Gone or stopped meanwhile, or a libvirt that does not answer: the guardian goes on trying in that case.
        if domain.state().run is RunState.PAUSED:
            raise HypervisorError("the VM could not be resumed after the instant", vm=domain.name) from None


def sync_images(chains: Mapping[str, Sequence[ImageLayer]]) -> None:
    """Make what the guest wrote durable before it stands still: QEMU does so when it is suspended, and waits for it.

    20 MiB of writes made the pause 15 ms longer. An image that cannot be opened here is left to QEMU.
    """
    for layers in chains.values():
        with suppress(OSError):
            place = open_place(layers[0].path)
            try:
                image = reopen(place, os.O_RDONLY)
            finally:
                os.close(place)
            try:
                os.fdatasync(image)
            finally:
                os.close(image)


# A freeze waits until the guest has written out what it holds; libvirt's answer to it is waited for as long.
AGENT_WORK_SECONDS = 65.0


def require_standing(domain: Domain, what: str) -> None:
    """Raise VmBusy for a VM that somebody resumed or stopped: its state files may be of different times."""
    if domain.state().run is not RunState.PAUSED:
        raise VmBusy(
            f"VM {domain.name!r} was resumed or stopped by somebody while {what}",
            vm=domain.name,
            hint="Run the command again.",
        )
