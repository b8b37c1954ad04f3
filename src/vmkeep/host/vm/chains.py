"""The chain that a definition names against the one that the images name: a guest reads the former, a tool the latter.

Wherever they differ a point of the VM while it is off would hold what its guest never saw, and the next start would
show the guest what is in no point. So such a disk is refused, and a restore or revert leaves none behind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from vmkeep.definition import DefinedBacking, Definition
from vmkeep.planning.images import ImageLayer
from vmkeep.transfer.images import LUKS


def chain_faults(definition: Definition, chains: Mapping[str, Sequence[ImageLayer]]) -> dict[str, str]:
    """Return, by target, how definition and images differ, for people. ``chains`` are those that could be read."""
    faults = {disk.target: backing_fault(disk.backing, chains.get(disk.target, ())) for disk in definition.disks}
    return {target: fault for target, fault in faults.items() if fault is not None}


def backing_fault(defined: DefinedBacking | None, chain: Sequence[ImageLayer]) -> str | None:
    """Return how what a definition puts below an image differs from what stands there by the images; None: in nothing.

    ``chain`` is the image with all below it, the top one first; empty when it could not be read.
    """
    if defined is None or not chain:
        return None
    below = chain[1:]
    if chain[-1].backing is not None:
        # Only the top was looked at: of what is below it the nearest is known, by its name.
        return _nearest_fault(defined, chain[-1].backing, chain[-1].backing_format)
    for named, layer in zip(defined.layers, below, strict=False):
        if named.path is not None and os.path.realpath(named.path) != os.path.realpath(layer.path):
            return f"the VM's definition puts {named.path} below it, and the image itself {layer.path}"
        if _taken_otherwise(named.format, layer.format):
            return (
                f"the VM's definition takes {layer.path} below it for {named.format}, and the image for {layer.format}"
            )
    if len(defined.layers) > len(below):
        return f"the VM's definition puts {defined.layers[len(below)].path} below it, and its image names nothing there"
    if defined.ends and len(below) > len(defined.layers):
        return (
            f"the VM's definition lets nothing stand below it where its image names {below[len(defined.layers)].path}"
        )
    return None


def _taken_otherwise(defined: str | None, named: str | None) -> bool:
    # libvirt has no word of its own for a raw image that is encrypted.
    return defined is not None and named is not None and defined != named and (defined, named) != ("raw", LUKS)


def _nearest_fault(defined: DefinedBacking, named: str, named_format: str | None) -> str | None:
    first = defined.layers[0].path if defined.layers else None
    if first is not None and os.path.realpath(first) != os.path.realpath(named):
        return f"the VM's definition puts {first} below it, and the image itself {named}"
    if first is not None and _taken_otherwise(defined.layers[0].format, named_format):
        taken = defined.layers[0].format
        return f"the VM's definition takes {first} below it for {taken}, and the image for {named_format}"
    if not defined.layers and defined.ends:
        return f"the VM's definition lets nothing stand below it where its image names {named}"
    return None
