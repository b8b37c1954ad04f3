"""A database of PostgreSQL: how it is reached, migrated and spoken to, and what its errors mean.

**Who waits for whom.** A transaction that writes takes an advisory lock of the VM or operation that it is about before
it reads anything, and shares one of the whole database; one that is about anything takes the latter alone. So it reads
what all earlier ones of the same have left (READ COMMITTED: each statement sees what was committed before it, and no
other writer of the same can commit in between), as on SQLite, whose one writer holds the write lock from its start.
Two captures that claim one generation come one after the other, and the second is refused for what the first has
written.

SERIALIZABLE would find the same out by letting one of them fail, and who fails must be run again from its start, any
number of times: on tables of a few pages PostgreSQL locks pages and whole tables for what was read, so captures of
*different* VMs fail each other. Locks of rows (SELECT ... FOR UPDATE) find no row to lock in a VM or a version that is
not there yet. The locks end with their transaction, also when the client dies; the unique indexes stand behind them.

**What is kept** is what SQLite keeps: a commit that was answered is on the server's disk (where ``synchronous_commit``
is off it is put on for our connections; ``fsync`` is the administrator's). The migrations run in one transaction that
has the lock of the whole database, so two servers that upgrade at once come one after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import psycopg
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, Engine

from vmkeep.catalog.database import Database
from vmkeep.catalog.revision import BUSY_TIMEOUT_MS, HEAD_REVISION
from vmkeep.errors import (
    CatalogDamaged,
    CatalogError,
    InvalidRequest,
    NoSpace,
    PermissionRefused,
    StoreError,
    VmkeepError,
)

_CONNECT_SECONDS: Final = 10
# A client that stands still in a transaction keeps others from writing; one whose machine is gone is noticed as soon.
_IDLE_MS: Final = 60_000
_AT_FIRST: Final = """
SELECT set_config('lock_timeout', %s, false), set_config('idle_in_transaction_session_timeout', %s, false),
    set_config('synchronous_commit', CASE setting WHEN 'off' THEN 'on' ELSE setting END, false)
