"""In which image the bitmaps of a checkpoint begin that a restore in place made anew.

A point knows the images that its VM had when it was taken, and a bitmap must be in every image since then. A restore in
place to a point from before a snapshot writes it into the overlay, and the fresh bitmap is in that alone. libvirt's
record of the checkpoint is where this is noted: it goes when the bitmaps lose their meaning, with a deletion or another
restore, and where it is lost the disk is read whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from vmkeep.planning.bitmaps import Chains
from vmkeep.planning.model import KnownPoint

_LINE: Final = re.compile(r"^begun anew: (\S+) in (/.+)$", re.MULTILINE)


def noted(description: str, begun: Mapping[str, str]) -> str:
    """Return a checkpoint's description with a line for each disk, by target, whose bitmap begins in that image."""
    lines = [f"begun anew: {target} in {path}" for target, path in sorted(begun.items()) if path.isprintable()]
    return "\n".join([description, *lines])


def as_bound(point: KnownPoint, description: str | None, chains: Chains) -> KnownPoint:
    """Return the point with those images as its disks' sources, as far as the disks still stand on them."""
    begun = dict(_LINE.findall(description or ""))
    if not begun:
        return point
    disks = tuple(
        replace(disk, source=found) if (found := _layer(begun.get(disk.target), disk.target, chains)) else disk
        for disk in point.disks
    )
    return replace(point, disks=disks)


def _layer(path: str | None, target: str, chains: Chains) -> str | None:
    """Return an image as the chain of the disk names it."""
    if path is None:
        return None
    real = os.path.realpath(path)
    return next((layer.path for layer in chains.get(target, ()) if os.path.realpath(layer.path) == real), None)
