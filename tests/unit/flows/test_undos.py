"""Undos are done although the flow database fails: before it, or when it should record them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, cast

import pytest
from dbos import DBOS
from sqlalchemy.exc import OperationalError

from vmkeep.errors import RestorePending
from vmkeep.flows.plan import Plan
from vmkeep.flows.services import Services

_FULL = OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))


class _Nobody:
    @staticmethod
    def stop() -> None:
        return None


def _planned(monkeypatch: pytest.MonkeyPatch, record: Callable[[Callable[[], Any]], Any]) -> tuple[Plan, list[str]]:
    done: list[str] = []
    plan = Plan(cast("Services", _Nobody()), "operation")
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
