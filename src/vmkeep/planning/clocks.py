"""What the clocks of a VM's points say of themselves. They order nothing; one that is wrong is told."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from vmkeep.values import dataclass

TOLERANCE: Final = timedelta(seconds=2)
"""Clocks of hosts that are kept in time may differ by as much, and one that is slewed goes back by less."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the clock said when a point was made."""

    point: str
    clock: datetime

    @classmethod
    def of(cls, point: str, created: str) -> Stamp:
        """``created`` is ISO 8601."""
        return cls(point, datetime.fromisoformat(created))

    def __str__(self) -> str:
        return self.clock.isoformat(timespec="seconds")


def ahead(stamps: Sequence[Stamp], now: datetime) -> tuple[Stamp, ...]:
    """Return the stamps that say a time which is still to come."""
    return tuple(stamp for stamp in stamps if stamp.clock - now > TOLERANCE)


def went_back(stamps: Sequence[Stamp]) -> tuple[tuple[Stamp, Stamp], ...]:
    """Return each two neighbours of which the one that was made later says an earlier time.

    ``stamps`` come in the order of the events.
    """
    return tuple((one, other) for one, other in pairwise(stamps) if one.clock - other.clock > TOLERANCE)


def warning(before: Stamp, made: Stamp) -> str | None:
    """Return what to say of a point that was just made after another one; None when their clocks agree."""
    if not went_back((before, made)):
        return None
    return (
        f"The clock of this host says {made}, and point {before.point}, which was made before this one, says {before}: "
        "the clock is behind now, or was ahead then. The points keep their order; check the clock (timedatectl)."
    )
