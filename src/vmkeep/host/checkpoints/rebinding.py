"""Bitmaps and checkpoint of the point that a stopped VM was returned to, so that its next point is incremental.

A fresh bitmap says "nothing was written since", which is true of a disk that was just made the point's. All earlier
bitmaps of ours say something of another point and go; those of others stay, and have recorded what was written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from vmkeep.definition import Definition
from vmkeep.errors import TargetExists, VmBusy, VmkeepError
from vmkeep.host.checkpoints.changes import checkpoint_xml
from vmkeep.hypervisor import Domain
from vmkeep.logs import get_logger
from vmkeep.planning.bitmaps import obstacle_to_bitmaps
from vmkeep.transfer.imagefile import add_bitmap, describe_image, remove_bitmap
from vmkeep.transfer.imagekey import ImageKey

if TYPE_CHECKING:  # a point of a VM that is off asks here, and keeps no journal
    from vmkeep.host.records.restore import JournalDisk

_log = get_logger(__name__)
_BITMAP_FORMAT = "qcow2"
_NOTHING: Mapping[str, str] = MappingProxyType({})
_CLOSING_SECONDS = 60.0
_WAIT_SECONDS = 0.1


def rebind(
    domain: Domain,
    definition: Definition,
    disks: Sequence[JournalDisk],
    checkpoint: str,
    *,
    prefix: str,
    key: Callable[[JournalDisk], ImageKey | None],
) -> tuple[str, ...]:
    """Make ``checkpoint`` the base of these disks and of no others than it was; can be repeated after a crash.

    Returns a sentence for each disk that can hold a bitmap and gets none all the same: what was restored is whole, and
    its next point reads it whole.

    ``definition`` is the VM's without its parking; ``key`` is asked for what opens a disk's image. Names that do not
    begin with ``prefix`` are left alone.
    """
    fresh: dict[str, str] = {}
    told = []
    for disk in disks:
        if disk.format != _BITMAP_FORMAT:
            continue
        (top,) = describe_image(disk.path, disk.format, chain=False)
        recording = _can_record(definition, disk.target, holds_bitmaps=top.holds_bitmaps)
        refused = _make_bitmap_afresh(disk, checkpoint if recording else None, prefix, key(disk))
        if refused is not None:
            told.append(no_bitmap(disk.target, refused))
        elif recording:
            fresh[disk.target] = disk.path
    bound = {disk.target for disk in disks}
    listed = domain.checkpoint_names()
    names = {name for name in listed if name.startswith(prefix)} - {checkpoint}
    _redefine(domain, definition, checkpoint, {*fresh, *(_bitmaps(domain, checkpoint, listed) - bound)}, fresh)
    for name in sorted(names):
        _redefine(domain, definition, name, _bitmaps(domain, name, listed) - bound)
    return tuple(told)


def no_bitmap(target: str, error: VmkeepError) -> str:
    """Return the sentence that tells of a disk whose bitmap could not be made."""
    return f"Disk {target} gets no bitmap, so its next point reads it whole: {error.message}"


def rebind_to_bitmaps(
    domain: Domain, definition: Definition, held: Mapping[str, Collection[str]], *, prefix: str
) -> tuple[str, ...]:
    """Let libvirt list our checkpoints with just the bitmaps that are there; can be repeated.

    ``held`` are the bitmaps in the chain of each disk whose image was exchanged, by target; other disks stay as they
    are listed. Returns the checkpoints of others that lack a bitmap now: those are left alone.
    """
    listed = domain.checkpoint_names()
    ours = {name for name in listed if name.startswith(prefix)}
    ours |= {name for names in held.values() for name in names if name.startswith(prefix)}
    for name in sorted(ours):
        there = {target for target, names in held.items() if name in names and _can_record(definition, target)}
        _redefine(domain, definition, name, there | (_bitmaps(domain, name, listed) - held.keys()))
    return tuple(
        name
        for name in sorted(listed - ours)
        if any(name not in held.get(target, {name}) for target in _bitmaps(domain, name, listed))
    )


def _make_bitmap_afresh(disk: JournalDisk, name: str | None, prefix: str, key: ImageKey | None) -> VmkeepError | None:
    """Remove our bitmaps from an image and add this one; a qemu-img of a killed vmkeep that has it open is waited for.

    An existing one of the same name goes too: what it recorded until now is of no use any more. Returns why none could
    be added. One that cannot be removed is raised: it would be taken for the base of what is no longer there.
    """
    deadline = time.monotonic() + _CLOSING_SECONDS
    while True:
        try:
            (top,) = describe_image(disk.path, disk.format, chain=False)
            for bitmap in top.bitmaps:
                if bitmap.name.startswith(prefix):
                    remove_bitmap(disk.path, disk.format, bitmap.name, key)
            return None if name is None else _add_bitmap(disk, name, key)
        except (VmBusy, TargetExists):  # it made the bitmap just now
            if time.monotonic() > deadline:
                raise
            time.sleep(_WAIT_SECONDS)


def _add_bitmap(disk: JournalDisk, name: str, key: ImageKey | None) -> VmkeepError | None:
    try:
        add_bitmap(disk.path, disk.format, name, key)
    except (VmBusy, TargetExists):
        raise
    except VmkeepError as error:
        _log.warning("no bitmap", disk=disk.target, error=error.message)
        return error
    return None


def broken_bitmaps(disk: JournalDisk, *, prefix: str) -> tuple[str, ...]:
    """Return the bitmaps of others in an image that nobody has open which cannot be trusted any more."""
    if disk.format != _BITMAP_FORMAT:
        return ()
    (top,) = describe_image(disk.path, disk.format, chain=False)
    return tuple(bitmap.name for bitmap in top.bitmaps if bitmap.in_use and not bitmap.name.startswith(prefix))


def _can_record(definition: Definition, target: str, *, holds_bitmaps: bool = True) -> bool:
    """Tell whether a point of the VM would make a bitmap in the disk."""
    disk = definition.disk(target)
    if disk is None or disk.shareable:
        return False
    return obstacle_to_bitmaps(disk, holds_bitmaps=holds_bitmaps) is None


def _bitmaps(domain: Domain, name: str, listed: frozenset[str]) -> frozenset[str]:
    return domain.checkpoint_disks(name) if name in listed else frozenset()


def _redefine(
    domain: Domain, definition: Definition, name: str, targets: Iterable[str], begun: Mapping[str, str] = _NOTHING
) -> None:
    """Let libvirt list the checkpoint with bitmaps in these disks, or not at all when there are none."""
    xml = checkpoint_xml(definition, name, frozenset(targets), creation_time=int(time.time()), begun=begun)
    if xml is None:
        domain.forget_checkpoint(name)
    else:
        domain.redefine_checkpoint(xml)
    _log.info("checkpoint bound", vm=domain.name, checkpoint=name, listed=xml is not None)
