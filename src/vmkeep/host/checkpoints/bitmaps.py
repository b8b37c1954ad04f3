"""What is known of the bitmaps of one VM: what libvirt says of them, and what stands in the images. Only read.

A backup, `vmkeep doctor` and `vmkeep checkpoint health` all look through this, and ``vmkeep.planning.bitmaps`` judges
for all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

from vmkeep.definition import Definition
from vmkeep.errors import HypervisorError, HypervisorUnavailable
from vmkeep.host.vm.images import writer_in_chain
from vmkeep.hypervisor import Domain
from vmkeep.logs import get_logger
from vmkeep.planning.bitmaps import Bitmaps, Chains, obstacle_to_bitmaps

_log = get_logger(__name__)
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def look_at_bitmaps(
    domain: Domain,
    definition: Definition,
    chains: Chains,
    names: Collection[str],
    *,
    stopped: bool,
    unread: Mapping[str, str] = _NOTHING,
    unasked: str | None = None,
) -> Bitmaps:
    """Ask libvirt for the checkpoints ``names``, all of which it lists, unless the VM is off.

    ``chains`` are the images of the disks that could be read, as they are now; ``unread`` says why the others could
    not. ``unasked`` says why libvirt must not be asked.
    """
    holding = {disk.target: disk for disk in definition.disks if obstacle_to_bitmaps(disk) is None}
    kept = {target: chain for target, chain in chains.items() if target in holding}
    missed = {target: unread.get(target, "its image cannot be read") for target in holding if target not in kept}
    if stopped:
        writers = {target: writer for target, chain in kept.items() if (writer := writer_in_chain(chain)) is not None}
        return Bitmaps(chains=kept, valid_bytes=None, unread=missed, writers=writers)
    asked = () if unasked is not None else names
    valid, refused = {}, {}
    for name in asked:
        try:
            valid[name] = domain.checkpoint_dirty_bytes(name)
        except HypervisorUnavailable:
            raise
        except HypervisorError as error:
            _log.warning("bitmaps not told", checkpoint=name, error=error.message)
            refused[name] = error.message
    return Bitmaps(chains=kept, valid_bytes=valid, unread=missed, unasked=unasked, refused=refused)
