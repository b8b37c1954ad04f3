"""The checkpoints and bitmaps of one VM changed: listed again, narrowed, removed. Each call may be repeated.

While the VM runs, libvirt changes the bitmaps. While it is off, libvirt changes its record only, and qemu-img the
bitmap. Which of them may be changed is judged elsewhere (``vmkeep.host.checkpoints.bases``,
``vmkeep.planning.checkpoint_repair``, ``vmkeep.host.checkup.vm``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from vmkeep.definition import Definition
from vmkeep.host.checkpoints.bindings import noted
from vmkeep.host.checkpoints.bitmaps import Chains
from vmkeep.host.tasks.task import KnownPoint
from vmkeep.hypervisor import Domain
from vmkeep.logs import get_logger
from vmkeep.moments import Checkpoint, CheckpointDisk, CheckpointType, format_checkpoint
from vmkeep.planning.order import Made, places
from vmkeep.transfer.imagefile import remove_bitmap
from vmkeep.transfer.imagekey import ImageKey

_log = get_logger(__name__)


def newest_first(points: Iterable[KnownPoint]) -> tuple[KnownPoint, ...]:
    """Return points of one VM, the last made first."""
    by_id = {point.point_id: point for point in points}
    place = places(Made(known.point_id, known.parent, known.created, known.sequence) for known in by_id.values())
    return tuple(sorted(by_id.values(), key=lambda point: place[point.point_id], reverse=True))


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where the checkpoints of our points belong, by name: parents, order and times are those of the points. No I/O."""

    points: Mapping[str, KnownPoint]

    @classmethod
    def of(cls, prefix: str, points: Sequence[KnownPoint]) -> Lineage:
        return cls({prefix + point.point_id: point for point in points})

    def creation_time(self, name: str) -> int:
        """Return when a checkpoint was made, in seconds since 1970; now, where its point does not tell."""
        created = self.points[name].created if name in self.points else ""
        return int(datetime.fromisoformat(created).timestamp()) if created else int(time.time())

    def ancestors(self, name: str) -> list[str]:
        """Return the names of the points that a point descends from, the nearest first, as far as they are known."""
        by_id = {point.point_id: above for above, point in self.points.items()}
        found: list[str] = []
        point = self.points.get(name)
        while point is not None and point.parent in by_id:
            above = by_id[point.parent]
            if above in found or above == name:
                break  # no catalogue says so
            found.append(above)
            point = self.points[above]
        return found

    def parents(self, name: str, listed: Mapping[str, int]) -> tuple[str, ...]:
        """Return what a checkpoint may be defined again below, the best first; ``listed`` are the others, with times.

        First those of the points it descends from, the nearest first. Then the newest that is no younger, of whomever:
        libvirt makes each checkpoint the child of the one before. Of the checkpoints of others only the clock tells.
        """
        above = [ancestor for ancestor in self.ancestors(name) if ancestor in listed]
        own, order = self.creation_time(name), self._order()
        others = {other: made for other, made in listed.items() if other not in (name, *above)}
        ours = [other for other in others if other in order and order[other] < order.get(name, -1)]
        foreign = [other for other, made in others.items() if other not in order and made <= own]
        newest = (
            sorted(ours, key=order.__getitem__)[-1:] + sorted(foreign, key=lambda other: (others[other], other))[-1:]
        )
        return (*above, *sorted(newest, key=others.__getitem__)[-1:])

    def in_order(self, names: Collection[str]) -> list[str]:
        """Return names in the order in which their points were made: each comes after those it descends from."""
        order = self._order()
        return sorted(names, key=lambda name: (order.get(name, len(order)), self.creation_time(name), name))

    def _order(self) -> dict[str, int]:
        """Return the place of each point of ours, by the name of its checkpoint."""
        name_of = {point.point_id: name for name, point in self.points.items()}
        made = reversed(newest_first(self.points.values()))
        return {name_of[point.point_id]: place for place, point in enumerate(made)}


