"""How values stand in columns: JSON with sorted keys, times in UTC with microseconds; and what none can hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from vmkeep.errors import InvalidRequest

_NUMBERS: Final = range(-(1 << 63), 1 << 63)


def require_fit(value: object) -> None:
    """Raise InvalidRequest for a value of a column that not every database can hold.

    PostgreSQL holds no NUL in a text, and neither it nor SQLite half of a pair of surrogates, or a number of more than
    64 bits.
    """
    if isinstance(value, str) and not _is_text(value):
        raise InvalidRequest(f"{value[:80]!r} cannot be kept: it is no text", hint="Use a name of whole characters.")
    if isinstance(value, int) and value not in _NUMBERS:
        raise InvalidRequest("A number of more than 64 bits cannot be kept", hint="See what wrote it.")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


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
    return instant(datetime.now(UTC))


def instant(moment: datetime) -> str:
    """Return an instant as columns have it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
