"""How the bitmap of a checkpoint in one disk is, told by the images and by QEMU. The only place where that is judged.

The rules are libvirt's (a name is valid when it is in the top image and in each image below without a gap, consistent,
persistent and recording in all of them; 9.0 and 11.3). A point of a VM that is off reads those of all images as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol

from vmkeep.commandline import command_line
from vmkeep.definition import DefinedDisk
from vmkeep.planning.codes import BitmapHealth
from vmkeep.planning.images import ImageBitmap, ImageLayer
from vmkeep.values import dataclass


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


_BITMAP_FORMAT: Final = "qcow2"
_BUS_WITHOUT_BITMAPS: Final = "sd"


OLD_QCOW2: Final = "its image is qcow2 of version 2, which cannot hold a bitmap"


_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


Chain = tuple[ImageLayer, ...]


Chains = Mapping[str, Chain]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bitmaps:
    """The bitmaps of a VM. No I/O: ``look_at_bitmaps`` makes one.

    ``chains`` are the images of each disk that may hold bitmaps, the top one first. ``valid_bytes`` is, of a VM that
    runs, how much each disk changed since each checkpoint that libvirt was asked for, where the bitmap is valid; it is
    None of one that is off. ``unread`` says why a disk's images could not be read, ``writers`` what else has images
    of a VM that is off open, and ``unasked`` why libvirt could not be asked. ``refused`` are the checkpoints of which
    libvirt says nothing, and why: one bitmap that it cannot merge with others keeps it from telling of any.
    """

    chains: Chains
    valid_bytes: Mapping[str, Mapping[str, int]] | None
    unread: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    writers: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    unasked: str | None = None
    refused: Mapping[str, str] = field(default_factory=lambda: _NOTHING)

    @property
    def running(self) -> bool:
        return self.valid_bytes is not None

    def layers(self, name: str, target: str) -> tuple[ImageBitmap | None, ...]:
        """Return what each image of a disk, the top one first, holds of a bitmap."""
        return tuple(layer.bitmap(name) for layer in self.chains.get(target, ()))

    def holders(self, name: str, target: str) -> tuple[ImageLayer, ...]:
        """Return the images of a disk that hold a bitmap of that name."""
        return tuple(layer for layer in self.chains.get(target, ()) if layer.bitmap(name) is not None)

    def valid_in_qemu(self, name: str, target: str) -> bool | None:
        """Return what libvirt says of a bitmap; None of a VM that is off, or when it was not asked."""
        if self.valid_bytes is None or name not in self.valid_bytes:
            return None
        return target in self.valid_bytes[name]

    def health(self, name: str, target: str) -> BitmapHealth:
        """Return how the bitmap of that name is in a disk."""
        valid = self.valid_in_qemu(name, target)
        if name in self.refused:
            return BitmapHealth.UNFITTING if self.grew(target) else BitmapHealth.UNKNOWN
        if not valid and self.why_unknown(target) is not None:
            return BitmapHealth.UNKNOWN
        layers = self.layers(name, target)
        if not layers:
            return BitmapHealth.SOUND if valid else BitmapHealth.MISSING  # a disk that holds no bitmaps
        # Of a checkpoint that libvirt does not list it says nothing, and of a VM that runs an image tells no soundness.
        said = False if self.running and valid is None else valid
        return judge_bitmap(layers, valid_in_qemu=said)

    def grew(self, target: str) -> bool:
        """Return whether the images of a disk are of different sizes: it grew or shrank since the lower ones."""
        return len({layer.size_bytes for layer in self.chains.get(target, ())}) > 1

    def why_unknown(self, target: str) -> str | None:
        """Return why nothing is known of a disk's bitmaps, for people; None when they could be looked at."""
        if self.running:
            return self.unasked or self.unread.get(target)
        if target in self.writers:
            return f"{self.writers[target]} has its image open"
        return self.unread.get(target)


class RecordableDisk(Protocol):
    """What decides whether there can be a bitmap of a disk, in words of libvirt's XML."""

    @property
    def device(self) -> str: ...
    @property
    def bus(self) -> str | None: ...
    @property
    def format(self) -> str | None: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def transient(self) -> bool: ...


class Obstacle(StrEnum):
    """Why there can be no bitmap of a disk."""

    TRANSIENT = "transient"
    READ_ONLY = "read-only"
    DEVICE = "device"
    """It is a drive for media, or a LUN that is passed to the guest as it is."""
    FORMAT = "format"
    BUS = "bus"
    """It is on the bus sd."""
    OLD_FORMAT = "old-format"
    """Its image is qcow2 of version 2."""


def obstacle_to_bitmaps(disk: RecordableDisk, *, holds_bitmaps: bool = True) -> Obstacle | None:
    """Return why there can be no bitmap of a disk; None where there can. The one place that decides it.

    libvirt's QEMU driver makes bitmaps in writable qcow2 disks only, and none on the bus sd or in transient disks
    (probed on 9.0 and 11.3). QEMU keeps none in qcow2 of version 2: ``holds_bitmaps`` is False of such an image.
    """
    if disk.transient:
        return Obstacle.TRANSIENT
    if disk.readonly:
        return Obstacle.READ_ONLY
    if disk.device != "disk":
        return Obstacle.DEVICE
    if disk.format != _BITMAP_FORMAT:
        return Obstacle.FORMAT
    if disk.bus == _BUS_WITHOUT_BITMAPS:
        return Obstacle.BUS
    return None if holds_bitmaps else Obstacle.OLD_FORMAT


def amending(disk: DefinedDisk, chain: Chain) -> str | None:
    """Return the command that makes the image of a disk one that holds bitmaps; None where there is nothing to do."""
    if not chain or chain[0].holds_bitmaps or obstacle_to_bitmaps(disk) is not None:
        return None
    return command_line("qemu-img amend -f qcow2 -o compat=1.1", chain[0].path)
