"""The SQLite file: how it is opened, migrated and spoken to, and what its errors mean.

WAL with synchronous=FULL: a transaction that was acknowledged survives a power cut. Transactions are begun by
us, because the driver's own begins do not cover schema changes or choose their lock: a writer takes the write
lock at once (BEGIN IMMEDIATE), so that its reads are of the state it changes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, Engine, event

from vmkeep.errors import CatalogError, NoSpace, PermissionRefused, VmkeepError
from vmkeep.filesystem import make_private_file

HEAD_REVISION = "0002"
BUSY_TIMEOUT_MS = 30_000
_IMMEDIATE = "vmkeep_immediate"


class Database:
    """One SQLite file at the current schema. Used by several threads; each borrows a connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = _engine(path)

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open the file, making it or bringing it up to date if need be.

        Two processes that do so at once wait for each other. Alembic is imported only when there is something
        to migrate, because reading commands must start fast.

        Raises CatalogError for a file that is damaged or of a newer vmkeep, PermissionRefused, NoSpace.
        """
        database = cls(path)
        try:
            if database.revision() != HEAD_REVISION:
                with _locked(path):
                    database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    def revision(self) -> str | None:
        """Return the schema revision stored in the file; None for an empty one."""
        if not self.path.exists():
            return None
        with self.reading() as connection:
            table = sqlalchemy.text("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'")
            if connection.execute(table).first() is None:
                return None
            row = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).first()
            return None if row is None else str(row[0])

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads: one consistent view, and writers are not held up."""
        with self._translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that has the write lock from its start; committed at the end, or not at all."""
        with (
            self._translated(),
            self._engine.connect().execution_options(**{_IMMEDIATE: True}) as connection,
            connection.begin(),
        ):
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def faults(self) -> tuple[str, ...]:
        """Return what SQLite's quick check finds wrong; empty for a sound file. Raises as everything here does."""
        with self.reading() as connection:
            told = connection.execute(sqlalchemy.text("PRAGMA quick_check")).scalars()
            return tuple(str(fault) for fault in told if fault != "ok")

    def _migrate(self) -> None:
        revision = self.revision()
        if revision == HEAD_REVISION:  # another process was first
            return
        from vmkeep.catalog.migrations.upgrade import known_revisions, upgrade

        if revision is not None and revision not in known_revisions():
            raise CatalogError(
                f"The catalogue {self.path} was written by a newer vmkeep (schema {revision})",
                path=str(self.path),
                hint="Use that version of vmkeep; nothing was changed.",
            )
        with self._translated():
            make_private_file(self.path)
        with self.writing() as connection:
            upgrade(connection)
        with self._translated():
            self.path.chmod(0o600)  # one that somebody else has made

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
            # A signal's error that is raised inside of a statement comes out wrapped as if the database had failed.
            if isinstance(error, sqlalchemy.exc.StatementError) and isinstance(error.orig, VmkeepError):
                raise error.orig from None
            raise _translate(error, self.path) from error


# A Ctrl-C that comes while a connection is closed is told there with a traceback; without a handler Python prints it.
logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())


def _engine(path: Path) -> Engine:
    url = sqlalchemy.URL.create("sqlite", database=str(path))
    engine = sqlalchemy.create_engine(url)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get(_IMMEDIATE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file beside the catalogue; it stays, because removing it would race."""
    try:
        handle = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _translate(error, path) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _translate(error: Exception, path: Path) -> VmkeepError:
    """Return the one error that a failure of the database or of its file means."""
    if not path.parent.is_dir():
        hint = "Run `vmkeep init`, or set VMKEEP_HOME."
        return CatalogError(f"The catalogue's directory {path.parent} is not there", path=str(path), hint=hint)
    cause = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None else error
    if isinstance(cause, OSError):
        return _of_system(cause, path)
    code = getattr(cause, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    where = {"path": str(path)}
    if primary == sqlite3.SQLITE_FULL:
        return NoSpace(f"The catalogue {path} cannot grow: the disk is full", **where)
    refused = (sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    if primary in refused:
        return PermissionRefused(f"The catalogue {path} cannot be opened or written: {cause}", **where)
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return CatalogError(
            f"The catalogue {path} is in use by another process for too long",
            **where,
            hint="Wait for the other command to end and run this one again.",
        )
    return CatalogError(f"The catalogue {path} failed: {cause}", **where)


def _of_system(error: OSError, path: Path) -> VmkeepError:
    text = f"The catalogue {path} failed: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(text, path=str(path))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionRefused(text, path=str(path))
    return CatalogError(text, path=str(path))
