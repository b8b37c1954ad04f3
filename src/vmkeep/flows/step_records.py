"""The steps of a flow as the flow database has them, read without DBOS: it would begin to recover what it finds."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from vmkeep.errors import VmkeepError
from vmkeep.sqlite import sqlite_error
from vmkeep.values import dataclass

UNDO: Final = "undo_"
_MOST: Final = 1000
_LONGEST: Final = 200
_LARGEST: Final = 100_000
_QUERY: Final = (
    "SELECT substr(function_name, 1, ?), substr(error, 1, ?), started_at_epoch_ms, completed_at_epoch_ms "
    "FROM operation_outputs WHERE workflow_uuid = ? ORDER BY function_id LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step, or an undo of one, that has ended. Times are ISO 8601 in UTC; ``error`` is what it failed with."""

    name: str
    undo: bool
    started: str | None
    ended: str | None
    seconds: float | None
    error: VmkeepError | None = None


def read_steps(path: Path, operation: str) -> tuple[StepRecord, ...] | None:
    """Return the steps of a flow that have ended, in their order; None for a flow that the database does not know.

    Nothing of what a step returned is read, and of its error only what any error of vmkeep has. Raises CatalogDamaged
    and others for a database that cannot be read.
    """
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"workflow_status", "operation_outputs"} <= tables:
                return None
            known = database.execute("SELECT 1 FROM workflow_status WHERE workflow_uuid = ?", (operation,)).fetchone()
            rows = database.execute(_QUERY, (_LONGEST, _LARGEST + 1, operation, _MOST)).fetchall()
    except sqlite3.Error as error:
        raise sqlite_error(error, path, "the flow database") from error
    return None if known is None else tuple(_steps(rows))


def _steps(rows: list[tuple[Any, ...]]) -> Iterator[StepRecord]:
    for name, error, started, ended in rows:
        text = str(name)
        known = isinstance(started, int) and isinstance(ended, int)
        yield StepRecord(
            name=text.removeprefix(UNDO),
            undo=text.startswith(UNDO),
            started=_time(started),
            ended=_time(ended),
            seconds=round((ended - started) / 1000, 3) if known else None,
            error=None if error is None else _error(error),
        )


def _time(epoch_ms: object) -> str | None:
    if not isinstance(epoch_ms, int):
        return None
    try:
        moment = datetime.fromtimestamp(epoch_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _error(written: object) -> VmkeepError:
    """Return the error of a step as `vmkeep.host.tasks.wire` wrote it; the columns of a database hold anything."""
    unknown = VmkeepError("it failed, and the record of why cannot be read", hint="")
    if not isinstance(written, str) or len(written) > _LARGEST:
        return unknown
    try:
        value = json.loads(written)
    except (ValueError, RecursionError):
        return unknown
    told = value.get("$error") if isinstance(value, Mapping) else None
    if isinstance(told, Mapping):
        plain = {key: each for key, each in told.items() if key in _TEXTS and isinstance(each, str)}
        return VmkeepError.from_dict(plain)
    fault = value.get("$fault") if isinstance(value, Mapping) else None
    return VmkeepError(fault, hint="") if isinstance(fault, str) else unknown


_TEXTS: Final = frozenset({"code", "message", "hint", "vm", "disk", "path"})
