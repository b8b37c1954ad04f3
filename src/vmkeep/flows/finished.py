"""Flows that are over leave the flow database: what became of them stands in the catalogue.

DBOS keeps all that it ever ran, 35 kB for each operation: a point every few minutes of fifty VMs is half a gigabyte a
day. What is deleted makes room for what comes, so the file stays as large as it has been once.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from vmkeep.flows.durable import DBOS
from vmkeep.logs import get_logger

KEPT: Final = 200
"""The last ones stay, for whoever looks into what happened."""
_TOO_MANY: Final = 400
"""So one command in two hundred pays for it."""
_OVER: Final = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
_WAIT_SECONDS: Final = 5
_log = get_logger(__name__)


def forget_finished_flows(path: Path) -> int:
    """Delete flows that are over from the database that DBOS was launched with, when there are many; return how many.

    What keeps it from that fails nothing: the next command does it.
    """
    try:
        over = _finished_before_the_last(path)
        if over:
            DBOS.delete_workflows(over)
    except (sqlite3.Error, SQLAlchemyError) as error:
        _log.info("finished flows were not deleted", error=str(error))
        return 0
    return len(over)


def _finished_before_the_last(path: Path) -> list[str]:
    marks = ", ".join("?" * len(_OVER))
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)) as database:
        number = database.execute("SELECT count(*) FROM workflow_status").fetchone()[0]
        if number < _TOO_MANY:
            return []
        over = f"SELECT workflow_uuid FROM workflow_status WHERE status IN ({marks})"  # noqa: S608  marks alone
        chosen = f"{over} ORDER BY updated_at DESC LIMIT -1 OFFSET ?"
        return [str(row[0]) for row in database.execute(chosen, (*_OVER, KEPT))]
