"""Records of jobs that hold anything at all are told, and end no command with a fault."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.config import Settings, load_settings
from vmkeep.errors import CatalogDamaged
from vmkeep.flows.schedule import MOST_RUNS, read_runs, read_scheduled
from vmkeep.planning.schedule import Job

_RUN: dict[str, Any] = {
    "id": "a",
    "job": "backup",
    "started": "2026-11-30T02:30:00+00:00",
    "ended": "2026-11-30T02:31:00+00:00",
    "status": 0,
    "code": "",
    "message": "",
    "vms": ["a"],
    "failures": [{"vm": "a", "code": "b", "message": "c"}],
    "harmed": [],
    "problems": None,
    "untold": [{"way": "ping", "why": "no"}],
}
_SCHEDULED = {"calendar": "daily", "delay_seconds": 900, "gap_seconds": 86400, "since": "2026-11-30T02:30:00+00:00"}
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.just(_RUN["started"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*_RUN, *_SCHEDULED]), inner, max_size=3)
    ),
    max_leaves=8,
)


def _altered(value: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return good values of which one field is another, and others."""
    one = st.tuples(st.sampled_from(list(value)), _VALUES).map(lambda field: {**value, field[0]: field[1]})
    return one | _VALUES


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("place") / "home"
    (home / "schedule").mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    return load_settings(home=home, environ={})


@given(st.lists(_altered(_RUN), max_size=3), _altered(_SCHEDULED), st.booleans())
def test_record_that_holds_anything_is_read_or_called_damaged(
    settings: Settings, runs: list[Any], scheduled: Any, bare: bool
) -> None:
    document = runs if bare else {"runs": runs}
    (settings.schedule_dir / "backup.runs.json").write_text(json.dumps(document))
    (settings.schedule_dir / "backup.json").write_text(json.dumps(scheduled))
    with suppress(CatalogDamaged):
        found = read_runs(settings, Job.BACKUP)
        assert len(found) <= MOST_RUNS
        assert all((run.ended is None) == (run.status is None) for run in found)
    with suppress(CatalogDamaged):
        read = read_scheduled(settings, Job.BACKUP)
        assert read is not None
        assert read.patience_seconds is None or isinstance(read.patience_seconds, int)
