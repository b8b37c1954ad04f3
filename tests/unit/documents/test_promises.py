"""SECURITY.md promises nothing without a test that plays it: each promise of the table names tests, and they exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
TEXT = (PROJECT / "SECURITY.md").read_text(encoding="utf-8")
ATTACKERS = TEXT.partition("\n## Who can do what\n")[2].partition("\n#")[0]
PROMISES = TEXT.partition("\n### Promises, and the tests that play them\n")[2].partition("\n#")[0]
_ID = re.compile(r"\b[A-Z][0-9]{1,2}\b")
_NAMED = re.compile(r"`([^`]+)`")


def rows(table: str) -> list[list[str]]:
    """Return the cells of a table's rows, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


PLAYED = {row[0]: _NAMED.findall(row[2]) for row in rows(PROMISES)}


@cache
def functions_of(path: Path) -> frozenset[str]:
    """Return the names of the tests in a file, which is not imported for it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")
    )


def test_every_attacker_has_a_row_of_what_he_controls_can_do_and_never_reaches() -> None:
    attackers = rows(ATTACKERS)
    assert len(attackers) >= 6
    assert all(len(row) == 4 and all(row) for row in attackers)
    assert all(_ID.search(row[3]) for row in attackers)


def test_promises_are_made_to_somebody_and_every_one_that_is_named_is_there() -> None:
    named = [promise for row in rows(ATTACKERS) for promise in _ID.findall(row[3])]
    assert sorted(named) == sorted(set(named)), "a promise is named twice"
    assert sorted(named) == sorted(PLAYED)
    assert len(PLAYED) == len(rows(PROMISES))


@pytest.mark.parametrize("promise", PLAYED)
def test_promise_names_tests_that_exist(promise: str) -> None:
    assert PLAYED[promise], "no test plays it"
    file = ""
    for named in PLAYED[promise]:
        if named.endswith(".py"):
            file = named
            assert (PROJECT / "tests" / file).is_file(), file
        else:
            assert named in functions_of(PROJECT / "tests" / file), f"{file}::{named}"
    assert not PLAYED[promise][-1].endswith(".py"), "a file is named, and no test in it"
