"""What a failure of PostgreSQL is called: by its SQLSTATE, with what to do, and with no more than the server said."""

from __future__ import annotations

import psycopg
import pytest
import sqlalchemy
from psycopg import errors

from vmkeep.catalog.postgres import postgres_error
from vmkeep.errors import CatalogDamaged, CatalogError, NoSpace, PermissionRefused, StoreError, VmkeepError

ADDRESS = "postgresql://vmkeep@db/catalog"


@pytest.mark.parametrize(
    ("state", "kind", "word"),
    [
        ("57P03", CatalogError, "no connections yet"),
        ("57P01", CatalogError, "lost"),
        ("08006", CatalogError, "lost"),
        ("25P03", CatalogError, "lost"),
        ("55P03", CatalogError, "in use"),
        ("40P01", CatalogError, "in use"),
        ("40001", CatalogError, "in use"),
        ("57014", CatalogError, "in use"),
        ("53100", NoSpace, "full"),
        ("53200", CatalogError, "without resources"),
        ("53300", CatalogError, "without resources"),
        ("58030", StoreError, "storage"),
        ("XX001", CatalogDamaged, "damaged"),
        ("42501", PermissionRefused, "refuses"),
        ("28P01", PermissionRefused, "refuses"),
        ("25006", CatalogError, "read-only"),
        ("23505", CatalogError, "contradict"),
        ("42P01", CatalogError, "failed"),
    ],
)
def test_state_has_its_error_and_its_remedy(state: str, kind: type[VmkeepError], word: str) -> None:
    cause = errors.lookup(state)("what the server says\nLINE 2")
    for error in (cause, sqlalchemy.exc.DBAPIError("SELECT secret", {"name": "secret"}, cause)):
        told = postgres_error(error, ADDRESS)
        assert type(told) is kind
        assert word in told.message
        assert told.message.startswith(f"The catalogue {ADDRESS} ")
        assert told.message.endswith("what the server says LINE 2")
        assert told.hint
        assert told.path == ADDRESS


def test_connection_that_ends_without_a_word_is_called_lost() -> None:
    for cause in (psycopg.OperationalError("the connection is closed"), psycopg.InterfaceError()):
        assert "was lost" in postgres_error(cause, ADDRESS).message


def test_no_connection_in_time_is_called_so() -> None:
    told = postgres_error(sqlalchemy.exc.TimeoutError("QueuePool limit"), ADDRESS)
    assert "no connection became free" in told.message
