"""The health of a VM's checkpoints and of the bitmaps in its images, and what each of them is good for. No I/O.

How one bitmap is, ``vmkeep.planning.bitmaps`` says; which of ours the next point starts from, ``vmkeep.planning``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, TypeVar

from vmkeep.moments import Checkpoint, CheckpointType, Moment
from vmkeep.planning import BitmapHealth
from vmkeep.planning.bitmaps import Bitmaps
from vmkeep.planning.model import KnownPoint
from vmkeep.planning.order import Made, places
from vmkeep.values import dataclass

_NONE: Final[Mapping[str, str]] = MappingProxyType({})
SHARED: Final = "in an image that VM {} uses too; it is left alone"
LOST: Final = "libvirt has lost its checkpoint"


AnyMoment = TypeVar("AnyMoment", bound=Moment)


class Health(StrEnum):
    """How a checkpoint, a snapshot, or one disk of either is."""

    SOUND = "sound"
    """It is what it says."""
    BROKEN = "broken"
    """It cannot be used for what it was made for."""
    ORPHAN = "orphan"
    """A bitmap of vmkeep's in an image, which no checkpoint names."""
    FOREIGN = "foreign"
    """Somebody else's. It is told, and left alone."""
    UNKNOWN = "unknown"
    """It could not be looked at."""


class Role(StrEnum):
    """What a checkpoint is good for."""

    BASE = "base"
    """The next point of a disk is read against it."""
    REPLACED = "replaced"
    """Its point is there, and no disk is read against it any more."""
    LEFT_OVER = "left-over"
    """Its point is gone."""
    FOREIGN = "foreign"
    """It is not of this repository."""
    UNKNOWN = "unknown"
    """Whether its point exists could not be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskHealth:
    """A checkpoint in one disk.

    ``bitmap`` is how the bitmap itself is, whoever made it; UNKNOWN also for one of a running VM that no checkpoint
    names. ``why`` is for people, empty for one that is sound. ``listed``: libvirt's record names the disk. ``images``
    hold a bitmap of this name. ``absent``: the VM has no such disk now; its bitmap comes back with it.
    """

    target: str
    health: Health
    bitmap: BitmapHealth
    why: str = ""
    listed: bool = True
    images: tuple[str, ...] = ()
    absent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHealth:
    """A checkpoint, or bitmaps of one name that no checkpoint names (then ``listed`` is False).

    ``point`` is the id of its point, if that exists; ``base_of`` are the disks whose next point is read against it.
    """

    name: str
    standing: Role
    listed: bool
    disks: tuple[DiskHealth, ...]
    point: str | None = None
    base_of: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        return self.standing is not Role.FOREIGN

    @property
    def health(self) -> Health:
        """The worst of its disks that the VM has; UNKNOWN when it has none of them any more."""
        if not self.ours:
            return Health.FOREIGN
        found = {disk.health for disk in self.disks if not disk.absent}
        if self.disks and not found:
            return Health.UNKNOWN
        worst = (Health.BROKEN, Health.ORPHAN, Health.UNKNOWN)
        return next((health for health in worst if health in found), Health.SOUND)

    @property
    def trouble(self) -> bool:
        """Whether something of ours is not as it should be, or could not be looked at; a disk that is gone is not."""
        bad = (Health.BROKEN, Health.ORPHAN, Health.UNKNOWN)
        return self.ours and any(disk.health in bad for disk in self.disks if not disk.absent)

    def as_dict(self) -> dict[str, Any]:
        """Return it as `vmkeep checkpoint health --json` prints it."""
        return {
            "checkpoint": self.name,
            "health": str(self.health),
            "standing": str(self.standing),
            "listed": self.listed,
            "point": self.point,
            "base_of": list(self.base_of),
            "disks": [
                {
                    "target": disk.target,
                    "health": str(disk.health),
                    "bitmap": str(disk.bitmap),
                    "why": disk.why or None,
                    "listed": disk.listed,
                    "images": list(disk.images),
                }
                for disk in self.disks
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """All that the judgement is made from.

    ``prefix`` begins the names of ours; None: there is no repository, so nothing is. ``points`` are the VM's by the
    name of their checkpoint, newest first. ``unsure``: a name of ours that is not among them may be of a point all the
    same. ``listed`` is what libvirt lists. ``bases`` gives the checkpoint that each disk's next point is read
    against, lost ones included. ``others`` are names of ours whose points another installation has in the same
    repository, and nothing more is known of them. ``in_memory`` are bitmaps, by disk the name, that QEMU may have
    without a trace in libvirt and in the images. ``shared`` are images that other VMs use as well, each with one of
    those.
    """

    prefix: str | None
    points: Mapping[str, KnownPoint]
    listed: Mapping[str, Checkpoint]
    bitmaps: Bitmaps
    bases: Mapping[str, str] = field(default_factory=lambda: _NONE)
    in_memory: Mapping[str, str] = field(default_factory=lambda: _NONE)
    shared: Mapping[str, str] = field(default_factory=lambda: _NONE)
    unsure: bool = False
    others: frozenset[str] = frozenset()

    def is_ours(self, name: str) -> bool:
        return self.prefix is not None and name.startswith(self.prefix)

    def listed_targets(self, name: str) -> frozenset[str]:
        """Return the disks in which libvirt's record of a checkpoint has a bitmap."""
        checkpoint = self.listed.get(name)
        disks = () if checkpoint is None else checkpoint.disks
        return frozenset(disk.name for disk in disks if disk.type is CheckpointType.BITMAP)

    def stored_targets(self, name: str) -> frozenset[str]:
        """Return the disks in an image of which there is a bitmap of that name."""
        return frozenset(target for target in self.bitmaps.chains if self.bitmaps.holders(name, target))

    def is_of_others(self, name: str, target: str) -> bool:
        """Tell whether a disk's bitmap of that name is in images alone that other VMs use as well."""
        images = self.bitmaps.holders(name, target)
        return bool(images) and all(layer.path in self.shared for layer in images)

    def names(self) -> list[str]:
        """Return all names there are: the listed checkpoints by age, then the others by name."""
        stored = {bitmap.name for chain in self.bitmaps.chains.values() for layer in chain for bitmap in layer.bitmaps}
        lost = set(self.in_memory.values())
        listed = [str(checkpoint.name) for checkpoint in by_age(self.listed.values())]
        return listed + sorted((stored | lost) - self.listed.keys())


