"""An editor that is a real program: what it wrote is taken, and never lost when it is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmkeep.cli.console import Console
from vmkeep.cli.editing import edit_text
from vmkeep.config import editor_command
from vmkeep.errors import HostFileMissing, InvalidRequest, MomentInvalid

LIMIT = 1000


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files that are edited lie."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.delenv("VISUAL", raising=False)
    return place


@pytest.fixture
def console() -> Console:
    return Console(json_wanted=True)


def refuse(text: str) -> str:
    raise MomentInvalid(f"refused: {text}")


def kept(raised: pytest.ExceptionInfo[BaseException]) -> Path:
    (note,) = raised.value.__notes__
    return Path(note.removeprefix("what was typed is kept in "))


def test_what_the_editor_wrote_is_taken_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, console: Console
) -> None:
    monkeypatch.setenv("EDITOR", "sed -i 's/n old text/ new text/'")
    assert edit_text("an old text\n", "x.xml", str.upper, console, limit_bytes=LIMIT) == "A NEW TEXT\n"
    assert list(temporary.iterdir()) == []


def test_a_text_that_comes_back_as_it_was_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, console: Console
) -> None:
    monkeypatch.setenv("EDITOR", "true")
    assert edit_text("text", "x.xml", refuse, console, limit_bytes=LIMIT) is None
    assert list(temporary.iterdir()) == []


def test_nobody_else_can_read_what_is_edited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, console: Console) -> None:
    script = tmp_path / "editor"
    script.write_text(f'#!/bin/sh\nstat -c %a "$1" "$(dirname "$1")" > {tmp_path}/modes\n')
    script.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(script))
    edit_text("secret", "x.xml", refuse, console, limit_bytes=LIMIT)
    assert (tmp_path / "modes").read_text().split() == ["600", "700"]


def test_a_refused_text_is_kept_and_the_error_says_where(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, console: Console
) -> None:
    monkeypatch.setenv("EDITOR", "sed -i s/old/new/")
    with pytest.raises(MomentInvalid) as raised:
        edit_text("old", "x.xml", refuse, console, limit_bytes=LIMIT)
    assert kept(raised).read_text() == "new"
    assert kept(raised).is_relative_to(temporary)


@pytest.mark.parametrize(
    ("editor", "typed"),
    [
        ("sh -c 'echo typed > $0; exit 3'", "typed\n"),
        ("sh -c 'head -c 2000 /dev/zero > $0'", "\0" * 2000),
        ("sh -c 'printf \"\\377\" > $0'", "\udcff"),
    ],
)
def test_what_was_typed_into_an_editor_that_failed_is_kept(
    monkeypatch: pytest.MonkeyPatch, console: Console, editor: str, typed: str
) -> None:
    monkeypatch.setenv("EDITOR", editor)
    with pytest.raises(InvalidRequest) as raised:
        edit_text("text", "x.xml", refuse, console, limit_bytes=LIMIT)
    assert kept(raised).read_bytes() == os.fsencode(typed)


def test_an_editor_that_is_not_there_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, console: Console
) -> None:
    monkeypatch.setenv("EDITOR", "/no/such/editor")
    with pytest.raises(HostFileMissing, match="/no/such/editor"):
        edit_text("text", "x.xml", refuse, console, limit_bytes=LIMIT)
    assert list(temporary.iterdir()) == []


def test_the_editor_is_visual_then_editor_then_vi() -> None:
    assert editor_command({"VISUAL": "code --wait", "EDITOR": "nano"}) == ["code", "--wait"]
    assert editor_command({"VISUAL": "", "EDITOR": "nano"}) == ["nano"]
    assert editor_command({}) == ["vi"]
    with pytest.raises(InvalidRequest, match="no command"):
        editor_command({"EDITOR": "'open"})


_ON_A_TERMINAL = """
from vmkeep.cli.console import Console
from vmkeep.cli.editing import edit_text
from vmkeep.errors import MomentInvalid

def change(text):
    if text.count("x") < 3:
        raise MomentInvalid(f"not enough: {text}")
    return text

print("taken:", edit_text("x", "x.xml", change, Console(json_wanted=False), limit_bytes=100))
"""


def test_on_a_terminal_a_refused_text_is_offered_again() -> None:
    master, slave = os.openpty()
    environment = {**os.environ, "EDITOR": "sed -i s/x/xx/"}
    with subprocess.Popen(
        [sys.executable, "-c", _ON_A_TERMINAL], stdin=slave, stdout=slave, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        os.write(master, b"y\n")
        said = ""
        deadline = time.monotonic() + 60
        while "taken: xxx" not in said and time.monotonic() < deadline:
            said += os.read(master, 4096).decode()
        assert process.wait(60) == 0
    os.close(master)
    assert re.search(r"not enough: xx.*Edit it again\? \[y/N\].*taken: xxx", said, re.DOTALL)
