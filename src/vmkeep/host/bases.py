"""Which of a VM's earlier points a new one can start from: libvirt's list held against the bitmaps in the images.

What libvirt lost is listed again where the bitmaps are there, and what belongs to no point of ours is removed. Names
that do not begin with this repository's own prefix belong to somebody else and are never touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from vmkeep.definition import Definition, SourceKind
from vmkeep.errors import VmkeepError
from vmkeep.host.instant import checkpoint_xml
from vmkeep.host.tasks import KnownPoint
from vmkeep.hypervisor import Domain
from vmkeep.logs import get_logger
from vmkeep.planning import Base, BaseDisk, BitmapHealth
from vmkeep.transfer.imagefile import ImageLayer, describe_image, remove_bitmap
from vmkeep.transfer.imagekey import ImageKey

_log = get_logger(__name__)
_BITMAP_FORMAT = "qcow2"
Chains = Mapping[str, tuple[ImageLayer, ...]]


def checkpoint_prefix(repository_id: str) -> str:
    """Return what the names of our checkpoints and bitmaps begin with.

    Part of it is the repository, so that two of them can keep the same VM without removing each other's as left-overs.
    """
    return f"vmkeep-{repository_id[:8]}-"


@dataclass(frozen=True, slots=True)
class Standing:
    """What was found and put right. ``dirty_bytes``: of a running VM's sound bitmaps, by checkpoint and target."""

    bases: tuple[Base, ...]
    dirty_bytes: Mapping[str, Mapping[str, int]]
    warnings: tuple[str, ...]


def image_chains(definition: Definition) -> dict[str, tuple[ImageLayer, ...]]:
    """Return the images of each disk that has some on this host, by target; disks that cannot be read are left out."""
    chains = {}
    for disk in definition.disks:
        if disk.removable or disk.source is None or disk.source_kind not in (SourceKind.FILE, SourceKind.BLOCK):
            continue
        try:
            chains[disk.target] = describe_image(disk.source, disk.image_format)
        except VmkeepError as error:
            # The plan refuses the disk when its size is not known either; here it only has no bitmaps.
            _log.info("image not described", disk=disk.target, error=error.message)
    return chains


