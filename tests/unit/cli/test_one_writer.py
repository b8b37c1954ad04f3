"""All that vmkeep says goes through one writer, which makes it printable: nothing else writes to a standard stream."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "src" / "vmkeep"
MODULES = sorted(SOURCE.glob("**/*.py"))
WRITER = {"cli/console.py", "cli/outputs.py"}
OF_A_SHELL = {"cli/shells.py"}  # words for a shell's completion, which are left out when they are not printable
FOR_LIBVIRT = {"host/gate/hook.py"}  # a program of its own, which makes what it says printable (tests of the gate)
STREAMS = {"stdout", "stderr", "__stdout__", "__stderr__"}


def writes(source: str) -> Iterator[int]:
    """Yield the lines that print, or write to a standard stream."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id == "print":
            yield node.lineno
        if isinstance(called, ast.Attribute) and called.attr in ("echo", "secho", "print_exc", "print_exception"):
            yield node.lineno
        if isinstance(called, ast.Attribute) and called.attr in ("write", "writelines"):
            stream = called.value
            if isinstance(stream, ast.Attribute) and stream.attr == "buffer":
                stream = stream.value
            if isinstance(stream, ast.Attribute) and stream.attr in STREAMS:
                yield node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_else_writes_to_a_standard_stream(path: Path) -> None:
    if str(path.relative_to(SOURCE)) not in WRITER | OF_A_SHELL | FOR_LIBVIRT:
        assert list(writes(path.read_text(encoding="utf-8"))) == []


def test_what_writes_is_found() -> None:
    source = "print(1)\nsys.stdout.write('')\nsys.stderr.buffer.write(b'')\ntyper.echo('')\nfile.write('')\n"
    assert list(writes(source)) == [1, 2, 3, 4]
