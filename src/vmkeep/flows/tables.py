"""The tables of a new flow database, made without the detour of DBOS's own way.

DBOS brings a new file through all versions that ever were by SQLAlchemy, and notes each by a statement of its own:
35 ms of a processor for the first command of a home. Here its statements, as they are, go to SQLite in one transaction.
DBOS looks at the version at its launch all the same, and finds nothing left to do; with a release that keeps its
statements elsewhere nothing is made here, and it does all of it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

_WAIT_SECONDS = 30
_ONE_PAGE_BYTES = 4096
"""What a file has that was only told to use a write-ahead log."""


def make_flow_tables(path: Path) -> None:
    """Make DBOS's tables in a file that has none. What keeps it from that is met by DBOS right afterwards, and told."""
    with suppress(OSError):
        if path.stat().st_size > _ONE_PAGE_BYTES:
            return
    try:
        from dbos._migration import sqlite_migrations
    except ImportError:
        return
    statements = [each.strip() for script in sqlite_migrations for each in script.split(";")]
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=_WAIT_SECONDS)) as database:
        database.isolation_level = None
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("BEGIN IMMEDIATE")
        if database.execute("SELECT 1 FROM sqlite_master").fetchone() is not None:  # another process was first
            return
        database.execute("CREATE TABLE dbos_migrations (version INTEGER NOT NULL PRIMARY KEY)")
        for statement in filter(None, statements):
            database.execute(statement)
        database.execute("INSERT INTO dbos_migrations (version) VALUES (?)", (len(sqlite_migrations),))
        database.execute("COMMIT")


def has_nothing_to_note(path: Path, application: str, version: str) -> bool:
    """Tell whether DBOS will find its tables as it makes them, and this version of the application noted in them.

    Then it need not look for either at its launch, which takes its lock for writing, and seven statements of which some
    take a millisecond to make. What cannot be told is left to it.
    """
    try:
        from dbos._migration import sqlite_migrations

        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            made = database.execute("SELECT version FROM dbos_migrations").fetchone()
            noted = "SELECT 1 FROM application_versions WHERE version_name = ? AND application_name = ?"
            found = database.execute(noted, (version, application)).fetchone()
    except (ImportError, sqlite3.Error):
        return False
    return made == (len(sqlite_migrations),) and found is not None