def by_age(moments: Iterable[AnyMoment]) -> list[AnyMoment]:
    """Return moments the oldest first: by clock, but parents first, so that a clock that was set turns none round."""
    by_name = {moment.name or "": moment for moment in moments}
    place = places(Made(name, moment.parent_name, f"{moment.creation_time:020}") for name, moment in by_name.items())
    return [by_name[name] for name in sorted(by_name, key=place.__getitem__)]


def judge_checkpoints(facts: CheckpointFacts) -> tuple[CheckpointHealth, ...]:
    """Return the health of each checkpoint, and of each bitmap that no checkpoint names."""
    return tuple(_judge(facts, name) for name in facts.names())


def _judge(facts: CheckpointFacts, name: str) -> CheckpointHealth:
    listed = facts.listed_targets(name)
    stored = facts.stored_targets(name)
    targets = listed | stored | {target for target, lost in facts.in_memory.items() if lost == name}
    ours = facts.is_ours(name)
    disks = tuple(_disk_health(facts, name, target, ours=ours) for target in sorted(targets))
    if ours and name not in facts.listed and disks and all(disk.health is Health.FOREIGN for disk in disks):
        ours = False  # in images of others alone: of a VM that this one is a clone of, for instance
    base_of = tuple(sorted(target for target, base in facts.bases.items() if base == name and target in targets))
    return CheckpointHealth(
        name=name,
        standing=_standing(facts, name, ours=ours, base=bool(base_of)),
        listed=name in facts.listed,
        disks=disks,
        point=facts.points[name].point_id if ours and name in facts.points else None,
        base_of=base_of if ours else (),
    )


def _standing(facts: CheckpointFacts, name: str, *, ours: bool, base: bool) -> Role:
    if not ours:
        return Role.FOREIGN
    if name not in facts.points:
        return Role.UNKNOWN if facts.unsure or name in facts.others else Role.LEFT_OVER
    return Role.BASE if base else Role.REPLACED


