"""How the bitmap of a checkpoint in one disk is, told by the images and by QEMU. The only place where that is judged.

The rules are libvirt's (a name is valid when it is in the top image and in each image below without a gap, consistent,
persistent and recording in all of them; 9.0 and 11.3). A point of a VM that is off reads those of all images as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vmkeep.planning.codes import BitmapHealth


class StoredBitmap(Protocol):
    """What an image says of a bitmap in it."""

    @property
    def in_use(self) -> bool: ...
    @property
    def recording(self) -> bool: ...


def judge_bitmap(layers: Sequence[StoredBitmap | None], *, valid_in_qemu: bool | None) -> BitmapHealth:
    """Return how a bitmap is. ``layers`` are the images of the disk, the top one first, each with what it holds of it.

    ``valid_in_qemu`` is what libvirt says of a VM that runs, and None of one that is off. While it runs, its word
    decides, and the images only tell why a bitmap is no good: every bitmap that QEMU has loaded is ``in_use`` in its
    image then, and one that was made since the VM was started is in no image at all.
    """
    if valid_in_qemu:
        return BitmapHealth.SOUND
    if not layers:
        return BitmapHealth.UNKNOWN
    held = [bitmap for bitmap in layers if bitmap is not None]
    if not held:
        return BitmapHealth.MISSING
    if None in layers[: len(held)]:
        return BitmapHealth.GAP
    if not all(bitmap.recording for bitmap in held):
        return BitmapHealth.NOT_RECORDING
    if valid_in_qemu is False or any(bitmap.in_use for bitmap in held):
        return BitmapHealth.INCONSISTENT
    return BitmapHealth.SOUND
