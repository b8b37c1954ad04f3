"""Whatever stands in the flow database: the steps of an operation are told, or an error of ours is."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from vmkeep.errors import NoSpace, VmkeepError
from vmkeep.flows.step_records import StepRecord, read_steps

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | _TEXTS,
    lambda each: (
        st.lists(each, max_size=3)
        | st.dictionaries(_TEXTS | st.sampled_from(["$error", "$fault", "code", "message", "hint", "misfits"]), each)
    ),
    max_leaves=8,
)
_OURS = st.just({"$error": NoSpace("/images is full", path="/images").as_dict(), "code": "no-space"})
_ERRORS = st.none() | st.binary(max_size=8) | st.integers(-(2**60), 2**60) | _TEXTS | (_JSON | _OURS).map(json.dumps)
_TIMES = st.none() | st.integers(-(2**62), 2**62) | st.floats() | _TEXTS


def _database(path: Path, rows: list[tuple[Any, ...]]) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE workflow_status (workflow_uuid)")
        database.execute("INSERT INTO workflow_status VALUES ('op')")
        database.execute(
            "CREATE TABLE operation_outputs (workflow_uuid, function_id, function_name, error, "
            "started_at_epoch_ms, completed_at_epoch_ms)"
        )
        database.executemany("INSERT INTO operation_outputs VALUES ('op', ?, ?, ?, ?, ?)", rows)


@settings(max_examples=examples(25), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9) | _TEXTS, st.none() | _TEXTS | st.binary(), _ERRORS, _TIMES, _TIMES)))
def test_rows_of_others_are_told_or_refused(rows: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "flows.sqlite"
        _database(path, rows)
        steps = read_steps(path, "op")
        assert steps is not None
        assert len(steps) == len(rows)
        assert all(isinstance(step, StepRecord) for step in steps)
        json.dumps([None if step.error is None else step.error.as_dict() for step in steps])
        assert read_steps(path, "another") is None


def test_error_of_a_step_is_told_as_it_was_and_a_file_that_is_no_database_by_name(tmp_path: Path) -> None:
    error = json.dumps({"$error": NoSpace("/images is full", path="/images").as_dict()})
    _database(tmp_path / "flows.sqlite", [(1, "undo_publish", error, 1_000, 2_500), (0, "publish", None, None, 5)])
    first, second = read_steps(tmp_path / "flows.sqlite", "op") or ()
    assert (first.name, first.undo, first.seconds, first.error) == ("publish", False, None, None)
    assert (second.name, second.undo, second.seconds) == ("publish", True, 1.5)
    assert isinstance(second.error, NoSpace)
    assert second.started == "1970-01-01T00:00:01.000Z"
    (tmp_path / "torn.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(VmkeepError, match=r"torn\.sqlite"):
        read_steps(tmp_path / "torn.sqlite", "op")
    assert read_steps(tmp_path / "none.sqlite", "op") is None