class Bases:
    """Examines one VM. Nothing of it is changed but what is this repository's own."""

    def __init__(
        self,
        domain: Domain,
        definition: Definition,
        chains: Chains,
        *,
        stopped: bool,
        prefix: str,
        points: Sequence[KnownPoint],
        find_point: Callable[[str], KnownPoint | None] = lambda _point_id: None,
        key: Callable[[str], ImageKey | None] = lambda _target: None,
    ) -> None:
        """``points`` are the VM's, newest first. ``find_point`` is asked for one of an id that is not among them.
        ``key`` is asked for what opens a disk of a VM that is off, by target.

        Another installation may keep the same VM in the same repository: before a migration, or on the other host.
        """
        self._domain = domain
        self._definition = definition
        self._chains = {target: chain for target, chain in chains.items() if self._can_hold_bitmaps(target)}
        self._stopped = stopped
        self._prefix = prefix
        self._points = {prefix + point.point_id: point for point in points}
        self._find_point = find_point
        self._key = key
        self._stored = frozenset(bitmap.name for chain in self._chains.values() for bitmap in chain[0].bitmaps)
        self._warnings: list[str] = []

    def examine(self) -> Standing:
        """Remove left-overs, list lost checkpoints again, and judge every bitmap that may serve as a base."""
        listed = self._domain.checkpoint_names()
        self._find_points(listed)
        self._remove_left_overs(listed)
        wanted = [name for name in self._points if name in listed or name in self._stored]
        newest = next(iter(self._points), None)
        if newest is not None and newest not in wanted:
            wanted.insert(0, newest)  # its bitmaps may be in the memory of QEMU alone
        listed |= {name for name in wanted if name not in listed and self._list_again(name)}
        dirty_bytes = {
            name: self._domain.checkpoint_dirty_bytes(name) for name in wanted if name in listed and not self._stopped
        }
        bases = tuple(self._base(name, name in listed, dirty_bytes.get(name, {})) for name in wanted)
        return Standing(bases, dirty_bytes, tuple(self._warnings))

    def _find_points(self, listed: frozenset[str]) -> None:
        for name in sorted(self._ours(listed | self._stored) - self._points.keys()):
            point = self._find_point(name.removeprefix(self._prefix))
            if point is not None:
                self._points[name] = point

    # -- left-overs --------------------------------------------------------------------------------------------

    def remove_older(self, keep: Collection[str]) -> list[str]:
        """Remove all of ours but ``keep``; return a sentence for each that stays.

        Each older checkpoint costs every write of the guest a bitmap update, so only what is a base is kept.
        """
        try:
            ours = self._ours(self._domain.checkpoint_names() | self._stored)
        except VmkeepError as error:
            return [f"The older checkpoints could not be listed; the next point removes them: {error}"]
        warnings = []
        for name in sorted(ours.difference(keep)):
            try:
                self.remove_checkpoint(name)
            except VmkeepError as error:
                warnings.append(f"The older checkpoint {name} stays until the next point: {error}")
        return warnings

    def _remove_left_overs(self, listed: frozenset[str]) -> None:
        """Remove checkpoints and bitmaps of ours that belong to no point. What cannot be removed is only told."""
        for name in sorted(self._ours(listed) - self._points.keys()):
            self._attempt(f"checkpoint {name}", partial(self.remove_checkpoint, name))
        for name in sorted(self._ours(self._stored) - self._points.keys()):
            self._attempt(f"bitmap {name}", partial(self.remove_bitmaps, name))

    def remove_checkpoint(self, name: str) -> None:
        """Remove a checkpoint of ours with its bitmaps; of a VM that is off, libvirt removes the record only."""
        if self._stopped:
            self._domain.forget_checkpoint(name)
            self.remove_bitmaps(name)
        elif not self._domain.delete_checkpoint(name):
            self.remove_bitmaps(name)

    def remove_bitmaps(self, name: str) -> None:
        """Remove the bitmaps of that name from the top images; images below may be shared with other VMs."""
        targets = [target for target, chain in self._chains.items() if chain[0].bitmap(name) is not None]
        if not self._stopped:
            if targets:
                self._domain.drop_bitmaps(name, targets)
            return
        for target in targets:
            top = self._chains[target][0]
            remove_bitmap(top.path, top.format, name, self._key(target))

    def _attempt(self, what: str, remove: Callable[[], None]) -> None:
        _log.info("left-over", vm=self._domain.name, what=what)
        try:
            remove()
        except VmkeepError as error:
            self._warnings.append(f"The left-over {what} could not be removed: {error}")

    def _ours(self, names: frozenset[str]) -> frozenset[str]:
        return frozenset(name for name in names if name.startswith(self._prefix))

    # -- lost checkpoints --------------------------------------------------------------------------------------

    def _list_again(self, name: str) -> bool:
        """Make libvirt list a checkpoint whose bitmaps are there; False when none of them is sound.

        Metadata is lost with a transient VM, a migration, an undefine; the bitmaps stay in the images.
        """
        candidates = {disk.target for disk in self._points[name].disks} & self._chains.keys()
        if self._stopped:
            candidates = {target for target in candidates if self._stored_health(name, target) is BitmapHealth.SOUND}
        while candidates:
            xml = checkpoint_xml(self._definition, name, candidates, creation_time=int(time.time()))
            assert xml is not None
            try:
                broken = self._domain.redefine_checkpoint(xml, validate=not self._stopped)
            except VmkeepError as error:
                self._warnings.append(f"The checkpoint {name}, which libvirt has lost, cannot be used again: {error}")
                return False
            if broken is None:
                _log.info("lost checkpoint listed again", vm=self._domain.name, checkpoint=name)
                return True
            candidates.discard(broken)
        return False

    # -- health ------------------------------------------------------------------------------------------------

    def _base(self, name: str, listed: bool, dirty_bytes: Mapping[str, int]) -> Base:
        point = self._points[name]
        disks = {
            disk.target: BaseDisk(
                source=disk.source, size_bytes=disk.size_bytes, format=disk.format, bitmap=disk.bitmap
            )
            for disk in point.disks
        }
        health = {
            target: self._health_in_chain(
                name,
                target,
                disk.source,
                BitmapHealth.SOUND if target in dirty_bytes else self._stored_health(name, target),
            )
            for target, disk in disks.items()
        }
        return Base(point_id=point.point_id, checkpoint=name, listed=listed, disks=disks, bitmaps=health)

    def _health_in_chain(self, name: str, target: str, first: str, health: BitmapHealth) -> BitmapHealth:
        """Judge a bitmap that is sound as far as its top goes: it must be in every image down to ``first``.

        libvirt looks whether the images that have it follow each other, and not whether it began in the lowest of them:
        one that was removed from an image below (by the deletion of the checkpoint on another branch) lacks what was
        written there. What lies below the top is read-only, and its header tells what it has.
        """
        chain = self._chains.get(target, ())
        paths = [layer.path for layer in chain]
        if health is not BitmapHealth.SOUND or first not in paths[1:]:
            return health
        found = [layer.bitmap(name) for layer in chain[1 : paths.index(first) + 1]]
        whole = all(bitmap is not None and bitmap.recording and not bitmap.in_use for bitmap in found)
        return BitmapHealth.SOUND if whole else BitmapHealth.GAP

    def _stored_health(self, name: str, target: str) -> BitmapHealth:
        """Judge a bitmap by what stands in the images.

        Of a running VM this is asked only for a bitmap that libvirt finds no good: every bitmap that QEMU has
        loaded is marked as in use then.
        """
        chain = self._chains.get(target)
        if chain is None:
            disk = self._definition.disk(target)
            unread = disk is not None and disk.format == _BITMAP_FORMAT
            return BitmapHealth.UNKNOWN if unread else BitmapHealth.MISSING
        held = [layer.bitmap(name) for layer in chain]
        depth = held.index(None) if None in held else len(held)
        since = [bitmap for bitmap in held[:depth] if bitmap is not None]
        if not since:
            return BitmapHealth.GAP if any(held) else BitmapHealth.MISSING
        if not all(bitmap.recording for bitmap in since):
            return BitmapHealth.NOT_RECORDING
        if not self._stopped or any(bitmap.in_use for bitmap in since):
            return BitmapHealth.INCONSISTENT
        # What was written before an overlay was put on top stands in the bitmaps of the images below, which are read
        # as well (``vmkeep.host.stopped``); an image in between that has none lacks writes.
        return BitmapHealth.GAP if any(held[depth:]) else BitmapHealth.SOUND

    def _can_hold_bitmaps(self, target: str) -> bool:
        disk = self._definition.disk(target)
        return disk is not None and disk.format == _BITMAP_FORMAT and not disk.readonly and not disk.transient
