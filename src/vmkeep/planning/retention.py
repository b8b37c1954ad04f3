"""Which of many moments are kept: the last ones, and one of each hour, day, week, month and year, as far as one likes.

The rules are those of Proxmox Backup Server (pbs-datastore, prune.rs, 3.2): they apply in this order, the newest of a
period stands for it, a period in which an earlier rule has kept one already does not count again, and what an earlier
rule has passed over is not looked at again by a later one. Weeks are those of ISO 8601. Nothing is compared with the
clock: what is kept depends on the moments alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from vmkeep.errors import InvalidRequest
from vmkeep.values import dataclass

MOST: Final = 100_000
"""Of one number in a rule."""
_PERIODS: Final[dict[str, Callable[[datetime], str]]] = {
    "last": lambda moment: moment.isoformat(timespec="microseconds"),
    "hourly": lambda moment: moment.strftime("%Y-%m-%d %H"),
    "daily": lambda moment: moment.strftime("%Y-%m-%d"),
    "weekly": lambda moment: moment.strftime("%G-%V"),
    "monthly": lambda moment: moment.strftime("%Y-%m"),
    "yearly": lambda moment: moment.strftime("%Y"),
}


@dataclass(frozen=True, slots=True)
class KeepRule:
    """How many are kept by each rule; 0 for none."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    @classmethod
    def parse(cls, text: str) -> KeepRule:
        """Return the rule that a text like ``last=50, daily=90`` means.

        Raises InvalidRequest for another text, and for one that keeps nothing.
        """
        numbers: dict[str, int] = {}
        for part in text.split(","):
            name, _, number = (each.strip() for each in part.partition("="))
            digits = number.isascii() and number.isdecimal() and len(number) <= len(str(MOST))
            if name not in _PERIODS or name in numbers or not digits or int(number) > MOST:
                raise InvalidRequest(
                    f"{text!r} is no rule of what is kept: {part.strip()!r} is not understood",
                    hint=f"Write for instance 'last=50, hourly=48, daily=90'. There are {', '.join(_PERIODS)}.",
                )
            numbers[name] = int(number)
        rule = cls(**numbers)
        if not any(numbers.values()):
            raise InvalidRequest(f"{text!r} keeps nothing", hint="Keep the last one at least: 'last=1'.")
        return rule

    def __str__(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in _PERIODS if getattr(self, name))


def kept_by(
    rule: KeepRule, moments: Sequence[datetime], *, zone: tzinfo = UTC, within: timedelta = timedelta()
) -> dict[int, str]:
    """Return by which rule each moment is kept ("daily", ...), by its place; those that are not named go.

    ``moments`` are the newest first, in any zones; periods are those of ``zone``. All that are less than ``within``
    older than the newest are kept as well, by a rule of that name which comes right after "last".
    """
    kept: dict[int, str] = {}
    passed: set[int] = set()
    local = [moment.astimezone(zone) for moment in moments]
    for name, period in _PERIODS.items():
        # Two of one microsecond are two to "last".
        labels = [
            f"{period(moment)} {place}" if name == "last" else period(moment) for place, moment in enumerate(local)
        ]
        covered = {labels[place] for place in kept}
        chosen: set[str] = set()
        for place, label in enumerate(labels):
            if place in kept or place in passed or label in covered:
                continue
            if label in chosen:
                passed.add(place)
            elif len(chosen) == getattr(rule, name):
                break
            else:
                kept[place] = name
                chosen.add(label)
        if name == "last" and within:
            young = [place for place, moment in enumerate(moments) if moments[0] - moment < within]
            kept |= {place: "within" for place in young if place not in kept}
    return kept
