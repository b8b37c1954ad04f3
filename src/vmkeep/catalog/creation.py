"""The tables of a new catalogue file, made as they are declared rather than by all revisions one after the other.

The revisions take six times as long, of each first command of a home, and load Alembic. What they make of an older file
is what is declared (a test compares the two), so a later revision finds the same in both. PostgreSQL's tables are made
by the revisions: an index is declared without the condition that it has there (``models``).
"""

from __future__ import annotations

from sqlalchemy import Connection

from vmkeep.catalog.models import metadata
from vmkeep.catalog.revision import HEAD_REVISION

# As Alembic makes it, which reads from it where its next upgrade begins.
_ALEMBICS_TABLE = (
    "CREATE TABLE alembic_version "
    "(version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)


def create_newest(connection: Connection) -> None:
    """Make all tables of the newest revision in an empty SQLite database. The caller commits."""
    metadata.create_all(connection, checkfirst=False)
    connection.exec_driver_sql(_ALEMBICS_TABLE)
    connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (HEAD_REVISION,))
