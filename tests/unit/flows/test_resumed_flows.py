"""A flow that was taken up again comes to an end for who waits, although its database cannot say so."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from vmkeep.config import load_settings
from vmkeep.errors import GivenUp, HostFileMissing
from vmkeep.flows import recovery as recovery_module
from vmkeep.flows.engine import Engine
from vmkeep.flows.installation import Premises
from vmkeep.flows.plan import Run
from vmkeep.flows.requests import THIS_HOST
from vmkeep.host.local import LocalHost


class _Handle:
    """What DBOS gives for a resumed flow: states one after the other, the last one for ever."""

    def __init__(self, states: Sequence[str], result: object = None) -> None:
        self._states = list(states)
        self._result = result

    def get_status(self) -> Any:
        return SimpleNamespace(status=self._states.pop(0) if len(self._states) > 1 else self._states[0])

    def get_result(self) -> object:
        return self._result


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(recovery_module, "_RESULT_SECONDS", 0.0)
    for name in ("_RECORDING_SECONDS", "_TAKING_UP_SECONDS"):
        monkeypatch.setattr(recovery_module, name, 0.3)
    settings = load_settings(home="/nowhere", environ={})
    return Engine(Premises(settings), {THIS_HOST: LocalHost(settings)})


def test_end_that_is_recorded_is_taken_from_the_record(engine: Engine) -> None:
    engine._runs["flow"] = Run(ended=True, result="of the process")
    assert engine._recovery._result("flow", _Handle(["ENQUEUED", "PENDING", "SUCCESS"], "recorded")) == "recorded"


def test_end_that_could_not_be_recorded_is_taken_from_the_run(engine: Engine) -> None:
    engine._runs["flow"] = Run(ended=True, result="of the process")
    assert engine._recovery._result("flow", _Handle(["PENDING"])) == "of the process"
    engine._runs["flow"] = Run(ended=True, error=HostFileMissing("the directory is gone"))
    with pytest.raises(HostFileMissing):
        engine._recovery._result("flow", _Handle(["PENDING"]))


def test_flow_that_was_taken_up_and_never_begun_is_left_for_the_next_command(engine: Engine) -> None:
    with pytest.raises(GivenUp) as caught:
        engine._recovery._result("flow", _Handle(["ENQUEUED", "PENDING"]))
    assert caught.value.error.code == "store-error"
