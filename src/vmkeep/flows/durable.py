"""DBOS, imported without what it has for other databases, for schedules, settings in files and a command line.

It would import driver and dialect of PostgreSQL, SQLAlchemy's ORM, a reader of cron lines, one of YAML, a parser of
dates, click and asyncio: 210 modules, and half of the time that its import takes (``-X importtime``, DBOS 3.4). A flow
on SQLite uses none of them (docs/adr/0029-what-a-command-loads.md). Whoever needs DBOS imports it from here, and
modules that flows load first take SQLAlchemy's errors from here as well: SQLAlchemy would load asyncio and what looks
for installed packages, of which it asks for plug-ins alone, and DBOS asks for its own release, which it writes into a
log that we do not keep.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmkeep.deferral import deferred

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from concurrent.futures import Executor


def _loop_here() -> object:
    """Do what ``asyncio.get_running_loop`` does; while nobody has loaded that, no loop runs."""
    loaded = sys.modules.get("asyncio")
    if loaded is None:
        raise RuntimeError("no running event loop")
    return loaded.get_running_loop()


_ALWAYS: dict[str, dict[str, object]] = {
    # What both ask in any case, and what DBOS has as a default: the names are the values.
    "asyncio": {
        "get_running_loop": _loop_here,
        "TimeoutError": TimeoutError,  # it is the same since Python 3.11
        "ALL_COMPLETED": "ALL_COMPLETED",
        "FIRST_COMPLETED": "FIRST_COMPLETED",
    },
    # What DBOS says of a release that cannot be told.
    "importlib.metadata": {"version": lambda _name: "unknown", "PackageNotFoundError": ModuleNotFoundError},
}
RAISED = {"asyncio": ("CancelledError",)}
"""What SQLAlchemy looks for in whatever went wrong."""
_OF_SQLITE = ("sqlalchemy.dialects.sqlite.aiosqlite", "sqlalchemy.dialects.sqlite.pysqlcipher")

with deferred(*_ALWAYS, *_OF_SQLITE, given=_ALWAYS, raised=RAISED):
    from sqlalchemy import JSON
    from sqlalchemy.dialects import sqlite as sqlite  # which would load what drives it by asyncio
    from sqlalchemy.exc import DatabaseError

DEFERRED = (
    "asyncio",
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
GIVEN: dict[str, dict[str, object]] = {"sqlalchemy.dialects.postgresql": {"JSONB": JSON}, **_ALWAYS}

with deferred(*DEFERRED, given=GIVEN, raised=RAISED):
    from dbos import DBOS, DBOSConfig, Serializer, SetWorkflowID, WorkflowStatus, _dbos, _event_loop, _serialization
    from dbos._sys_db import SystemDatabase

__all__ = [
    "DBOS",
    "DEFERRED",
    "FOR_OTHERS",
    "GIVEN",
    "QUEUES",
    "DBOSConfig",
    "DatabaseError",
    "Serializer",
    "SetWorkflowID",
    "WorkflowStatus",
    "_serialization",
    "launching",
    "take_up_resumed",
]

QUEUES = "queue_thread"
FOR_OTHERS = ("background_jobs_thread", "dynamic_scheduler_loop")
"""What DBOS starts threads for at its launch besides: flows that are late or come at times, of which there are none."""
_LOOK_SECONDS = 0.1
_resumed = threading.Event()


class _LateEventLoop(_event_loop.BackgroundEventLoop):
    """The loop for flows that are coroutines. It starts with the first of them, and none of vmkeep's is one."""

    _workers: Executor | None = None

    def start(self, executor: Executor | None = None) -> None:
        self._workers = executor

    def target_loop(self) -> AbstractEventLoop | None:
        if not self._running:
            super().start(self._workers)
        return super().target_loop()


vars(_dbos)["BackgroundEventLoop"] = _LateEventLoop
_run_queues: Callable[[threading.Event, DBOS], None] = vars(_dbos)[QUEUES]


@contextmanager
def launching(*, noted: str | None = None) -> Iterator[None]:
    """Within the block DBOS may be launched, with what vmkeep needs of it.

    ``noted`` is the version of the application when its database has it already (`vmkeep.flows.tables`): it is neither
    written nor looked for then.

    It takes up the dialect of PostgreSQL beside that of SQLite then. And it starts threads that look for flows that
    others queued, that are late, and that come at times: eight statements compiled, and 10 ms of a processor, in every
    command. Queued is what was resumed, so their thread waits for that (``take_up_resumed``); the others do nothing.
    """
    _resumed.clear()
    instead = {QUEUES: _run_queues_when_resumed, **dict.fromkeys(FOR_OTHERS, _do_nothing)}
    real = {name: vars(_dbos)[name] for name in instead}
    vars(_dbos).update(instead)
    try:
        with deferred("sqlalchemy.dialects.postgresql"), _noted(noted):
            yield
    finally:
        vars(_dbos).update(real)


@contextmanager
def _noted(version: str | None) -> Iterator[None]:
    if version is None:
        yield
        return
    instead = {
        "create_application_version": _do_nothing,
        "get_latest_application_version": lambda _: {"version_name": version},
    }
    real = {name: vars(SystemDatabase)[name] for name in instead}
    for name, method in instead.items():
        setattr(SystemDatabase, name, method)
    try:
        yield
    finally:
        for name, method in real.items():
            setattr(SystemDatabase, name, method)


def take_up_resumed() -> None:
    """Let DBOS run flows that were resumed, in threads of its own, as long as it lives."""
    _resumed.set()


def _run_queues_when_resumed(stop: threading.Event, dbos: DBOS) -> None:
    while not stop.is_set():
        if _resumed.wait(_LOOK_SECONDS):
            _run_queues(stop, dbos)


def _do_nothing(*_: object) -> None:
    return
