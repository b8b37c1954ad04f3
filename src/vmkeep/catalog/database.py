"""Where the catalogue's rows are: what each database promises, and the SQLite file.

Transactions are begun by us. A transaction that writes comes after all others that write of the same, so that what it
reads is the state it changes; one that only reads has one consistent view. The server of PostgreSQL is in
``vmkeep.catalog.postgres``, so that who keeps a file loads nothing of it.

The file: WAL with synchronous=FULL, so a transaction that was acknowledged survives a power cut. The driver's own
begins do not cover schema changes or choose their lock: a writer takes the write lock at once (BEGIN IMMEDIATE).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event

from vmkeep.catalog import texts
from vmkeep.catalog.revision import BUSY_TIMEOUT_MS, HEAD_REVISION
from vmkeep.errors import CatalogError, VmkeepError
from vmkeep.filesystem import make_private_file
from vmkeep.sqlite import raised_within, sqlite_error

_IMMEDIATE = "vmkeep_immediate"


class Database(ABC):
    """A database at the current schema. Used by several threads; each borrows a connection.

    ``address`` is what it is to people. Every use may raise CatalogError, NoSpace, PermissionRefused or StoreError, and
    InvalidRequest for a value that not every database can hold.
    """

    def __init__(self, address: str, engine: Engine) -> None:
        self.address = address
        self.refusal: VmkeepError | None = None
        """What every attempt to write is answered with; None for a database that is written to."""
        self._engine = engine
        event.listen(engine, "before_cursor_execute", _refuse_unfit)

    @abstractmethod
    def _begun(self, connection: Connection, of: Sequence[str]) -> None:
        """Wait in a transaction that writes until no other one of the same is under way."""

    @abstractmethod
    def _translate(self, error: Exception) -> VmkeepError:
        """Return the one error that a failure of the database means."""

    @abstractmethod
    def faults(self) -> tuple[str, ...]:
        """Return what the database finds wrong with itself; empty for a sound one."""

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads: one consistent view, and writers are not held up."""
        with self._translated(), self._reader() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self, *of: str) -> Iterator[Connection]:
        """A transaction that writes; committed at the end, or not at all.

        ``of`` is what it reads and writes of: UUIDs of VMs, or the id of an operation. Nothing: of anything. Two of the
        same come one after the other; SQLite knows no difference, and has one writer at a time.
        """
        if self.refusal is not None:
            raise self.refusal
        with self._translated(), self._writer() as connection, connection.begin():
            self._begun(connection, of)
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def _reader(self) -> Connection:
        return self._engine.connect()

    def _writer(self) -> Connection:
        return self._engine.connect()

    def _refuse_newer(self, revision: str | None) -> None:
        """Raise CatalogError for a schema that this release does not know.

        Alembic is imported only when there is something to migrate, because reading commands must start fast.
        """
        from vmkeep.catalog.migrations.upgrade import known_revisions

        if revision is not None and revision not in known_revisions():
            raise CatalogError(
                f"The catalogue {self.address} was written by a newer vmkeep (schema {revision})",
                path=self.address,
                hint="Use that version of vmkeep; nothing was changed.",
            )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
            if (signalled := raised_within(error)) is not None:
                raise signalled from None
            raise self._translate(error) from error


class SqliteFile(Database):
    """One SQLite file."""

    def __init__(self, path: Path, *, copy_of: Path | None = None) -> None:
        super().__init__(str(copy_of or path), _engine(path))
        self.path = path
        self._copy_of = copy_of

    @classmethod
    def open(cls, path: Path, *, copy_of: Path | None = None) -> SqliteFile:
        """Open the file, making it or bringing it up to date if need be.

        Two processes that do so at once wait for each other. ``copy_of`` is the catalogue that this is a copy of, and
        that errors name.

        Raises CatalogError for a file that is damaged or of a newer vmkeep, PermissionRefused, NoSpace, StoreError.
        """
        database = cls(path, copy_of=copy_of)
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

    def _writer(self) -> Connection:
        return self._engine.connect().execution_options(**{_IMMEDIATE: True})

    def _begun(self, connection: Connection, of: Sequence[str]) -> None:
        pass  # BEGIN IMMEDIATE has the write lock

    def faults(self) -> tuple[str, ...]:
        """Return what SQLite's quick check finds wrong; empty for a sound file. Raises as everything here does."""
        with self.reading() as connection:
            told = connection.execute(sqlalchemy.text("PRAGMA quick_check")).scalars()
            return tuple(str(fault) for fault in told if fault != "ok")

    def _migrate(self) -> None:
        revision = self.revision()
        if revision == HEAD_REVISION:  # another process was first
            return
        if revision is None:
            from vmkeep.catalog.creation import create_newest as make_current
        else:
            from vmkeep.catalog.migrations.upgrade import upgrade as make_current

            self._refuse_newer(revision)
        with self._translated():
            make_private_file(self.path)
        with self.writing() as connection:
            make_current(connection)
        with self._translated():
            self.path.chmod(0o600)  # one that somebody else has made

    def _translate(self, error: Exception) -> VmkeepError:
        if self._copy_of is None:
            return _translate(error, self.path)
        return _translate(error, self._copy_of, copy=self.path)


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


def _refuse_unfit(*execution: Any) -> None:
    """Refuse what one database would hold and another would not, before it is asked (before_cursor_execute)."""
    _connection, _cursor, _statement, parameters, _context, many = execution
    for row in parameters if many else (parameters,):
        for value in row.values() if isinstance(row, Mapping) else row:
            texts.require_fit(value)


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


def _translate(error: Exception, path: Path, copy: Path | None = None) -> VmkeepError:
    """Return the one error that a failure of the database or of its file means."""
    if not os.path.lexists(path.parent):
        hint = "Run `vmkeep init`, or set VMKEEP_HOME."
        return CatalogError(f"The catalogue's directory {path.parent} is not there", path=str(path), hint=hint)
    cause = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None else error
    return sqlite_error(cause, path, "The catalogue", copy=copy)
