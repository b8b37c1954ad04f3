"""The flow database holds the last flows that are over, and all that are not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vmkeep.config import load_settings
from vmkeep.flows.engine import Engine
from vmkeep.flows.finished import KEPT, forget_finished_flows
from vmkeep.flows.installation import Premises
from vmkeep.flows.requests import THIS_HOST
from vmkeep.host.local import LocalHost

FLOWS = 1000


@pytest.fixture
def flows(tmp_path: Path) -> Iterator[Path]:
    """The flow database of an engine that is at work."""
    with Premises(load_settings(home=str(tmp_path), environ={})) as premises:
        premises.ensure()
        with Engine(premises, {THIS_HOST: LocalHost(premises.settings)}):
            yield premises.settings.flows_path


def fill(path: Path, *, status: str, names: list[str], begin: int) -> None:
    """Put in flows with one step each, which ended one after the other."""
    with closing(sqlite3.connect(path)) as database, database:
        for number, name in enumerate(names):
            row = {"workflow_uuid": name, "status": status, "updated_at": begin + number, "created_at": begin + number}
            put(database, "workflow_status", row)
            put(database, "operation_outputs", {"workflow_uuid": name, "function_id": 0, "function_name": "step"})


def put(database: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    columns = database.execute(f"PRAGMA table_info({table})").fetchall()
    needed = {
        name: 0 if "INT" in kind else "" for _, name, kind, must, default, _ in columns if must and default is None
    }
    values = {**needed, **row}
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    database.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))  # noqa: S608


def stored(path: Path, table: str) -> set[str]:
    with closing(sqlite3.connect(path)) as database:
        return {row[0] for row in database.execute(f"SELECT workflow_uuid FROM {table}")}  # noqa: S608


def test_flows_that_are_over_go_but_for_the_last_and_all_that_are_not_over_stay(flows: Path) -> None:
    over = [f"over-{number:04}" for number in range(FLOWS)]
    fill(flows, status="SUCCESS", names=over[::2], begin=1_000)
    fill(flows, status="ERROR", names=over[1::2], begin=1_000)
    fill(flows, status="PENDING", names=["under way"], begin=1)
    assert forget_finished_flows(flows) == FLOWS - KEPT
    kept = stored(flows, "workflow_status")
    assert kept == {*over[-KEPT:], "under way"} == stored(flows, "operation_outputs")
    assert forget_finished_flows(flows) == 0


def test_few_flows_stay_and_a_database_that_is_not_there_fails_nothing(flows: Path, tmp_path: Path) -> None:
    names = [f"over-{number}" for number in range(KEPT + 10)]
    fill(flows, status="SUCCESS", names=names, begin=1_000)
    assert forget_finished_flows(flows) == 0
    assert stored(flows, "workflow_status") == set(names)
    assert forget_finished_flows(tmp_path / "nothing.sqlite") == 0


def test_file_does_not_grow_without_end(flows: Path) -> None:
    sizes = []
    for round_ in range(4):
        fill(flows, status="SUCCESS", names=[f"{round_}-{number}" for number in range(FLOWS)], begin=round_ * FLOWS)
        forget_finished_flows(flows)
        with closing(sqlite3.connect(flows)) as database:
            sizes.append(database.execute("PRAGMA page_count").fetchone()[0])
    assert sizes[-1] <= sizes[0] * 1.3
