"""Which points of a VM stay, and which may go: the rule of a policy, and what stands above every rule.

Whoever can make points could make so many, or such late ones, that the rule lets the good ones go. So only what is
proved and sound fills a slot, and what makes somebody look is told (``reasons_to_ask``). Pure: facts come as values.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Final

from vmkeep.errors import InvalidRequest
from vmkeep.planning.model import KnownPoint
from vmkeep.planning.retention import KeepRule, kept_by
from vmkeep.values import dataclass

DEFAULT_GRACE: Final = timedelta(days=7)
MOST_GRACE: Final = timedelta(days=3650)
CLOCK_LIMIT: Final = timedelta(hours=24)
"""A point whose clock differs by more from the time at which the store got it may have been made at any time."""
AHEAD_LIMIT: Final = timedelta(minutes=5)
"""So much may a host's clock be ahead of the store's before it is told: both are kept in time by other means."""
_WITHIN: Final = re.compile(r"([1-9][0-9]{0,4})([hdwy])", re.ASCII)
_UNITS: Final = {
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "y": timedelta(days=365),
}


@dataclass(frozen=True, slots=True)
class PointRule:
    """What a policy keeps: so many by each rule, and all that are less than ``within`` older than the newest."""

    keep: KeepRule
    within: timedelta = timedelta()

    def __str__(self) -> str:
        parts = [str(self.keep)] if str(self.keep) else []
        return ", ".join([*parts, *([f"within={within_text(self.within)}"] if self.within else [])])


SAFETY_RULE: Final = PointRule(KeepRule(last=1), timedelta(days=30))
"""Of the points that restores in place and reverts take first, where no policy of their label says otherwise."""


class Stays(StrEnum):
    """Why a point stays, besides the names of the rules ("last", "within", "daily", ...)."""

    PROTECTED = "protected"
    BASE = "base"
    """The next point of its VM is read against it."""
    NEWEST = "newest"
    """The newest sound point of its VM."""
    CLOCK = "clock"
    """What its clock says of its time is not to be believed."""
    UNPROVED = "unproved"
    """It is signed by nobody who is trusted here."""
    NO_POLICY = "no policy"


@dataclass(frozen=True, slots=True)
class JudgedPoint:
    """What is known of a point. ``made`` is what its host's clock said, ``stored`` when the store got it.

    ``proved``: it is this installation's, or of one that is trusted. ``sound``: nothing says that it cannot be restored
    in full. ``base``: the VM's next point is read against it. ``rule`` is the name of the policy that it belongs to,
    empty for none.
    """

    id: str
    made: datetime
    stored: datetime | None
    proved: bool = True
    sound: bool = True
    protected: bool = False
    base: bool = False
    safety: bool = False
    rule: str = ""

    def is_suspect(self, now: datetime) -> bool:
        """Return whether its clock is not to be believed; ``now`` is the store's time."""
        off = self.stored is not None and abs(self.made - self.stored) > CLOCK_LIMIT
        return off or self.made - now > AHEAD_LIMIT


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a point. ``why`` is a word of ``Stays`` or the name of a rule; empty for one that goes."""

    point: JudgedPoint
    why: str

    @property
    def stays(self) -> bool:
        return bool(self.why)


def judge(
    points: Sequence[JudgedPoint], rules: Mapping[str, PointRule], now: datetime, *, zones: Mapping[str, tzinfo]
) -> tuple[Verdict, ...]:
    """Return a verdict for each point of one VM; they come in the order in which they were made, the last first.

    ``rules`` and ``zones`` are by the name that the points give; ``now`` is the store's time. A harmed point fills no
    slot, and stays for as long as it would if it filled one.
    """
    why: dict[str, str] = {}
    counting = [point for point in points if point.proved and not point.is_suspect(now)]
    for name, rule in rules.items():
        mine = sorted((p for p in counting if p.rule == name), key=lambda point: point.made, reverse=True)
        why |= _kept([point for point in mine if point.sound], rule, zones[name])
        # Each by itself: of two that are harmed neither is known to be the better one.
        for harmed in (point for point in mine if not point.sound):
            beside = [point for point in mine if point.sound or point is harmed]
            why |= {point_id: by for point_id, by in _kept(beside, rule, zones[name]).items() if point_id == harmed.id}
    newest = newest_sound(points, now)
    return tuple(
        Verdict(point, _standing(point, rules, now) or why.get(point.id) or _needed(point, newest)) for point in points
    )


def _kept(points: Sequence[JudgedPoint], rule: PointRule, zone: tzinfo) -> dict[str, str]:
    kept = kept_by(rule.keep, [point.made for point in points], zone=zone, within=rule.within)
    return {points[place].id: name for place, name in kept.items()}


def _needed(point: JudgedPoint, newest: str | None) -> str:
    """Return what keeps a point that no rule keeps; empty for nothing."""
    if point.base:
        return Stays.BASE
    return Stays.NEWEST if point.id == newest else ""


def _standing(point: JudgedPoint, rules: Mapping[str, PointRule], now: datetime) -> str:
    """Return why a point is none of the rules' to judge; empty when it is."""
    if point.protected:
        return Stays.PROTECTED
    if not point.proved:
        return Stays.UNPROVED
    if point.is_suspect(now):
        return Stays.CLOCK
    return "" if point.rule in rules else Stays.NO_POLICY


