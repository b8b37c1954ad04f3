"""How well a VM is protected: the age of its newest sound point against how old that may be.

A point is *sound* here when it is one that somebody asked for (no safety point), its maker is trusted, and no
verification found it damaged. What nobody can tell is unknown, and never good.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from vmkeep.planning.schedule import age_seconds
from vmkeep.values import dataclass

_TRUSTED = ("own", "trusted")


class Protection(StrEnum):
    """How well a VM is protected."""

    GOOD = "good"
    LATE = "late"
    """Its newest sound point is older than it may be."""
    NONE = "none"
    """It has no sound point."""
    UNKNOWN = "unknown"
    """Nobody says how old its point may be, or the point says a time that is still to come."""
    SKIPPED = "skipped"
    """Its settings leave it out of what runs by itself."""
    AWAY = "away"
    """It is not on this host any more. Its points stay."""


@dataclass(frozen=True, slots=True)
class ProtectedVm:
    """A VM with its newest sound point, None for none. ``passed_over`` are newer points that do not count."""

    name: str
    uuid: str
    state: str | None
    protection: Protection
    point: str | None = None
    created: str | None = None
    age_seconds: float | None = None
    objective_seconds: int | None = None
    passed_over: tuple[str, ...] = ()


def newest_sound(
    points: Iterable[Mapping[str, Any]], harmed: Collection[str], safety_label: str
) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """Return the newest sound point of a VM out of summaries, the oldest first, and the ids of newer ones."""
    passed: list[str] = []
    for point in reversed(tuple(points)):
        if safety_label in point["labels"]:
            continue
        if point["id"] not in harmed and point["made_by"]["trust"] in _TRUSTED:
            return point, tuple(passed)
        passed.append(str(point["id"]))
    return None, tuple(passed)


def protection_of(created: str | None, objective_seconds: int | None, now: datetime, *, skip: bool) -> Protection:
    """Return how well a VM is protected that is on this host. ``created`` is when its newest sound point was taken."""
    if skip:
        return Protection.SKIPPED
    if created is None:
        return Protection.NONE
    age = age_seconds(created, now)
    if age is None or objective_seconds is None:
        return Protection.UNKNOWN
    return Protection.GOOD if age <= objective_seconds else Protection.LATE
