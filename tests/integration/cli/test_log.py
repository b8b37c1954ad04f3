"""`vmkeep log`: what was done, newest last, with choices, results and errors."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.catalog.examples import WEB, WIN11, example_point, number
from tests.integration.cli.command_line import vmkeep
from vmkeep.catalog import OperationState, SqlCatalog
from vmkeep.config import load_settings
from vmkeep.errors import VmBusy
from vmkeep.locks import FileLock


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Six operations: a point of win11, one of it by UUID, a restore of its point to files, web twice, one running."""
    home = tmp_path / "home"
    home.mkdir()
    with SqlCatalog.open(load_settings(home=home, environ={}).catalog_path) as catalog:
        point = example_point("first")
        catalog.record_point(point)
        catalog.record_point(example_point("other", vm=WEB, vm_name="web"))
        wanted: list[tuple[str, str | None, dict[str, Any]]] = [
            ("point.take", "win11", {"full": True, "labels": {"why": "update"}, "exclude": []}),
            ("point.take", WIN11, {}),
            ("restore.files", None, {"point": point.id, "output": "/out"}),
            ("point.take", "web", {}),
            ("restore.vm", "web2", {"point": number("other"), "tpm": "new"}),
            ("point.take", "web", {}),
        ]
        for position, (kind, vm, request) in enumerate(wanted):
            operation = number(str(position))
            catalog.begin_operation(operation, kind, vm, "owner", request)
            time.sleep(0.002)
            if position == 3:
                error = VmBusy("somebody works on web", vm="web")
                catalog.move_operation(operation, "owner", OperationState.FAILED, error.as_dict())
            elif position != 5:
                catalog.move_operation(operation, "owner", OperationState.DONE)
    return home


def shown(home: Path, *arguments: str) -> list[dict[str, Any]]:
    answer = vmkeep(home, "log", "--json", *arguments)
    assert (answer.status, answer.err) == (0, "")
    operations: list[dict[str, Any]] = answer.document()["operations"]
    return operations


def test_all_operations_newest_last_with_what_was_chosen_and_how_they_ended(home: Path) -> None:
    operations = shown(home)
    assert [operation["id"] for operation in operations] == [number(str(position)) for position in range(6)]
    assert [operation["state"] for operation in operations] == ["done"] * 3 + ["failed", "done", "interrupted"]
    assert operations[0]["request"] == {"full": True, "labels": {"why": "update"}, "exclude": []}
    assert operations[3]["error"]["code"] == "vm-busy"
    assert 0.001 < operations[0]["seconds"] < 5
    assert (operations[5]["finished"], operations[5]["seconds"]) == (None, None)


def test_choices_are_shown_as_they_are_given_and_not_as_json(home: Path) -> None:
    first = vmkeep(home, "log").out.splitlines()[1]
    assert "full, labels.why=update" in first
    assert "{" not in first


def test_running_operation_is_running_as_long_as_its_process_lives(home: Path) -> None:
    with FileLock.try_acquire(home / "owners" / "owner.lock") or pytest.fail("not locked"):
        os.utime(home / "owners" / "owner.lock", (1, 1))
        assert shown(home)[-1]["state"] == "running"


@pytest.mark.parametrize(
    ("vm", "positions"), [("win11", [0, 1, 2]), (WIN11, [0, 1, 2]), ("web", [3, 4, 5]), ("web2", [4])]
)
def test_operations_of_one_vm_by_name_or_uuid_also_those_that_name_only_its_point(
    home: Path, vm: str, positions: list[int]
) -> None:
    assert [operation["id"] for operation in shown(home, vm)] == [number(str(position)) for position in positions]


def test_limit_keeps_the_last(home: Path) -> None:
    assert [operation["id"] for operation in shown(home, "--limit", "2")] == [number("4"), number("5")]
    assert [operation["id"] for operation in shown(home, "win11", "--limit", "1")] == [number("2")]
    assert vmkeep(home, "log", "--limit", "0", "--json").error()["code"] == "invalid-request"


def test_text_says_choices_and_errors(home: Path) -> None:
    answer = vmkeep(home, "log")
    lines = answer.out.splitlines()
    assert len(lines) == 7
    assert lines[1].endswith("full, labels.why=update")
    assert "exclude" not in lines[1]
    assert re.search(r" failed +[0-9.]+ +somebody works on web$", lines[4])


def test_unknown_vm_and_no_operations(home: Path, tmp_path: Path) -> None:
    assert vmkeep(home, "log", "nobody", "--json").error()["code"] == "vm-not-found"
    assert vmkeep(tmp_path / "new", "log").out == "no operations\n"
