"""Times as a person names them: VM@TIME."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

TIME_FORMS: Final = "2026-11-29, 2026-11-29T14:30, or 2026-11-29T14:30:05+01:00"

_TIME: Final = re.compile(
    r"(?P<day>\d{4}-\d{2}-\d{2})"
    r"([T ](?P<hour>\d{2})(:(?P<minute>\d{2})(:(?P<second>\d{2})(?P<part>\.\d{1,6})?)?)?"
    r"(?P<zone>Z|[+-]\d{2}:?\d{2})?)?",
    re.ASCII,
)
_UNITS: Final = (
    ("part", timedelta()),
    ("second", timedelta(seconds=1)),
    ("minute", timedelta(minutes=1)),
    ("hour", timedelta(hours=1)),
    ("day", timedelta(days=1)),
)


def end_of_named_time(text: str) -> datetime | None:
    """Return the last instant of the day, hour, minute or second that is named; None for another text.

    A day that is named alone counts to its end, so that its last point is at or before it, and so does a second: lists
    show no smaller ones. Without a zone it is the local time of this machine.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    unit = next(length for name, length in _UNITS if found[name] is not None)
    clock = [found[name] or "00" for name in ("hour", "minute", "second")]
    zone = (found["zone"] or "").replace("Z", "+00:00")
    try:
        start = datetime.fromisoformat(f"{found['day']}T{':'.join(clock)}{found['part'] or ''}{zone}")
        end = start + unit - timedelta(microseconds=1) if unit else start
        return end.astimezone(UTC)  # of one without a zone: of this machine
    except (ValueError, OverflowError):
        return None
