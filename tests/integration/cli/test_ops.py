"""`vmkeep ops` of operations that run, were killed, or have ended; those that wait for a person are in flows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.catalog.examples import number
from tests.integration.cli.command_line import vmkeep
from vmkeep.catalog import MemoryCatalog, Operation, OperationState, SqlCatalog
from vmkeep.config import load_settings
from vmkeep.errors import OperationNotFound, RestorePending
from vmkeep.flows.show_operations import find_operation, list_operations, shown_operation
from vmkeep.host.tasks.unfinished import Unfinished
from vmkeep.locks import FileLock

_OWNER = "0f" * 16
_KINDS = {"point.take": "undo", "restore.in_place": "finish", "tpm.add": "finish", "point.delete": "finish"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Operations of one owner that have not ended, one of each kind, and one that was done."""
    home = tmp_path / "home"
    home.mkdir()
    vmkeep(home, "init")
    with SqlCatalog.open(load_settings(home=home, environ={}).catalog_path) as catalog:
        for kind in _KINDS:
            catalog.begin_operation(number(kind), kind, "win11", _OWNER, {"vm": "win11", "host": "this"})
        catalog.begin_operation(number("done"), "point.take", "web", "another", {"vm": "web"})
        catalog.move_operation(number("done"), "another", OperationState.DONE)
        catalog.report_progress(number("point.take"), "copy", 1024, 4096)
    return home


@contextmanager
def living(home: Path) -> Iterator[None]:
    """Let a process carry them out: this one."""
    with FileLock.try_acquire(home / "owners" / f"{_OWNER}.lock", f"(process {os.getpid()})") or pytest.fail("held"):
        yield


def listed(home: Path, *words: str) -> list[dict[str, Any]]:
    operations: list[dict[str, Any]] = vmkeep(home, "ops", "list", "--json", *words).document()["operations"]
    return operations


def test_what_runs_is_told_with_its_process_and_how_far_it_is(home: Path) -> None:
    with living(home):
        assert {each["state"] for each in listed(home)} == {"running"}
        assert {each["process"] for each in listed(home)} == {os.getpid()}
        point = next(each for each in listed(home) if each["kind"] == "point.take")
        assert (point["stage"], point["done_bytes"], point["total_bytes"]) == ("copy", 1024, 4096)
        assert f"copy 1.0 KiB of 4.0 KiB in process {os.getpid()}" in vmkeep(home, "ops", "list").out
        assert vmkeep(home, "ops", "resume", point["id"], "--json").error()["code"] == "operation-runs"
        change = number("snapshot.change")
        with SqlCatalog.open(load_settings(home=home, environ={}).catalog_path) as catalog:
            catalog.begin_operation(change, "snapshot.change", "win11", _OWNER, {"vm": "win11", "host": "this"})
        assert vmkeep(home, "ops", "cancel", change, "--yes", "--json").error()["code"] == "invalid-request"
        stopped = vmkeep(home, "ops", "cancel", point["id"], "--yes", "--wait", "0", "--json")
        assert (stopped.status, stopped.error()["code"]) == (11, "operation-runs")
        assert "asked to stop" in vmkeep(home, "ops", "show", point["id"]).out
    assert [each["state"] for each in listed(home, "--vm", "web")] == []
    assert [each["state"] for each in listed(home, "--vm", "web", "--all")] == ["done"]
    assert vmkeep(home, "ops", "list", "--vm", "nobody", "--json").error()["code"] == "vm-not-found"


def test_what_was_killed_says_what_becomes_of_it_and_is_carried_on(home: Path) -> None:
    assert {each["kind"]: each["next"] for each in listed(home)} == _KINDS
    killed = number("tpm.add")
    assert "the next command will finish it" in vmkeep(home, "ops", "list").out
    refused = vmkeep(home, "ops", "cancel", killed, "--yes", "--json").error()
    assert f"`vmkeep ops resume {killed}`" in refused["hint"]
    ended = vmkeep(home, "ops", "resume", killed, "--json").document()["operation"]
    assert (ended["state"], ended["error"]["code"]) == ("failed", "interrupted")  # its flow had not begun
    assert listed(home) == []
    again = vmkeep(home, "ops", "resume", killed, "--json")
    assert (again.status, again.error()["code"]) == (2, "invalid-request")
    assert vmkeep(home, "ops", "show", "no such", "--json").error()["code"] == "operation-not-found"


def _catalog(*ids: str) -> MemoryCatalog:
    catalog = MemoryCatalog()
    for operation in ids:
        catalog.begin_operation(operation, "restore.in_place", "win11", _OWNER, {})
    return catalog


def test_operation_is_found_by_the_beginning_of_its_id_alone() -> None:
    catalog = _catalog("aabbccdd", "aabbccee", "ffff0000")
    assert find_operation(catalog, "FFFF").id == "ffff0000"
    assert find_operation(catalog, "aabbccdd").id == "aabbccdd"
    for text in ("aabbcc", "fff", "", "0000", "aabbccdd0"):
        with pytest.raises(OperationNotFound):
            find_operation(catalog, text)


def test_restore_whose_journal_lies_there_still_is_open_although_it_has_ended(tmp_path: Path) -> None:
    settings = load_settings(home=str(tmp_path), environ={})
    catalog = _catalog("aabbccdd", "eeff0011")
    for operation in ("aabbccdd", "eeff0011"):
        catalog.move_operation(operation, _OWNER, OperationState.FAILED, RestorePending("it is not whole").as_dict())
    unfinished = Unfinished(("aabbccdd",), ())
    (shown,) = list_operations(settings, catalog, unfinished, None, ended=0)
    assert (shown.operation.id, shown.state, shown.process) == ("aabbccdd", "restore-pending", None)
    states = [each.state for each in list_operations(settings, catalog, unfinished, "win11", ended=5)]
    assert states == ["restore-pending", "failed"]


def test_operation_that_waits_for_a_person_has_no_process(tmp_path: Path) -> None:
    waiting = Operation("x" * 32, "tpm.add", "win11", _OWNER, OperationState.NEEDS_OPERATOR, "2026", "2026")
    shown = shown_operation(load_settings(home=str(tmp_path), environ={}), waiting)
    assert (shown.state, shown.process, shown.afterwards) == ("needs-operator", None, None)