def newest_sound(points: Sequence[JudgedPoint], now: datetime) -> str | None:
    """Return the id of the newest point of a VM that can be restored; of its safety points only when there is no other.

    ``points`` come in the order in which they were made, the last first.
    """
    fit = [point for point in points if point.proved and point.sound and not point.is_suspect(now)]
    made = [point for point in fit if not point.safety]
    return next((point.id for point in (*made, *fit)), None)


def reasons_to_ask(verdicts: Sequence[Verdict], now: datetime, last_removal: datetime | None) -> tuple[str, ...]:
    """Return why somebody must say yes before what is to go goes; empty for nothing unusual.

    ``last_removal`` is when points of the VM were removed last.
    """
    going = sum(not verdict.stays for verdict in verdicts)
    if not going:
        return ()
    reasons = []
    if too_many(going, len(verdicts)):
        reasons.append(f"{going} of its {len(verdicts)} points would go at once, more than a third")
    made = [each.point.made for each in verdicts if each.point.proved and not each.point.is_suspect(now)]
    if last_removal is not None and not any(moment > last_removal for moment in made):
        reasons.append("no point was made since points of it were removed last")
    return tuple(reasons)


def too_many(going: int, points: int) -> bool:
    """Return whether more than a third would go."""
    return going * 3 > points


def bases_in_use(points: Iterable[KnownPoint]) -> frozenset[str]:
    """Return the points of a VM against which its next point may be read; they come newest first.

    Of each disk it is the newest that made a bitmap of it. Checkpoints of older ones were deleted when it was made.
    """
    found: dict[str, str] = {}
    for point in points:
        for disk in point.disks:
            if disk.bitmap:
                found.setdefault(disk.target, point.point_id)
    return frozenset(found.values())


def rule_of(labels: Mapping[str, str], policies: Collection[str], vm_uuid: str, *, safety: str) -> str:
    """Return the name of the policy that a point of a VM belongs to; empty for none.

    A policy of a label goes before that of the VM, and one with a value before one without; then they go by name.
    Points with the label ``safety`` have a rule of their own as soon as their VM has a policy.
    """
    fitting = [f"label:{name}={value}" for name, value in sorted(labels.items())]
    fitting += [f"label:{name}" for name in sorted(labels)]
    for name in fitting:
        if name in policies:
            return name
    mine = next((name for name in (f"vm:{vm_uuid}", ALL_VMS) if name in policies), "")
    return f"label:{safety}" if mine and safety in labels else mine


ALL_VMS: Final = "all"
"""The name of the policy of VMs that have none of their own."""


def parse_within(text: str) -> timedelta:
    """Return the duration that a text like ``36h``, ``30d``, ``8w`` or ``2y`` (of 365 days) means.

    Raises InvalidRequest for another one.
    """
    found = _WITHIN.fullmatch(text)
    if found is None:
        raise InvalidRequest(f"{text!r} is no duration", hint="Write a number with h, d, w or y: 36h, 30d, 8w, 2y.")
    return int(found[1]) * _UNITS[found[2]]


def within_text(duration: timedelta) -> str:
    """Return the shortest text that means a duration; of one without seconds."""
    hours = duration // timedelta(hours=1)
    for unit in ("y", "w", "d"):
        each = _UNITS[unit] // timedelta(hours=1)
        if hours and hours % each == 0:
            return f"{hours // each}{unit}"
    return f"{hours}h"
