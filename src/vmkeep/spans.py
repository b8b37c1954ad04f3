"""Lengths of time as a person writes and reads them: "90s", "15m", "26h", "7d", "2w"; and sizes: "500M", "50GB"."""

from __future__ import annotations

import re
from typing import Final

SPAN_FORMS: Final = "90s, 15m, 26h, 7d or 2w"
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SPAN: Final = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)


SIZE_FORMS: Final = "500M, 50G or 2TB"
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE: Final = re.compile(r"(\d{1,12}) ?([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)


def size_bytes(text: str) -> int | None:
    """Return how many bytes a size has, in binary units; None for a text that is none."""
    found = _SIZE.fullmatch(text.strip())
    return None if found is None else int(found[1]) * _UNITS[found[2].upper()]


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