def _disk_health(facts: CheckpointFacts, name: str, target: str, *, ours: bool) -> DiskHealth:
    bitmaps = facts.bitmaps
    images = tuple(layer.path for layer in bitmaps.holders(name, target))
    if target not in facts.listed_targets(name):
        return _unlisted(facts, name, target, images, ours=ours)
    bitmap = bitmaps.health(name, target)
    absent = target not in bitmaps.chains and bitmap is BitmapHealth.MISSING
    if absent:
        bitmap, why = BitmapHealth.UNKNOWN, "the VM has no such disk now, or one that holds no bitmaps"
    else:
        why = _why(bitmaps, bitmap, target)
    health = _HEALTH.get(bitmap, Health.BROKEN) if ours else Health.FOREIGN
    return DiskHealth(target=target, health=health, bitmap=bitmap, why=why, images=images, absent=absent)


def _unlisted(facts: CheckpointFacts, name: str, target: str, images: tuple[str, ...], *, ours: bool) -> DiskHealth:
    """Judge a bitmap that no checkpoint names. Of a VM that runs nobody tells how it is."""
    bitmaps = facts.bitmaps
    bitmap = BitmapHealth.UNKNOWN if bitmaps.running else bitmaps.health(name, target)
    health, why = Health.FOREIGN, "no checkpoint names it"
    if ours and not images:
        health, why = Health.UNKNOWN, f"{LOST}; whether QEMU has the bitmap shows when it is defined again"
    elif ours and bitmaps.why_unknown(target) is not None:
        health, why = Health.UNKNOWN, _why(bitmaps, BitmapHealth.UNKNOWN, target)
    elif ours and facts.is_of_others(name, target):
        why = SHARED.format(facts.shared[images[0]])
    elif ours:
        health = Health.ORPHAN
        why = LOST if facts.bases.get(target) == name else why
    return DiskHealth(target=target, health=health, bitmap=bitmap, why=why, listed=False, images=images)


_HEALTH: Final = {BitmapHealth.SOUND: Health.SOUND, BitmapHealth.UNKNOWN: Health.UNKNOWN}
_WHY: Final = {
    BitmapHealth.SOUND: "",
    BitmapHealth.MISSING: "its image has no such bitmap",
    BitmapHealth.INCONSISTENT: "its image was not closed properly, so the bitmap may lack writes",
    BitmapHealth.NOT_RECORDING: "the bitmap is disabled, so it lacks writes",
    BitmapHealth.UNFITTING: "the bitmap does not fit the disk",
    BitmapHealth.GAP: "the bitmap is not in every image since it was made, so it lacks writes",
    BitmapHealth.UNKNOWN: "it could not be looked at",
}
_WORDS: Final = {BitmapHealth.NOT_RECORDING: "not recording", BitmapHealth.GAP: "gap in the chain"}


def _why(bitmaps: Bitmaps, bitmap: BitmapHealth, target: str) -> str:
    if bitmap is BitmapHealth.UNKNOWN:
        return bitmaps.why_unknown(target) or _WHY[bitmap]
    return _WHY[bitmap]


def bitmap_word(bitmap: BitmapHealth) -> str:
    """Return a bitmap's health in one or few words."""
    return _WORDS.get(bitmap, str(bitmap))


def health_text(judged: CheckpointHealth) -> str:
    """Return a checkpoint's health for one cell of a table, such as "broken: missing in vdb"."""
    if not judged.ours:
        broken = {disk.target: disk.bitmap for disk in judged.disks if disk.bitmap in _WHY.keys() - _HEALTH.keys()}
        return "foreign" + (f", {_by_word(broken)}" if broken else "")
    left = ", left over" if judged.standing is Role.LEFT_OVER else ""
    match judged.health:
        case Health.BROKEN:
            broken = {disk.target: disk.bitmap for disk in judged.disks if disk.health is Health.BROKEN}
            return f"broken: {_by_word(broken)}{left}"
        case Health.UNKNOWN:
            unseen = [disk for disk in judged.disks if disk.health is Health.UNKNOWN]
            why = next((disk.why for disk in unseen if not disk.absent), unseen[0].why)
            return f"unknown: {why}{left}"
        case health:
            return f"{health}{left}"


def _by_word(broken: Mapping[str, BitmapHealth]) -> str:
    words: dict[str, list[str]] = {}
    for target, bitmap in broken.items():
        words.setdefault(bitmap_word(bitmap), []).append(target)
    return "; ".join(f"{word} in {', '.join(targets)}" for word, targets in words.items())


def health_texts(judged: Sequence[CheckpointHealth]) -> dict[str, str]:
    """Return the cell of each checkpoint in a table of them, by name."""
    return {checkpoint.name: health_text(checkpoint) for checkpoint in judged}
