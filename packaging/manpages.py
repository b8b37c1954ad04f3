"""The manual pages of vmkeep, one a command, made of what its help says: `python packaging/manpages.py FOLDER`.

click-man (0.6) looks for click's own classes, and typer has its own copy of click since 0.29: its pages are without
options. So these are made here (docs/adr/0055-packages-for-debian.md).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

import typer

from vmkeep import __version__
from vmkeep.cli.main import app


def write_pages(folder: Path, date: str) -> list[Path]:
    """Write the pages of all commands into a folder, and return their paths. ``date`` is for their last line."""
    written = []
    for context in _commands(typer.main.get_command(app), "vmkeep", None):
        path = folder / f"{context.command_path.replace(' ', '-')}.1"
        path.write_text("\n".join(_page(context, date)) + "\n")
        written.append(path)
    return written


def _commands(command: Any, name: str, parent: Any) -> Iterator[Any]:
    """Yield a context of each command, which is what tells its names, usage and options."""
    context = command.context_class(command, info_name=name, parent=parent, **command.context_settings)
    yield context
    for sub in getattr(command, "list_commands", lambda _: ())(context):
        below = command.get_command(context, sub)
        if below is not None and not below.hidden:
            yield from _commands(below, sub, context)


def _page(context: Any, date: str) -> Iterator[str]:
    command, path = context.command, context.command_path
    text = cleandoc(command.help or "").replace("\n\n", "\0").replace("\n", " ").split("\0")
    summary = text[0].partition(". ")[0].rstrip(".")
    yield f'.TH "{path.replace(" ", "-").upper()}" "1" "{date}" "vmkeep {__version__}" "vmkeep"'
    yield from (".SH NAME", rf"{_roff(path.replace(' ', '-'))} \- {_roff(summary)}")
    yield from (".SH SYNOPSIS", f".B {_roff(path)}", _roff(" ".join(command.collect_usage_pieces(context))))
    yield ".SH DESCRIPTION"
    for paragraph in text:
        yield from (".PP", _roff(paragraph))
    for title, kind in (("ARGUMENTS", "argument"), ("OPTIONS", "option")):
        yield from _table(title, _records(context, kind))
    subcommands = [(sub, command.get_command(context, sub)) for sub in getattr(command, "commands", ())]
    yield from _table(
        "COMMANDS",
        [(f"{path} {sub}", each.get_short_help_str(limit=200)) for sub, each in subcommands if not each.hidden],
    )
    if command.epilog:
        words = command.epilog.removeprefix("Example: ")
        yield from (".SH EXAMPLE", _roff(words))
    yield ".SH EXIT STATUS"
    yield _roff("0 when all that was asked for was done. Each error has a status of its own, and says what to do next.")
    parent = [] if context.parent is None else [context.parent.command_path]
    beside = [*parent, *(f"{path} {sub}" for sub, each in subcommands if not each.hidden)]
    if beside:
        yield from (".SH SEE ALSO", ", ".join(f"{_roff(each.replace(' ', '-'))}(1)" for each in beside))


def _records(context: Any, kind: str) -> list[tuple[str, str]]:
    """Return name and help of its arguments or options, as its help shows them."""
    found = []
    for each in context.command.get_params(context):
        if each.param_type_name != kind or getattr(each, "hidden", False):
            continue
        record = each.get_help_record(context)
        if record is not None:
            found.append((" ".join(record[0].split()), " ".join(record[1].split())))
    return found


def _table(title: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    if rows:
        yield f".SH {title}"
    for name, what in rows:
        yield from (".TP", f".B {_roff(name)}", _roff(what))


def _roff(text: str) -> str:
    r"""Return a text as roff shows it: no line of it is a request, and a dash is one that can be copied."""
    written = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{written}" if written.startswith((".", "'")) else written


if __name__ == "__main__":
    moment = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_pages(target, time.strftime("%Y-%m-%d", moment))
