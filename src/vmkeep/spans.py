"""Lengths of time as a person writes and reads them: "90s", "15m", "26h", "7d", "2w"."""

from __future__ import annotations

import re
from typing import Final

SPAN_FORMS: Final = "90s, 15m, 26h, 7d or 2w"
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SPAN: Final = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)


def span_seconds(text: str) -> int | None:
    """Return how many seconds a length of time has; None for a text that is none. A number without a unit is none."""
    found = _SPAN.fullmatch(text.strip())
    return None if found is None else int(found[1]) * _SECONDS[found[2]]


def span_text(seconds: float) -> str:
    """Return a length of time in its largest unit of which there are two or more: "40 min", "26 h", "9 days"."""
    whole = max(0, round(seconds))
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
