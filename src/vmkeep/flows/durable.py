"""DBOS, imported without what it has for other databases, for schedules, settings in files and a command line.

It would import driver and dialect of PostgreSQL, SQLAlchemy's ORM, a reader of cron lines, one of YAML, a parser of
dates and click: 180 modules, and half of the time that its import takes (``-X importtime``, DBOS 3.4). A flow on SQLite
uses none of them (docs/adr/0029-what-a-command-loads.md). Whoever needs DBOS imports it from here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from sqlalchemy import JSON

from vmkeep.deferral import deferred

DEFERRED = (
    "click",
    "croniter",
    "dateutil",
    "dateutil.parser",
    "psycopg",
    "psycopg.errors",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.postgresql.base",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "yaml",
)

# One column of DBOS's has this type on PostgreSQL, and SQLAlchemy looks into it when the table is declared.
_GIVEN = {"sqlalchemy.dialects.postgresql": {"JSONB": JSON}}

with deferred(*DEFERRED, given=_GIVEN):
    from dbos import DBOS, DBOSConfig, Serializer, SetWorkflowID, WorkflowStatus, _serialization

__all__ = [
    "DBOS",
    "DEFERRED",
    "DBOSConfig",
    "Serializer",
    "SetWorkflowID",
    "WorkflowStatus",
    "_serialization",
    "launching",
]


def launching() -> AbstractContextManager[None]:
    """Within the block DBOS may be launched: it takes up the dialect of PostgreSQL beside that of SQLite then."""
    return deferred("sqlalchemy.dialects.postgresql")
