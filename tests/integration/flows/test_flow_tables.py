"""The tables of a new flow database are those that DBOS makes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from dbos._sys_db import SystemDatabase

from vmkeep.flows.tables import has_nothing_to_note, make_flow_tables
from vmkeep.flows.values import FlowSerializer


def test_new_flow_database_is_what_dbos_makes_and_it_finds_nothing_left_to_do(tmp_path: Path) -> None:
    ours, its = tmp_path / "ours.sqlite", tmp_path / "its.sqlite"
    ours.touch()
    make_flow_tables(ours)
    made = _content(ours)
    assert made[1], "DBOS keeps its statements elsewhere now"
    for path in (ours, its):
        _let_dbos_migrate(path)
    assert made == _content(ours) == _content(its)


def test_flow_database_that_has_tables_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "flows.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE dbos_migrations (version INTEGER NOT NULL PRIMARY KEY)")
        database.execute("INSERT INTO dbos_migrations VALUES (3)")
        database.commit()
    before = _content(path)
    make_flow_tables(path)
    assert _content(path) == before


def test_flow_database_that_cannot_be_used_is_left_to_dbos(tmp_path: Path) -> None:
    make_flow_tables(tmp_path / "nowhere" / "flows.sqlite")
    broken = tmp_path / "flows.sqlite"
    broken.write_bytes(b"no database at all")
    make_flow_tables(broken)
    assert broken.read_bytes() == b"no database at all"


def test_launch_has_nothing_to_note_once_it_has_noted_this_version_in_tables_of_this_release(tmp_path: Path) -> None:
    path = tmp_path / "flows.sqlite"
    assert not has_nothing_to_note(path, "vmkeep", "1")
    path.write_bytes(b"no database at all")
    assert not has_nothing_to_note(path, "vmkeep", "1")
    path.unlink()
    _let_dbos_migrate(path)
    assert not has_nothing_to_note(path, "vmkeep", "1")
    _let_dbos_note(path, "1")
    assert has_nothing_to_note(path, "vmkeep", "1")
    assert not has_nothing_to_note(path, "vmkeep", "2")
    assert not has_nothing_to_note(path, "another", "1")
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE dbos_migrations SET version = version - 1")
        database.commit()
    assert not has_nothing_to_note(path, "vmkeep", "1")


def _let_dbos_note(path: Path, version: str) -> None:
    database = _database(path)
    database.create_application_version(version, "vmkeep")
    database.destroy()


def _let_dbos_migrate(path: Path) -> None:
    database = _database(path)
    database.run_migrations()
    database.destroy()


def _database(path: Path) -> SystemDatabase:
    return SystemDatabase.create(
        system_database_url=f"sqlite:///{path}",
        engine_kwargs={},
        engine=None,
        schema=None,
        serializer=FlowSerializer(),
        executor_id=None,
    )


def _content(path: Path) -> tuple[list[tuple[str, ...]], list[tuple[int]]]:
    with closing(sqlite3.connect(path)) as database:
        tables = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        return tables, database.execute("SELECT version FROM dbos_migrations").fetchall()
