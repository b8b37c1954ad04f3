"""DBOS, imported without what it has for other databases, for schedules, settings in files and a command line.

It would import driver and dialect of PostgreSQL, SQLAlchemy's ORM, a reader of cron lines, one of YAML, a parser of
dates and click: 180 modules, and half of the time that its import takes (``-X importtime``, DBOS 3.4). A flow on SQLite
uses none of them (docs/adr/0029-what-a-command-loads.md). Whoever needs DBOS imports it from here, and modules that
flows load first take SQLAlchemy's errors from here as well: SQLAlchemy would load what looks for installed packages, of
which it asks for plug-ins alone, and DBOS asks for its own release, which it writes into a log that we do not keep.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from vmkeep.deferral import deferred

# What DBOS says of a release that cannot be told.
_PACKAGES: dict[str, dict[str, object]] = {
    "importlib.metadata": {"version": lambda _name: "unknown", "PackageNotFoundError": ModuleNotFoundError}
}

with deferred(*_PACKAGES):
    from sqlalchemy import JSON
    from sqlalchemy.exc import DatabaseError

DEFERRED = (
    "click",
    "croniter",
    "dateutil",
    "dateutil.parser",
    "importlib.metadata",
    "psycopg",
    "psycopg.errors",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.postgresql.base",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "yaml",
)

# One column of DBOS's has this type on PostgreSQL, and SQLAlchemy looks into it when the table is declared.
GIVEN: dict[str, dict[str, object]] = {"sqlalchemy.dialects.postgresql": {"JSONB": JSON}, **_PACKAGES}

with deferred(*DEFERRED, given=GIVEN):
    from dbos import DBOS, DBOSConfig, Serializer, SetWorkflowID, WorkflowStatus, _serialization

__all__ = [
    "DBOS",
    "DEFERRED",
    "GIVEN",
    "DBOSConfig",
    "DatabaseError",
    "Serializer",
    "SetWorkflowID",
    "WorkflowStatus",
    "_serialization",
    "launching",
]


def launching() -> AbstractContextManager[None]:
    """Within the block DBOS may be launched: it takes up the dialect of PostgreSQL beside that of SQLite then."""
    return deferred("sqlalchemy.dialects.postgresql")
