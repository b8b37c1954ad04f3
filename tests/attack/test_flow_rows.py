"""Rows of the flow database that vmkeep has not written: pickle runs programs when it is read, so none is ever read."""

from __future__ import annotations

import base64
import pickle
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dbos import DBOS, _serialization

from tests.attack.conftest import command
from tests.integration.cli.test_doctor_of_the_installation import DEAD, premises, take
from vmkeep.catalog import OperationState
from vmkeep.errors import FlowsForeign, StoreError
from vmkeep.flows.engine import Engine
from vmkeep.flows.requests import THIS_HOST
from vmkeep.flows.values import FlowSerializer, refuse_pickle
from vmkeep.host.local import LocalHost

FORGED = "f" * 32
PICKLE = "py_pickle"


class Program:
    """What makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))

    def __str__(self) -> str:
        return base64.b64encode(pickle.dumps(self)).decode()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose flow database DBOS has made."""
    home = tmp_path / "home"
    with premises(home) as place:
        place.initialise(str(tmp_path / "repository"))
        take(place, 1)
        with Engine(place, {THIS_HOST: LocalHost(place.settings)}):
            pass
    return home


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "a program ran"


def put(home: Path, status: str, program: object, *, serialization: str = PICKLE, output: object = None) -> None:
    """Write a flow of a dead process, as whoever may write the file can."""
    with closing(sqlite3.connect(home / "flows.sqlite")) as flows, flows:
        flows.execute(
            "INSERT INTO workflow_status (workflow_uuid, status, name, executor_id, application_version, created_at, "
            "updated_at, recovery_attempts, priority, inputs, output, serialization) "
            "VALUES (?, ?, 'restore.files', ?, '1', 1, 1, 1, 0, ?, ?, ?)",
            (FORGED, status, DEAD, str(program), None if output is None else str(output), serialization),
        )


@pytest.mark.parametrize("status", ["PENDING", "ENQUEUED", "DELAYED"])
def test_pickle_in_a_flow_under_way_is_refused_and_named(
    home: Path, mark: Path, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(home, status, Program(mark))
    with premises(home) as place:
        (point,) = place.catalog.point_ids()
    ended, _, error = command(home, capsys, "point", "delete", point, "--yes")
    assert not mark.exists()
    assert (ended, error["code"]) == (28, "flows-foreign")
    assert FORGED in error["message"]
    assert f"mv {home}/flows.sqlite* {home}/damaged/" in error["hint"]


def test_pickle_in_a_step_of_a_flow_under_way_is_refused(home: Path, mark: Path) -> None:
    put(home, "PENDING", '{"args":{"$tuple":[]},"kwargs":{}}', serialization=FlowSerializer().name())
    with closing(sqlite3.connect(home / "flows.sqlite")) as flows, flows:
        flows.execute(
            "INSERT INTO operation_outputs (workflow_uuid, function_id, function_name, output, serialization) "
            "VALUES (?, 1, 'step', ?, ?)",
            (FORGED, str(Program(mark)), PICKLE),
        )
    with (
        premises(home) as place,
        pytest.raises(FlowsForeign, match=FORGED),
        Engine(place, {THIS_HOST: LocalHost(place.settings)}),
    ):
        pass
    assert not mark.exists()


def test_doctor_tells_it_and_its_remedy_mends_it(home: Path, mark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(home, "SUCCESS", Program(mark), output=Program(mark))
    (told,) = findings(home, capsys)
    assert FORGED in told["message"]
    subprocess.run(["/bin/sh", "-c", told["remedy"].rpartition("no vmkeep runs: ")[2]], check=True)
    assert findings(home, capsys) == []
    assert command(home, capsys, "doctor", "--fix")[0] == 37  # there is no libvirt
    assert (home / "flows.sqlite").exists()
    assert not mark.exists()


def findings(home: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    _, document, _ = command(home, capsys, "doctor")
    return [finding for finding in document["doctor"]["findings"] if finding["code"] == "flows-unusable"]


def test_pickle_in_a_flow_that_ended_is_not_read(home: Path, mark: Path) -> None:
    """Looking through all rows that ever were would take longer than a command: these are never made values of."""
    put(home, "SUCCESS", Program(mark), output=Program(mark))
    with premises(home) as place:
        place.catalog.begin_operation(FORGED, "restore.files", None, DEAD, {})
        with Engine(place, {THIS_HOST: LocalHost(place.settings)}):  # it asks for the flow of the operation
            assert place.catalog.operation(FORGED).state is OperationState.DONE
    assert not mark.exists()


def test_pickle_that_comes_while_the_engine_runs_is_not_read(home: Path, mark: Path) -> None:
    with premises(home) as place, Engine(place, {THIS_HOST: LocalHost(place.settings)}):
        put(home, "SUCCESS", Program(mark), output=Program(mark))
        status = DBOS.get_workflow_status(FORGED)
        assert status is not None
        assert status.output == str(Program(mark))
        with pytest.raises(StoreError, match="pickle"):
            DBOS.retrieve_workflow(FORGED).get_result()
    assert not mark.exists()


def test_dbos_that_would_unpickle_all_the_same_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of DBOS that is built otherwise must not turn the protection off unseen."""
    refuse_pickle()

    def unpickles(*_: object) -> None:
        return None

    monkeypatch.setattr(_serialization, "deserialize_value", unpickles)
    with pytest.raises(AssertionError, match="pickle"):
        refuse_pickle()


def test_flows_of_ours_are_taken_up_as_before(home: Path) -> None:
    put(home, "PENDING", '{"args":{"$tuple":[]},"kwargs":{}}', serialization=FlowSerializer().name())
    with premises(home) as place, Engine(place, {THIS_HOST: LocalHost(place.settings)}) as engine:
        assert any(FORGED in sentence for sentence in engine.recovered)