FROM current_setting('synchronous_commit') AS setting
"""


class PostgresDatabase(Database):
    """A database on a server of PostgreSQL."""

    def __init__(self, url: str) -> None:
        parameters = _parsed(url)
        super().__init__(_shown(parameters), _engine(parameters))

    @classmethod
    def connect(cls, url: str) -> PostgresDatabase:
        """Connect to a database, and make its tables or bring them up to date if need be.

        ``url`` is libpq's: ``postgresql://USER@HOST:PORT/NAME?OPTION=VALUE``; what it leaves out libpq takes from its
        own places (``PGPASSFILE``, ``PGSSLMODE``). A password in it is shown nowhere. Two servers that do so at once
        wait for each other.

        Raises InvalidRequest for what is no such address; CatalogError when the server cannot be reached or refuses,
        for a database of a newer vmkeep or of another encoding than UTF-8; and what every use raises.
        """
        database = cls(url)
        try:
            if database.revision() != HEAD_REVISION:
                database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    def revision(self) -> str | None:
        """Return the schema revision of the database; None for an empty one. Raises CatalogError for its encoding."""
        with self.reading() as connection:
            return self._revision(connection)

    def faults(self) -> tuple[str, ...]:
        """Return nothing, if the database answers: its server looks after its files itself."""
        self.revision()
        return ()

    def _revision(self, connection: Connection) -> str | None:
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise CatalogError(
                f"The catalogue {self.address} has the encoding {encoding}, which not every name can be kept in",
                path=self.address,
                hint="Make the database with `createdb --encoding=UTF8 --template=template0`; nothing was changed.",
            )
        if connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar() is None:
            return None
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return None if found is None else str(found)

    def _migrate(self) -> None:
        from vmkeep.catalog.migrations.upgrade import upgrade

        with self.writing() as connection:
            revision = self._revision(connection)
            if revision == HEAD_REVISION:  # another server was first
                return
            self._refuse_newer(revision)
            upgrade(connection)

    def _reader(self) -> Connection:
        return self._engine.connect().execution_options(isolation_level="REPEATABLE READ")

    def _writer(self) -> Connection:
        return self._engine.connect().execution_options(isolation_level="READ COMMITTED")

    def _begun(self, connection: Connection, of: Sequence[str]) -> None:
        mine = sorted({_lock(f"of {one.lower()}") for one in of})
        shared = "_shared" if mine else ""
        # One statement, whose expressions are evaluated as they stand: all wait in one order, and never in a circle.
        locks = [f"pg_advisory_xact_lock{shared}({_lock('everything')})"]
        locks += [f"pg_advisory_xact_lock({key})" for key in mine]
        connection.exec_driver_sql(f"SELECT {', '.join(locks)}")

    def _translate(self, error: Exception) -> VmkeepError:
        return postgres_error(error, self.address)


def postgres_error(error: Exception, address: str) -> VmkeepError:
    """Return the one error that a failure of the database means. ``address`` names it, without a password."""
    cause = getattr(error, "orig", None) or error
    state = getattr(cause, "sqlstate", None)
    told = " ".join(str(cause).split()) or type(cause).__name__
    name = f"The catalogue {address}"
    if isinstance(cause, sqlalchemy.exc.TimeoutError):
        hint = "Run this again when less is under way at once."
        return CatalogError(f"{name} is in use: no connection became free in time", path=address, hint=hint)
    if isinstance(cause, _NotReached):
        hint = "See that the server runs and takes connections, and that address, user and password are right."
        return CatalogError(f"{name} cannot be reached: {told}", path=address, hint=hint)
    if isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError) and state is None:
        return CatalogError(f"{name} was lost: {told}", path=address, hint=_LOST)
    for beginnings, kind, what, remedy in _MEANINGS:
        if state is not None and state.startswith(beginnings):
            return kind(f"{name} {what}: {told}", path=address, hint=remedy)
    return CatalogError(f"{name} failed: {told}", path=address, hint="The server's log may say more.")


class _NotReached(psycopg.OperationalError):
    """No connection came about. libpq tells why in words alone."""


_LOST: Final = (
    "See in the server's log why it ended the connection, and run this again when it is there. What was being written "
    "when it did may have been kept."
)
_Meaning = tuple[tuple[str, ...], type[VmkeepError], str, str]
# By the beginning of the SQLSTATE (PostgreSQL, appendix A); the first that fits.
_MEANINGS: Final[tuple[_Meaning, ...]] = (
    (("57P03",), CatalogError, "takes no connections yet", "Run this again when the server is ready."),
    (("57P", "08", "25P03"), CatalogError, "was lost", _LOST),
    (("55P03", "57014", "40"), CatalogError, "is in use by another process for too long", "Run this again."),
    (("53100",), NoSpace, "cannot grow: a disk of its server is full", "Free space there and run this again."),
    (("53",), CatalogError, "has a server without resources", "See the server's log, and run this again."),
    (("58",), StoreError, "has a server whose storage fails", "Look at the storage of the database server."),
    (
        ("XX001", "XX002"),
        CatalogDamaged,
        "is damaged",
        "Restore the database from its own backup; see the server's log.",
    ),
    (("42501", "28"), PermissionRefused, "refuses its user", "Give the user of the address the rights on the tables."),
    (("25006",), CatalogError, "is read-only", "Name the server that is written to, and not a standby of it."),
    (
        ("23",),
        CatalogError,
        "would contradict itself",
        "Nothing was changed. Look at `vmkeep points` for what is there.",
    ),
)


def _parsed(url: str) -> dict[str, Any]:
    """Return the parameters of an address; raises InvalidRequest, which repeats nothing: it may be the password."""
    if url.startswith(("postgresql://", "postgres://")):
        try:
            return {name: value for name, value in conninfo_to_dict(url).items() if value is not None}
        except psycopg.Error:
            pass
    raise InvalidRequest(
        "The address of the catalogue's database cannot be read",
        hint="Write it as postgresql://USER@HOST:PORT/NAME, with % and @ inside of a part as %25 and %40.",
    )


def _shown(parameters: dict[str, Any]) -> str:
    """Return the address as people may see it."""
    user = f"{parameters['user']}@" if parameters.get("user") else ""
    port = f":{parameters['port']}" if parameters.get("port") else ""
    return f"postgresql://{user}{parameters.get('host', '')}{port}/{parameters.get('dbname', '')}"


def _engine(parameters: dict[str, Any]) -> Engine:
    defaults = {"connect_timeout": _CONNECT_SECONDS, "application_name": "vmkeep", "tcp_user_timeout": _IDLE_MS}
    given = {**defaults, "keepalives_idle": _IDLE_MS // 1000, **parameters, "client_encoding": "utf8"}

    def connect() -> psycopg.Connection[Any]:
        try:
            connection: psycopg.Connection[Any] = psycopg.connect(**given)
        except psycopg.Error as error:
            raise _NotReached(*error.args) from error
        try:
            connection.execute(_AT_FIRST, (str(BUSY_TIMEOUT_MS), str(_IDLE_MS)))
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection

    # The address stays out of SQLAlchemy, which would show it. A connection that its server has ended is not used
    # again.
    return sqlalchemy.create_engine("postgresql+psycopg://", creator=connect, pool_pre_ping=True)


def _lock(of: str) -> int:
    """Return the number of an advisory lock: two that agree by chance wait for each other without need."""
    digest = hashlib.blake2b(of.encode(), digest_size=8, person=b"vmkeep catalog").digest()
    return int.from_bytes(digest, "big", signed=True)
