"""A database of PostgreSQL: its schema, how several open it at once, and what its failures are called."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from tests.integration.catalog.examples import WIN11, example_point, example_state, make_tables
from tests.rig.database import Cluster
from vmkeep.catalog import SqlCatalog, postgres, state_queries
from vmkeep.catalog.migrations.upgrade import _config
from vmkeep.catalog.models import metadata
from vmkeep.catalog.postgres import PostgresDatabase
from vmkeep.catalog.revision import HEAD_REVISION
from vmkeep.errors import CatalogError, InvalidRequest, NoSpace, PermissionRefused
from vmkeep.keys.signing import fingerprint_of

SECRET = "hunter2%40"  # noqa: S105 -- nobody's
_CHECKS = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c' ORDER BY conname"
_COLUMNS = """
SELECT data_type, collation_name, count(*) FROM information_schema.columns
WHERE table_schema = 'public' AND table_name <> 'alembic_version' GROUP BY 1, 2
"""


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    with cluster.database(make_tables) as url:
        yield url


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[str]:
    with cluster.database() as url:
        yield url


def _engine(url: str) -> sqlalchemy.Engine:
    return create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=sqlalchemy.NullPool)


def _rows(url: str, query: str) -> list[tuple[object, ...]]:
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        cursor = connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


def test_migrated_schema_is_the_declared_one(url: str) -> None:
    with _engine(url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_migrated_checks_are_the_declared_ones(url: str, empty: str) -> None:
    metadata.create_all(_engine(empty))
    assert _rows(url, _CHECKS) == _rows(empty, _CHECKS) != []


def test_every_text_sorts_by_code_points_and_every_number_has_64_bits(url: str) -> None:
    kinds = {(kind, collation) for kind, collation, _ in _rows(url, _COLUMNS)}
    assert kinds == {("text", "C"), ("bigint", None), ("boolean", None), ("double precision", None)}


def test_only_accepted_versions_are_unique(url: str) -> None:
    ((index,),) = _rows(url, "SELECT indexdef FROM pg_indexes WHERE indexname = 'uq_state_versions_accepted'")
    assert str(index).startswith("CREATE UNIQUE INDEX")
    assert str(index).endswith("(vm_uuid, kind, generation) WHERE (conflict = false)")


def test_several_servers_that_upgrade_at_once_are_fine(empty: str) -> None:
    with ThreadPoolExecutor(6) as threads:
        for catalog in threads.map(SqlCatalog.connect, [empty] * 6):
            catalog.close()
    assert _rows(empty, "SELECT version_num FROM alembic_version") == [(HEAD_REVISION,)]


def test_upgrade_that_fails_leaves_nothing(empty: str) -> None:
    _rows(empty, "CREATE TABLE operations (id text)")
    with pytest.raises(CatalogError, match="operations"):
        SqlCatalog.connect(empty)
    assert _rows(empty, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == [("operations",)]


def test_catalogue_of_an_older_schema_is_brought_up_to_date_with_all_it_has(empty: str) -> None:
    key = "8a" * 32
    state = example_state("v", 1)
    document = {"signature": {"key": key}, "states": [{"kind": "tpm", "sha256": state.sha256}]}
    row = ("a", WIN11, "2026-03-01T10:00:00.000000Z", json.dumps(document))
    with _engine(empty).begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO vms VALUES (%s, 'win11', NULL, '2026', false, 'a')", (WIN11,))
        connection.exec_driver_sql(
            "INSERT INTO points VALUES (%s, %s, 'win11', 'full', NULL, %s, 'h', NULL, 0, '{}', '{}', %s)", row
        )
        connection.exec_driver_sql(
            "INSERT INTO state_versions VALUES (%s, %s, 'tpm', 1, %s, 1, '2026')", (state.id, WIN11, state.sha256)
        )
        connection.exec_driver_sql("INSERT INTO pins VALUES (%s, 'point', 'a')", (state.id,))
    with SqlCatalog.connect(empty) as catalog:
        assert [point.signed_by for point in catalog.points()] == [fingerprint_of(bytes.fromhex(key))]
        assert catalog.placed_states(WIN11) == {"tpm": state.sha256}
        assert catalog.pins(state.id) == ("a",)


def test_newer_catalogue_is_refused_unchanged(url: str) -> None:
    _rows(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CatalogError, match="newer"):
        SqlCatalog.connect(url)


def test_database_that_cannot_hold_every_name_is_refused(cluster: Cluster) -> None:
    with cluster.database(encoding="LATIN1") as url:
        with pytest.raises(CatalogError, match="LATIN1") as caught:
            SqlCatalog.connect(url)
        assert "createdb" in caught.value.hint
        assert _rows(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []


def test_what_was_acknowledged_is_on_disk_and_writers_see_each_other_whatever_the_database_sets(url: str) -> None:
    _set_for_database(url, "synchronous_commit = off")
    _set_for_database(url, "default_transaction_isolation = serializable")
    with closing(PostgresDatabase.connect(url)) as database:
        for _ in range(2):
            with database.writing() as connection:
                assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
                assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"


def _set_for_database(url: str, setting: str) -> None:
    _rows(url, f"ALTER DATABASE {url.split('/')[3].split('?')[0]} SET {setting}")


def test_reading_sees_one_moment(url: str) -> None:
    with SqlCatalog.connect(url) as catalog, catalog._database.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM vms").scalar() == 0
        catalog.see_vm(WIN11, "win11")
        assert connection.exec_driver_sql("SELECT count(*) FROM vms").scalar() == 0


def test_failed_transaction_leaves_nothing(url: str) -> None:
    with SqlCatalog.connect(url) as catalog:
        with pytest.raises(CatalogError):
            _delete_revision_and_fail(catalog)
        catalog.record_point(example_point("p1"))
    with SqlCatalog.connect(url) as again:
        assert len(again.points()) == 1


def _delete_revision_and_fail(catalog: SqlCatalog) -> None:
    with catalog._database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM alembic_version")
        connection.exec_driver_sql("nonsense")


def test_capture_that_is_late_while_a_newer_one_is_being_accepted_waits_and_is_refused(url: str) -> None:
    newer, late = example_state("newer", 5), example_state("late", 4)
    with SqlCatalog.connect(url) as catalog, ThreadPoolExecutor(1) as thread:
        catalog.see_vm(WIN11, "win11")
        with catalog._database.writing(WIN11) as connection:
            state_queries.accept(connection, newer)
            waiting = thread.submit(catalog.accept_states, [late])
            assert wait([waiting], 0.2).not_done
        assert isinstance(waiting.exception(60), CatalogError)
        assert catalog.states_of_vm(WIN11) == (newer,)


# -- failures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://vmkeep:{SECRET}@127.0.0.1:1/catalog",
        f"postgresql://vmkeep@/catalog?host=/nowhere&password={SECRET}",
        f"postgresql://vmkeep:{SECRET}@no-such-host.invalid/catalog",
    ],
)
def test_server_that_is_not_there_is_told_without_the_password(address: str) -> None:
    with pytest.raises(CatalogError, match="cannot be reached") as caught:
        SqlCatalog.connect(address)
    assert "server runs" in caught.value.hint
    assert "catalog" in str(caught.value.path)
    _tells_no_secret(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://vmkeep:{SECRET}%zz@host/catalog",
        f"postgresql://vmkeep@[::1/catalog?password={SECRET}",
        f"postgresql://vmkeep@/catalog?{SECRET}=1",
        f"host=h password={SECRET}",
        f"mysql://vmkeep:{SECRET}@host/catalog",
        "",
    ],
)
def test_what_is_no_address_is_refused_without_being_repeated(address: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SqlCatalog.connect(address)
    assert "postgresql://USER@HOST" in caught.value.hint
    _tells_no_secret(caught.value)


def test_database_that_is_not_there_is_told(cluster: Cluster) -> None:
    with pytest.raises(CatalogError, match='database "absent" does not exist') as caught:
        SqlCatalog.connect(cluster.url("absent", password=SECRET))
    _tells_no_secret(caught.value)


def _tells_no_secret(error: BaseException) -> None:
    told = "".join(traceback.format_exception(error))
    assert "hunter2" not in told
    assert "hunter2" not in repr(vars(error))


def test_user_without_rights_is_told(url: str) -> None:
    _rows(url, "DO $$ BEGIN CREATE ROLE nobody LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    with pytest.raises(PermissionRefused, match="alembic_version"):
        SqlCatalog.connect(url.replace("vmkeep@", "nobody@"))


def test_database_of_a_standby_is_told(url: str) -> None:
    with SqlCatalog.connect(url) as catalog:
        _set_for_database(url, "default_transaction_read_only = on")
        catalog.see_vm(WIN11, "win11")  # a connection that was there
    with SqlCatalog.connect(url) as catalog, pytest.raises(CatalogError, match="read-only") as caught:
        catalog.see_vm(WIN11, "win11")
    assert "standby" in caught.value.hint


def test_who_waits_too_long_for_another_writer_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "BUSY_TIMEOUT_MS", 100)
    with SqlCatalog.connect(url) as catalog:
        with catalog._database.writing():
            with pytest.raises(CatalogError, match="in use"):
                catalog.see_vm(WIN11, "win11")
            assert catalog.vms() == ()  # who only reads does not wait
        with catalog._database.writing(WIN11.upper()):
            with pytest.raises(CatalogError, match="in use"):
                catalog.see_vm(WIN11, "win11")
            catalog.see_vm("another", "web")
        catalog.see_vm(WIN11, "win11")


def test_connection_that_is_ended_in_a_transaction_is_told_and_the_next_works(url: str) -> None:
    with SqlCatalog.connect(url) as catalog:
        with pytest.raises(CatalogError, match="was lost") as caught:
            _end_own_connection(catalog, url)
        assert "log" in caught.value.hint
        assert catalog.vms() == ()
        # One that lay idle when its server ended it is replaced before it is used.
        _rows(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'vmkeep'")
        catalog.see_vm(WIN11, "win11")


def _end_own_connection(catalog: SqlCatalog, url: str) -> None:
    with catalog._database.writing() as connection:
        connection.exec_driver_sql("INSERT INTO vms VALUES ('v', 'n', NULL, '2026', false, NULL, 0)")
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        _rows(url, f"SELECT pg_terminate_backend({pid}, 5000)")
        connection.exec_driver_sql("SELECT 1")


def test_server_that_dies_is_told_and_what_was_acknowledged_is_there_when_it_is_back(cluster: Cluster) -> None:
    own = Cluster(cluster.programs)
    try:
        with closing(psycopg.connect(own.url("postgres"), autocommit=True)) as connection:
            connection.execute("CREATE DATABASE own")
        with SqlCatalog.connect(own.url("own")) as catalog:
            catalog.record_point(example_point("p1"), [example_state("v", 1)])
            ended = threading.Timer(0.3, own.stop, (signal.SIGQUIT,))
            ended.start()
            generation = _accept_until_it_fails(catalog)
            ended.join()
            with pytest.raises(CatalogError, match="cannot be reached"):
                catalog.vms()
            own.start()
            newest = catalog.newest_state(WIN11, "tpm")
            assert newest is not None
            assert newest.generation - generation in (0, 1)  # the last may have been kept without an answer
    finally:
        own.remove()


def _accept_until_it_fails(catalog: SqlCatalog) -> int:
    for generation in range(2, 1_000_000):
        try:
            catalog.accept_states([example_state(f"v{generation}", generation)])
        except CatalogError:
            return generation - 1
    raise AssertionError("the server is still there")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_full_disk_is_told_and_leaves_what_was_acknowledged(cluster: Cluster) -> None:
    own = Cluster(cluster.programs, small_bytes=24 << 20)
    try:
        with closing(psycopg.connect(own.url("postgres"), autocommit=True)) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{own.small}'".encode())
            connection.execute("CREATE DATABASE own TABLESPACE small")
        with SqlCatalog.connect(own.url("own")) as catalog:
            known = _fill(catalog)
            assert catalog.point_ids() == tuple(sorted(known))
            assert catalog.newest_state(WIN11, "tpm") == example_state(f"v{len(known)}", len(known))
    finally:
        own.remove()


def _fill(catalog: SqlCatalog) -> list[str]:
    known: list[str] = []
    while True:
        note = {"note": random.randbytes(1 << 19).hex()}  # which nothing compresses to much less than half
        point = replace(example_point(f"p{len(known)}"), labels=note)
        state = example_state(f"v{len(known) + 1}", len(known) + 1)
        try:
            catalog.record_point(point, [state])
        except NoSpace as error:
            _is_told_with_what_to_do(error)
            return known
        known.append(point.id)


def _is_told_with_what_to_do(error: NoSpace) -> None:
    assert "disk of its server is full" in error.message
    assert "Free space" in error.hint
