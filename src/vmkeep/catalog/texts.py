"""How values stand in text columns: JSON with sorted keys, times in UTC with microseconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any


def dump(value: Mapping[str, Any]) -> str:
    """Return a JSON object as text, the same for equal values."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def dump_list(values: Iterable[str]) -> str:
    """Return texts as a JSON list, which SQL can take apart."""
    return json.dumps(list(values), ensure_ascii=False)


def load(text: str) -> dict[str, Any]:
    """Return the JSON object of a column."""
    value: dict[str, Any] = json.loads(text)
    return value


def after(moment: str, seconds: float) -> str:
    """Return the instant so long after another one: how long something took is not told by a clock that was set."""
    return (datetime.fromisoformat(moment) + timedelta(seconds=seconds)).isoformat(timespec="microseconds")


def now() -> str:
    """Return the present instant, ISO 8601 in UTC, always with microseconds so that texts sort as times."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
