"""Commands that the product prints can be pasted into a shell, whatever the names in them hold."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmkeep.commandline import command_line, shell_word

SOURCES = sorted(
    path
    for path in Path(__file__).resolve().parents[2].glob("src/vmkeep/**/*.py")
    # It takes nothing from vmkeep; what its commands name is a plain word or a UUID (tests of the gate).
    if not path.match("host/gate/hook.py")
)
QUOTING = {"command_line", "shell_word"}
OURS = {"__version__", "command_path", "database", "INSTALL", "'|'.join(SCRIPTS)"}  # no names of others
PROGRAMS = "vmkeep|virsh|qemu-img|systemctl|sudo|apt-get|chmod|mkdir|mv|rm|cp|df|kill|swtpm"
NAMES = [
    "win 11",
    "it's",
    "-x",
    "--all",
    "",
    "$HOME",
    "`id`",
    "a;b",
    "a\\b",
    "ä漢字",
    "tab\there",
    "\x1b[31mred",
    "\x85\u200b'",
    "\udcff\udc80f",  # a file's name that is no UTF-8
]
_COMMAND = re.compile(rf"`((?:{PROGRAMS})(?= )[^`]*)`|^((?:{PROGRAMS}) .*)$|: ((?:rm|mv|mkdir|chmod) .*)$", re.DOTALL)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_pasted_name_is_one_word_for_the_shell(shell: str, name: str) -> None:
    if subprocess.run(["sh", "-c", f"command -v {shell}"], capture_output=True, check=False).returncode:
        pytest.skip(f"{shell} is not installed")
    argued = subprocess.run(
        [shell, "-c", f"printf '%s\\0' {shell_word(name)}"],
        capture_output=True,
        check=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    assert os.fsdecode(argued.stdout) == f"{name}\0"
    assert shell_word(name).isprintable()


def test_a_name_that_looks_like_an_option_stands_behind_the_options() -> None:
    assert command_line("vmkeep snapshot delete", "win 11", "S1", options="--metadata") == (
        "vmkeep snapshot delete 'win 11' S1 --metadata"
    )
    assert command_line("vmkeep snapshot delete", "win11", "-S1", options="--metadata") == (
        "vmkeep snapshot delete --metadata -- win11 -S1"
    )
    assert command_line("rm --", "-x") == "rm -- -x"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(path.parents[2])))
def test_no_command_is_printed_with_a_bare_name(path: Path) -> None:
    assert not list(bare_names(path.read_text(encoding="utf-8")))


def test_a_bare_name_in_a_command_is_found() -> None:
    found = list(bare_names('hint = f"Do it: `virsh start {vm}`."\nremedy = f"vmkeep backup {a} {command_line(b)}"\n'))
    assert found == [(1, "vm"), (2, "a")]


def bare_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the expression of each value that an f-string puts into a command without quoting it."""
    tree = ast.parse(source)
    beginnings = {
        id(call.args[0])
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and call.args and getattr(call.func, "id", "") == "command_line"
    }  # "vmkeep {kind} delete": what is taken as it is
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr) or id(node) in beginnings:
            continue
        values = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        marks = iter(range(len(values)))
        text = "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"\0{next(marks)}\0" for part in node.values
        )
        for command in _COMMAND.findall(text):
            for mark in re.findall("\0([0-9]+)\0", "".join(command)):
                value = values[int(mark)]
                quoted = isinstance(value, ast.Call) and getattr(value.func, "id", "") in QUOTING
                if not quoted and ast.unparse(value) not in OURS:
                    yield node.lineno, ast.unparse(value)
