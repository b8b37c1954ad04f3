"""The file: its schema, how it is opened by several at once, and what its failures are called."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from tests.integration.catalog.examples import WIN11, example_point
from vmkeep.catalog import SqlCatalog, Trust
from vmkeep.catalog.database import SqliteFile
from vmkeep.catalog.migrations.upgrade import _config, head_revision
from vmkeep.catalog.models import metadata
from vmkeep.catalog.revision import HEAD_REVISION
from vmkeep.errors import CatalogError, Interrupted, PermissionRefused
from vmkeep.keys.signing import fingerprint_of

FIRST_COMMAND = (
    "import sys; from vmkeep.catalog import SqlCatalog; SqlCatalog.open(__import__('pathlib').Path(sys.argv[1]))"
)


def test_migrated_schema_is_the_declared_one(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{_migrated(tmp_path)}")
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
    finally:
        engine.dispose()


def test_new_catalogue_is_what_an_older_one_is_brought_up_to(tmp_path: Path) -> None:
    """A new file is made at once, and a later revision must find in both the same, by the same names."""
    migrated, new = _migrated(tmp_path), tmp_path / "new.sqlite"
    SqlCatalog.open(new).close()
    with closing(sqlite3.connect(migrated)) as one, closing(sqlite3.connect(new)) as other:
        assert _tables(one) == _tables(other)
        assert _indexes(one) == _indexes(other)
        assert "CHECK (trust in" in str(_tables(other)["host_keys"])
        versions = [each.execute("SELECT version_num FROM alembic_version").fetchall() for each in (one, other)]
    assert versions == [[(HEAD_REVISION,)]] * 2


def _migrated(directory: Path) -> Path:
    """Make a catalogue of the first schema, and bring it up to date."""
    path = directory / "migrated.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    SqlCatalog.open(path).close()
    return path


def _tables(database: sqlite3.Connection) -> dict[str, list[object]]:
    """Return columns, foreign keys, and named constraints of each table."""
    found: dict[str, list[object]] = {}
    for name, sql in database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = database.execute("SELECT * FROM pragma_table_xinfo(?)", (name,)).fetchall()
        keys = database.execute('SELECT "from", "table", "to" FROM pragma_foreign_key_list(?)', (name,)).fetchall()
        # A check of one column stands behind it, or with those of the table; SQLite makes no difference.
        named = re.findall(r"CONSTRAINT \w+ (?:CHECK \(.*\)|[A-Z ]+\([^)]*\))", sql)
        found[name] = [columns, sorted(keys), sorted(named)]
    return found


def _indexes(database: sqlite3.Connection) -> dict[str, tuple[str, str]]:
    rows = database.execute("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index'").fetchall()
    return {name: (table, (sql or "").replace('"', "")) for name, table, sql in rows}


def test_revision_compared_at_opening_is_the_newest_script() -> None:
    assert head_revision() == HEAD_REVISION


def test_two_first_commands_at_once_are_fine(tmp_path: Path) -> None:
    path = str(tmp_path / "catalog.sqlite")
    running = [subprocess.Popen([sys.executable, "-c", FIRST_COMMAND, path]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]


def test_current_catalogue_is_opened_without_alembic(tmp_path: Path) -> None:
    path = str(tmp_path / "catalog.sqlite")
    SqlCatalog.open(Path(path)).close()
    probe = FIRST_COMMAND + "; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe, path], check=False).returncode == 0


def test_file_is_for_its_owner_only_and_durable(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    catalog = SqlCatalog.open(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with catalog._database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    catalog.close()


def test_catalogue_of_the_first_schema_is_brought_up_to_date_with_all_it_has(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO vms VALUES ('u', 'vm', NULL, '2026', 0, NULL)")
        connection.exec_driver_sql("INSERT INTO state_versions VALUES ('v', 'u', 'tpm', 1, 's', 1, '2026')")
        connection.exec_driver_sql("INSERT INTO pins VALUES ('v', 'point', 'p')")
    engine.dispose()
    with SqlCatalog.open(path) as catalog:
        assert catalog.pins("v") == ("p",)
        assert catalog.snapshots_of_vm("u") == ()


def test_points_that_were_known_before_signatures_are_marked_so(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    key = "8a" * 32
    documents = {"a": {}, "b": {"signature": {"key": key}}, "c": {"note": '"signature"'}}
    with engine.begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        connection.exec_driver_sql("INSERT INTO vms VALUES (?, 'win11', NULL, '2026', 0, NULL, 0)", (WIN11,))
        for place, (point, document) in enumerate(documents.items()):
            row = (point, WIN11, "2026-03-01T10:00:00.000000Z", json.dumps(document), place)
            connection.exec_driver_sql(
                "INSERT INTO points VALUES (?, ?, 'win11', 'full', NULL, ?, 'h', NULL, 0, '{}', '{}', ?, 1, ?)", row
            )
    engine.dispose()
    with SqlCatalog.open(path) as catalog:
        # One that an older release took over was signed all the same.
        assert {point.id: point.signed_by for point in catalog.points()} == {
            "a": "",
            "b": fingerprint_of(bytes.fromhex(key)),
            "c": "",
        }
        found = catalog.find_point("win11@latest")
        assert (found.id, found.is_vouched_for, found.trust) == ("c", True, Trust.UNSIGNED)
        assert not catalog.is_signed_by_trusted_host("a")


def test_point_whose_time_is_none_leaves_an_older_catalogue_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    good = ("2026-03-01T10:00:00.000000Z", "2026-03-01T10:00:00.000000+00:00", "1970-01-01T00:00:00.000000Z")
    bad = ("yesterday", "0001-01-01T00:00:00.000000+00:00", "9999-12-31T23:00:00.000000Z", "2026-03-01T10:00:00.000000")
    with engine.begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        connection.exec_driver_sql("INSERT INTO vms VALUES ('u', 'vm', NULL, '2026', 0, NULL, 0)")
        connection.exec_driver_sql("INSERT INTO state_versions VALUES ('v', 'u', 'tpm', 1, 's', 1, '2026', 0)")
        for number, created in enumerate((*good, *bad)):
            row = (f"p{number}", created)
            connection.exec_driver_sql(
                "INSERT INTO points VALUES (?, 'u', 'vm', 'full', NULL, ?, 'h', NULL, 1, '{}', '{}', '{}', NULL, 0)",
                row,
            )
            connection.exec_driver_sql("INSERT INTO pins VALUES ('v', 'point', ?)", row[:1])
    engine.dispose()
    with SqlCatalog.open(path) as catalog:
        left = tuple(f"p{number}" for number in range(len(good)))
        assert catalog.point_ids() == catalog.pins("v") == left
        assert [catalog.digest(point) for point in left] == [""] * len(left)


def test_newer_catalogue_is_refused_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    SqlCatalog.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(CatalogError, match="newer"):
        SqlCatalog.open(path)


def test_damaged_catalogue_is_named_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"this is not a database, and long enough to be looked at" * 100)
    with pytest.raises(CatalogError) as caught:
        SqlCatalog.open(path)
    assert caught.value.path == str(path)
    assert "--adopt" in caught.value.hint


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="not there"):
        SqlCatalog.open(tmp_path / "absent" / "catalog.sqlite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_refused_access_is_called_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionRefused):
        SqlCatalog.open(tmp_path / "catalog.sqlite")


def test_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    with SqlCatalog.open(tmp_path / "catalog.sqlite") as catalog:
        with pytest.raises(CatalogError):
            _delete_revision_and_fail(catalog)
        catalog.record_point(example_point("p1"))
    with SqlCatalog.open(tmp_path / "catalog.sqlite") as again:
        assert len(again.points()) == 1


def _delete_revision_and_fail(catalog: SqlCatalog) -> None:
    with catalog._database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM alembic_version")
        connection.exec_driver_sql("nonsense")


def test_signal_inside_of_a_statement_is_told_as_itself(tmp_path: Path) -> None:
    """SQLAlchemy takes what a signal's handler raises there for a failure of the statement (seen)."""

    class Interrupting(sqlalchemy.types.TypeDecorator[str]):
        impl = sqlalchemy.String
        cache_ok = True

        def process_bind_param(self, value: object, dialect: object) -> NoReturn:
            del value, dialect
            raise Interrupted("Interrupted by Ctrl-C")

    with closing(SqliteFile.open(tmp_path / "catalog.sqlite")) as database, pytest.raises(Interrupted):  # noqa: SIM117
        with database.reading() as connection:
            connection.execute(sqlalchemy.select(sqlalchemy.bindparam("x", "y", type_=Interrupting())))
