"""DBOS, imported without what it has for other databases, for schedules, settings in files and a command line.

It would import the driver of PostgreSQL, SQLAlchemy's ORM, a reader of cron lines, one of YAML, a parser of dates and
click: 160 modules, and a third of the time that its import takes (``-X importtime``, DBOS 3.4). A flow on SQLite uses
none of them (docs/adr/0029-what-a-command-loads.md). Whoever needs DBOS imports it from here.
"""

from __future__ import annotations

from vmkeep.deferral import deferred

DEFERRED = (
    "click",
    "croniter",
    "dateutil",
    "dateutil.parser",
    "psycopg",
    "psycopg.errors",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "yaml",
)

with deferred(*DEFERRED):
    from dbos import DBOS, DBOSConfig, Serializer, SetWorkflowID, WorkflowStatus, _serialization

__all__ = ["DBOS", "DEFERRED", "DBOSConfig", "Serializer", "SetWorkflowID", "WorkflowStatus", "_serialization"]
