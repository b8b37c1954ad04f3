"""Which base a disk is read against, or why there is none.

Each bitmap of ours records every write since it was made, whatever other bitmaps there are. So an older sound one
is as right as the newest, only larger, and each disk takes the newest base that fits it by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from vmkeep.planning.bitmaps import Bitmaps
from vmkeep.planning.codes import BitmapHealth, Reason
from vmkeep.planning.model import Base, BaseDisk, KnownPoint, PlannableDisk, PointRequest

_BITMAP_FAULTS: Final = {
    BitmapHealth.MISSING: (Reason.BITMAP_MISSING, "the image has no bitmap of checkpoint {}"),
    BitmapHealth.INCONSISTENT: (
        Reason.BITMAP_INCONSISTENT,
        "the image was not closed properly, so the bitmap of checkpoint {} may lack writes",
    ),
    BitmapHealth.NOT_RECORDING: (
        Reason.BITMAP_NOT_RECORDING,
        "the bitmap of checkpoint {} is disabled, so it lacks writes",
    ),
    BitmapHealth.UNFITTING: (
        Reason.BITMAP_UNFITTING,
        "the size or granularity of the bitmap of checkpoint {} does not fit the disk",
    ),
    BitmapHealth.GAP: (
        Reason.BITMAP_GAP,
        "the bitmap of checkpoint {} is not in every image since it was made, so it lacks writes",
    ),
    BitmapHealth.UNKNOWN: (Reason.BITMAP_UNKNOWN, "nothing is known of the bitmap of checkpoint {}"),
}
_KILLED: Final = {
    BitmapHealth.MISSING: "QEMU died before it wrote the bitmap of checkpoint {} to the image",
    BitmapHealth.INCONSISTENT: "QEMU died with the image open, so the bitmap of checkpoint {} may lack writes",
}
# What an image says of a bitmap whose checkpoint libvirt does not list tells nothing more than that.
_NO_NEWS: Final = frozenset({BitmapHealth.SOUND, BitmapHealth.MISSING, BitmapHealth.UNKNOWN})


def find_base(disk: PlannableDisk, request: PointRequest) -> Base | tuple[Reason, str]:
    """Return the newest base that fits the disk, or why the newest of all does not, with a sentence."""
    if request.force_full:
        return Reason.FORCED, "a full point was asked for"
    first: tuple[Reason, str] | None = None
    for base in request.bases:
        misfit = _misfit(disk, base, killed=request.killed)
        if misfit is None:
            return base
        first = first or misfit
    return first or (Reason.NO_BASE, "there is no earlier point to start from")


def _misfit(disk: PlannableDisk, base: Base, *, killed: bool) -> tuple[Reason, str] | None:
    """Return why the disk cannot be read against the base; what was done to the disk tells more than its bitmap."""
    then = base.disks.get(disk.target)
    if then is None:
        return Reason.NEW_DISK, f"point {base.point_id} has no disk {disk.target}"
    sound = base.bitmaps.get(disk.target) is BitmapHealth.SOUND
    return _change_since(disk, then, sound=sound) or _distrust(disk.target, then, base, killed=killed)


def _change_since(disk: PlannableDisk, then: BaseDisk, *, sound: bool) -> tuple[Reason, str] | None:
    """Return what was done to the disk. ``sound``: every image since then has the bitmap, and none lacks a write.

    So it is after a snapshot that libvirt or vmkeep made: the overlay goes on with the bitmaps of the image below.
    """
    if then.source != disk.source:
        below = then.source in disk.backing_chain
        if below and not sound and then.size_bytes == disk.size_bytes:
            return Reason.EXTERNAL_SNAPSHOT, f"it was {then.source} and is an overlay of that, {disk.source}"
        if not below:
            return Reason.SOURCE_CHANGED, f"it was {then.source} and is {disk.source}"
    if then.format != disk.format:
        return Reason.FORMAT_CHANGED, f"it was {then.format} and is {disk.format}"
    if then.size_bytes != disk.size_bytes:
        return Reason.SIZE_CHANGED, f"it had {then.size_bytes} bytes and has {disk.size_bytes}"
    return None


def _distrust(target: str, then: BaseDisk, base: Base, *, killed: bool) -> tuple[Reason, str] | None:
    if not then.bitmap:
        return Reason.BITMAP_MISSING, f"point {base.point_id} made no bitmap of it"
    health = base.bitmaps.get(target, BitmapHealth.UNKNOWN)
    if killed and health in _KILLED:
        return Reason.QEMU_KILLED, _KILLED[health].format(base.checkpoint)
    if not base.listed and health in _NO_NEWS:
        return Reason.CHECKPOINT_LOST, f"libvirt does not list checkpoint {base.checkpoint}"
    if health is BitmapHealth.SOUND:
        return None
    reason, detail = _BITMAP_FAULTS[health]
    return reason, detail.format(base.checkpoint)


def newest_by_disk(points: Mapping[str, KnownPoint], targets: Collection[str]) -> dict[str, str]:
    """Return the newest of the points, which come newest first, that made a bitmap of each disk, by their names."""
    found: dict[str, str] = {}
    for name, point in points.items():
        for disk in point.disks:
            if disk.bitmap and disk.target in targets:
                found.setdefault(disk.target, name)
    return found


def base_of(point: KnownPoint, name: str, bitmaps: Bitmaps, *, listed: bool) -> Base:
    """Return a point as the plan of the next one sees it, with the health of its checkpoint's bitmaps."""
    disks = {
        disk.target: BaseDisk(source=disk.source, size_bytes=disk.size_bytes, format=disk.format, bitmap=disk.bitmap)
        for disk in point.disks
    }
    health = {target: _health_down_to(disk.source, name, target, bitmaps) for target, disk in disks.items()}
    return Base(point_id=point.point_id, checkpoint=name, listed=listed, disks=disks, bitmaps=health)


def _health_down_to(first: str, name: str, target: str, bitmaps: Bitmaps) -> BitmapHealth:
    """Judge a bitmap that is sound as far as its top goes: it must be in every image down to ``first``.

    libvirt looks whether the images that have it follow each other, and not whether it began in the lowest of them: one
    that was removed from an image below (by the deletion of the checkpoint on another branch) lacks what was written
    there. What lies below the top is read-only, and its header tells what it has.
    """
    health = bitmaps.health(name, target)
    paths = [layer.path for layer in bitmaps.chains.get(target, ())]
    if health is not BitmapHealth.SOUND or first not in paths[1:]:
        return health
    found = bitmaps.layers(name, target)[1 : paths.index(first) + 1]
    whole = all(bitmap is not None and bitmap.recording and not bitmap.in_use for bitmap in found)
    return BitmapHealth.SOUND if whole else BitmapHealth.GAP
