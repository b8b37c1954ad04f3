"""Tables on a terminal and in a pipe: nothing folds, the least important is cut, and a program gets all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.catalog.examples import WEB, WIN11, example_point, number
from tests.integration.cli.command_line import vmkeep
from tests.integration.cli.terminal import on_terminal
from vmkeep.catalog import OperationState, SqlCatalog
from vmkeep.cli.tables import cells
from vmkeep.config import load_settings
from vmkeep.errors import VmBusy

LONG = "web-" * 24 + "prod"  # 100 characters
WIDE = "計算機" * 8
MARKUP = "[red]x[/red]\x1b[31m"
LABEL = "before the update of everything, and then some more words"
REASON = "somebody works on it, and has been doing so for quite some time: wait for that to end"
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
UUIDS = {LONG: WEB, WIDE: WIN11, MARKUP: "6695eb01-f6a4-8304-79aa-97f2502e193f"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Points and operations of VMs with names that break tables."""
    home = tmp_path_factory.mktemp("home")
    with SqlCatalog.open(load_settings(home=home, environ={}).catalog_path) as catalog:
        for minute, (name, uuid) in enumerate(UUIDS.items()):
            labels = {"why": LABEL, "who": MARKUP}
            catalog.record_point(example_point(f"p{minute}", vm=uuid, vm_name=name, minute=minute, labels=labels))
            operation = number(str(minute))
            catalog.begin_operation(operation, "point.take", name, "owner", {"labels": labels})
            catalog.move_operation(operation, "owner", OperationState.FAILED, VmBusy(REASON).as_dict())
    return home


@pytest.mark.parametrize("columns", [80, 200])
def test_points_on_a_terminal_keep_ids_and_times_whole_in_lines_that_fit(home: Path, columns: int) -> None:
    head, *lines = on_terminal(home, "points", columns=columns)
    assert head.startswith("\x1b[1mpoint ")
    assert len(lines) == 3
    for minute, line in enumerate(lines):
        assert line.startswith(f"{number(f'p{minute}')[:8]}  ")
        assert TIME.search(line)
        assert cells(line) <= columns
        assert line == line.rstrip()
        assert "\x1b" not in line
        assert "…" in line  # of the long name or of the labels
    assert ("read" in head) == (columns == 200)


def test_points_in_a_pipe_are_whole_and_no_line_ends_in_blanks(home: Path) -> None:
    answer = vmkeep(home, "points")
    lines = answer.out.splitlines()
    assert len(lines) == 4
    assert lines[1].split("  ")[1] == LONG
    assert all(line.endswith(f"who=[red]x[/red]\\x1b[31m, why={LABEL}") for line in lines[1:])
    assert {cells(line[: re.search(TIME, line).start()]) for line in lines[1:]} == {8 + 2 + 100 + 2 + 6}  # type: ignore[union-attr]
    for arguments in (["points"], ["log"], ["point", "show", number("p0")]):
        out = vmkeep(home, *arguments).out
        assert not [line for line in out.splitlines() if line != line.rstrip()]
        assert "…" not in out


@pytest.mark.parametrize("columns", [80, 200])
def test_log_on_a_terminal_says_whole_sentences_and_keeps_times(home: Path, columns: int) -> None:
    lines = on_terminal(home, "log", columns=columns)
    assert all(cells(line) <= columns for line in lines[1:])
    assert sum(bool(TIME.match(line)) for line in lines) == 3
    assert " ".join(" ".join(lines).split()).count(REASON) == 3


def test_facts_on_a_terminal_are_never_cut(home: Path) -> None:
    lines = on_terminal(home, "point", "show", number("p0"), columns=80)
    assert f"VM          {LONG} ({WEB})" in lines
    assert not [line for line in lines if "…" in line]


def test_a_terminal_that_cannot_do_bold_gets_plain_text(home: Path) -> None:
    assert on_terminal(home, "points", columns=80, term="dumb")[0].startswith("point ")


def test_a_terminal_of_no_width_is_taken_for_one_of_eighty(home: Path) -> None:
    assert on_terminal(home, "points", columns=0) == on_terminal(home, "points", columns=80)
