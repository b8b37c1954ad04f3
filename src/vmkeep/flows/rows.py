"""Rows of the flow database that are none of vmkeep's.

Every row that vmkeep has DBOS write is named after its own serialiser, or after none. Any other was written by somebody
else, and by its serialisation may want to be unpickled, which runs what it says. It would not be (vmkeep.flows.values),
but who wrote it could also write flows of ours, so nothing is begun beside it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from vmkeep.commandline import shell_word
from vmkeep.errors import FlowsForeign
from vmkeep.flows.values import SERIALIZATION

# Written as DBOS's own partial indexes have it: then SQLite finds them at once among all that ever were.
_UNDER_WAY: Final = (
    "SELECT workflow_uuid FROM workflow_status WHERE status IN ('ENQUEUED', 'PENDING') "
    "UNION ALL SELECT workflow_uuid FROM workflow_status WHERE status = 'DELAYED'"
)
_WAIT_SECONDS: Final = 5


def refuse_foreign_rows(path: Path) -> None:
    """Raise FlowsForeign when a flow that is not over has a row that is not ours.

    Flows that are over are left to `vmkeep doctor`: their rows are never made values of, and after years they are so
    many that reading them takes longer than a command (0.3 s for ten thousand operations). A database that cannot be
    read is left to those who use it.
    """
    # Read-only first: a writer that closes the database last writes the whole log back, which syncs three times. What
    # only a writer can read, because a transaction of a dead process is to be taken back, is read by one then.
    for mode in ("ro", "rw"):
        with suppress(sqlite3.Error), closing(_opened(path, mode)) as database:
            found = foreign_row(database, under_way=True)
            break
    else:
        return
    if found is not None:
        hint = (
            "Nothing of it was read. Find out who may write there. This takes the database away when no vmkeep "
            f"runs; then the next command ends what was interrupted: {move_aside(path)}"
        )
        raise FlowsForeign(told_of(path, found), path=str(path), hint=hint)


def may_have_flows_under_way(path: Path) -> bool:
    """Tell whether the database may have a flow that is not over: one that cannot be read may.

    DBOS lists them by a statement that takes 5 ms to make, in every command, and hardly ever there are any.
    """
    try:
        with closing(_opened(path, "ro")) as database:
            return database.execute(_UNDER_WAY).fetchone() is not None
    except sqlite3.Error:
        return True


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_WAIT_SECONDS)


def foreign_row(database: sqlite3.Connection, *, under_way: bool = False) -> tuple[str, str] | None:
    """Return table and flow of a row that is not ours, None when there is none. Raises sqlite3.Error.

    ``under_way``: look at the rows of flows that are not over only.
    """
    if under_way and database.execute(_UNDER_WAY).fetchone() is None:
        return None
    tables = database.execute(
        "SELECT m.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c "
        "WHERE m.type IN ('table', 'view') AND c.name = 'serialization' ORDER BY m.name"
    ).fetchall()
    for (table,) in tables:
        quoted = '"' + table.replace('"', '""') + '"'
        columns = {column for (column,) in database.execute("SELECT name FROM pragma_table_info(?)", (table,))}
        flow = "workflow_uuid" if "workflow_uuid" in columns else "'-'"
        only = f" AND workflow_uuid IN ({_UNDER_WAY})" if under_way and "workflow_uuid" in columns else ""
        query = f"SELECT {flow} FROM {quoted} WHERE serialization IS NOT NULL AND serialization IS NOT ?{only} LIMIT 1"  # noqa: S608  its parts are ours, but for the name, which is quoted
        row = database.execute(query, (SERIALIZATION,)).fetchone()
        if row is not None:
            return str(table), str(row[0])
    return None


def told_of(path: Path, found: tuple[str, str]) -> str:
    """Return the sentence about a row that is not ours."""
    table, flow = found
    return (
        f"the flow database {path} has a row that no vmkeep has written: in its table {table!r}, of the flow {flow!r}"
    )


def move_aside(path: Path) -> str:
    """Return the command that moves a database aside, with its journal: that belongs to no other one."""
    aside = f"{path.parent}/damaged/"
    return f"mkdir -p {shell_word(aside)} && mv {shell_word(str(path))}* {shell_word(aside)}"
