"""Undos are done although the flow database fails: before it, or when it should record them."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from dbos import DBOS
from sqlalchemy.exc import OperationalError

from vmkeep.catalog import MemoryCatalog
from vmkeep.errors import (
    Cancelled,
    HypervisorHangs,
    HypervisorUnavailable,
    NoSpace,
    RestorePending,
    UndoStopped,
    VmkeepError,
)
from vmkeep.flows import plan as plan_module
from vmkeep.flows import services as services_module
from vmkeep.flows.plan import Plan
from vmkeep.flows.services import Services, stoppable
from vmkeep.planning.retention import KeepRule

_FULL = OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))


def _services() -> Services:
    rule = KeepRule()
    return Services({}, "this", MemoryCatalog(), _nothing, _nothing, lambda _: None, 1.0, lambda: rule)  # type: ignore[arg-type]  # no repository is asked for


def _nothing() -> None:
    return None


def _planned(
    monkeypatch: pytest.MonkeyPatch, record: Callable[[Callable[[], Any]], Any], *, undos_stop: bool = False
) -> tuple[Plan, list[str]]:
    done: list[str] = []
    plan = Plan(_services(), "operation", undos_stop=undos_stop)
    monkeypatch.setattr(DBOS, "run_step", lambda _options, function, *args: function(*args))
    plan.step(lambda: "first", undo=done.append)
    plan.step(lambda: "second", undo=done.append)
    monkeypatch.setattr(DBOS, "run_step", lambda _options, function: record(function))
    return plan, done


def _fails_before(_function: Callable[[], Any]) -> Any:
    raise _FULL


def _fails_after(function: Callable[[], Any]) -> Any:
    function()
    raise _FULL


@pytest.mark.parametrize("record", [_fails_before, _fails_after])
def test_every_undo_is_done_once_in_reverse(
    monkeypatch: pytest.MonkeyPatch, record: Callable[[Callable[[], Any]], Any]
) -> None:
    plan, done = _planned(monkeypatch, record)
    cause = ValueError("why")
    assert plan.undo_all(cause) is None
    assert done == ["second", "first"]
    assert getattr(cause, "__notes__", []) == []


def test_step_that_could_not_be_recorded_is_undone_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, done = _planned(monkeypatch, _fails_after)
    with pytest.raises(OperationalError):
        plan.step(lambda: "third", undo=done.append)
    plan.undo_all(ValueError("why"))
    assert done == ["third", "second", "first"]


def test_step_that_was_not_run_is_not_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, done = _planned(monkeypatch, _fails_before)
    with pytest.raises(OperationalError):
        plan.step(lambda: "third", undo=done.append)
    plan.undo_all(ValueError("why"))
    assert done == ["second", "first"]


@pytest.mark.parametrize("record", [_fails_before, lambda function: function()])
def test_undo_that_fails_itself_is_told(
    monkeypatch: pytest.MonkeyPatch, record: Callable[[Callable[[], Any]], Any]
) -> None:
    plan, done = _planned(monkeypatch, lambda function: function())
    plan.step(lambda: "third", undo=_refuse)
    monkeypatch.setattr(DBOS, "run_step", lambda _options, function: record(function))
    cause = ValueError("why")
    assert isinstance(plan.undo_all(cause), RestorePending)
    assert done == ["second", "first"]


def _refuse(_: object) -> None:
    raise RestorePending("it is kept from starting")


def _full(_: object) -> None:
    raise NoSpace("/images is full", path="/images", hint="Make room.")


@pytest.mark.parametrize("record", [_fails_before, lambda function: function()])
def test_undos_that_build_upon_each_other_end_with_the_one_that_fails(
    monkeypatch: pytest.MonkeyPatch, record: Callable[[Callable[[], Any]], Any]
) -> None:
    plan, done = _planned(monkeypatch, lambda function: function(), undos_stop=True)
    plan.step(lambda: "third", undo=_full)
    plan.step(lambda: "fourth", undo=done.append)
    monkeypatch.setattr(DBOS, "run_step", lambda _options, function: record(function))
    with pytest.raises(UndoStopped) as stopped:
        plan.undo_all(NoSpace("/home is full", vm="win11"))
    assert done == ["fourth"]
    error = stopped.value.error
    assert (error.vm, error.path, len(error.left)) == ("win11", "/images", 3)
    assert "/home is full" in error.message
    assert "/images is full" in error.message
    assert error.hint.startswith("Make room. ")
    assert "`vmkeep ops resume operation`" in error.hint
    assert VmkeepError.from_dict(error.as_dict()).as_dict() == error.as_dict()


def test_undos_wait_for_a_libvirtd_that_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_RETURN_SECONDS", 5.0)
    monkeypatch.setattr(plan_module, "_RETURN_POLL_SECONDS", 0.0)
    plan, done = _planned(monkeypatch, lambda function: function(), undos_stop=True)
    answers: list[VmkeepError] = [HypervisorUnavailable("client socket is closed"), HypervisorUnavailable("refused")]

    def put_back(_: object) -> None:
        if answers:
            raise answers.pop()
        done.append("third")

    plan.step(lambda: "third", undo=put_back)
    plan.undo_all(HypervisorUnavailable("Broken pipe"))
    assert done == ["third", "second", "first"]


@pytest.mark.parametrize("error", [HypervisorUnavailable("gone"), HypervisorHangs("hangs"), NoSpace("full")])
def test_undos_do_not_wait_for_ever_and_not_for_what_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch, error: VmkeepError
) -> None:
    monkeypatch.setattr(plan_module, "_RETURN_SECONDS", 0.0)
    plan, done = _planned(monkeypatch, lambda function: function(), undos_stop=True)
    tried: list[object] = []

    def put_back(result: object) -> None:
        tried.append(result)
        raise error

    plan.step(lambda: "third", undo=put_back)
    with pytest.raises(UndoStopped):
        plan.undo_all(_FULL)
    assert (tried, done) == (["third"], [])


def test_stop_is_recorded_as_the_failure_of_the_step_that_was_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, done = _planned(monkeypatch, lambda function: function())
    recorded: list[str] = []

    def record(options: dict[str, str], function: Callable[[], Any]) -> Any:
        recorded.append(options["name"])
        return function()

    monkeypatch.setattr(DBOS, "run_step", record)
    plan.services = dataclasses.replace(plan.services, stop=_stop)
    with pytest.raises(Cancelled):
        plan.step(lambda: "third", undo=done.append)
    assert recorded == ["<lambda>"]
    plan.undo_all(ValueError("why"))
    assert done == ["second", "first"]


def _stop() -> None:
    raise Cancelled("stopped")


def test_operation_that_another_process_asked_to_stop_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services_module, "_CANCEL_SECONDS", 0.0)
    services = _services()
    services.catalog.begin_operation("mine", "tpm.add", "win11", "me", {})
    mine, other = stoppable(services, "mine"), stoppable(services, "other")
    mine.stop()
    assert services.catalog.request_cancel("mine")
    with pytest.raises(Cancelled):
        mine.stop()
    other.stop()