class Checkpoints:
    """Changes those of one VM. ``chains`` are the images of its disks, ``key`` opens one of a VM that is off."""

    def __init__(
        self,
        domain: Domain,
        definition: Definition,
        chains: Chains,
        *,
        stopped: bool,
        key: Callable[[str], ImageKey | None] = lambda _target: None,
    ) -> None:
        self._domain = domain
        self._definition = definition
        self._chains = chains
        self._stopped = stopped
        self._key = key

    def list_again(
        self, name: str, targets: Collection[str], *, parent: str | None, creation_time: int
    ) -> frozenset[str]:
        """Make libvirt list a checkpoint whose bitmaps are there; return the disks that have one, none if it was not.

        Metadata is lost with a transient VM, a migration, an undefine; the bitmaps stay in the images. While the VM
        runs libvirt proves each bitmap, and a disk whose bitmap it refuses is left out; while it is off the caller
        names the sound ones.
        """
        candidates = set(targets)
        while candidates:
            xml = checkpoint_xml(self._definition, name, candidates, creation_time=creation_time, parent=parent)
            assert xml is not None
            broken = self._domain.redefine_checkpoint(xml, validate=not self._stopped)
            if broken is None:
                _log.info("lost checkpoint listed again", vm=self._domain.name, checkpoint=name)
                return frozenset(candidates)
            candidates.discard(broken)
        return frozenset()

    def narrow(self, name: str, keep: Collection[str], drop: Collection[str]) -> None:
        """Make a checkpoint that is listed have bitmaps in the disks ``keep`` only, and remove those in ``drop``.

        The rest of the record stays as it is. libvirt removes a bitmap of a running VM only together with its record,
        which is written again at once; killed in between, it is a lost checkpoint.
        """
        narrowed = self._domain.checkpoint_xml_with(name, keep)
        if self._stopped:
            self._domain.redefine_checkpoint(narrowed)
            for target in drop:
                self.remove_bitmap_of(name, target, [layer.path for layer in self._chains[target]])
            return
        if drop:
            self._domain.drop_bitmaps(name, sorted(drop))
        self._domain.redefine_checkpoint(narrowed)

    def remove_bitmap_of(self, name: str, target: str, paths: Collection[str]) -> None:
        """Remove the bitmap of that name from those images of a disk of a VM that is off."""
        for layer in self._chains[target]:
            if layer.path in paths and layer.bitmap(name) is not None:
                # Below an encrypted overlay there may be a plain image.
                remove_bitmap(layer.path, layer.format, name, self._key(target) if layer.encrypted else None)

    def remove(self, name: str) -> None:
        """Remove a checkpoint with its bitmaps; of a VM that is off, from the top images."""
        if self._stopped:
            self._domain.forget_checkpoint(name)
            self.remove_bitmaps(name)
        elif not self._domain.delete_checkpoint(name):
            self.remove_bitmaps(name)

    def remove_bitmaps(self, name: str) -> None:
        """Remove the bitmaps of that name, which no checkpoint names, from the disks whose top images hold one.

        Images below may be shared with other VMs; while the VM runs, libvirt removes what they hold as well.
        """
        targets = [target for target, chain in self._chains.items() if chain[0].bitmap(name) is not None]
        if not self._stopped:
            if targets:
                self._domain.drop_bitmaps(name, targets)
            return
        for target in targets:
            top = self._chains[target][0]
            remove_bitmap(top.path, top.format, name, self._key(target))


def checkpoint_xml(
    definition: Definition,
    name: str,
    targets: Collection[str],
    *,
    creation_time: int = 0,
    parent: str | None = None,
    begun: Mapping[str, str] = MappingProxyType({}),
) -> str | None:
    """Return the checkpoint with bitmaps in the disks of ``targets`` and in no others; None without such a disk.

    ``creation_time`` (seconds since 1970) is needed to redefine one, which then hangs from ``parent``; both are left
    to libvirt when one is created. ``begun`` names images in which bitmaps were made anew
    (``vmkeep.host.checkpoints.bindings``).
    """
    if not targets:
        return None
    disks = tuple(
        CheckpointDisk(disk.target, CheckpointType.BITMAP if disk.target in targets else CheckpointType.NO)
        for disk in definition.disks
    )
    text = noted("Base of the next incremental point of vmkeep; deleted when that is made", begun)
    return format_checkpoint(
        Checkpoint(name=name, description=text, parent_name=parent, creation_time=creation_time, disks=disks)
    )
