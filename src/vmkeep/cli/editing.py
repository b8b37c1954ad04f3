"""A text given to the user's editor, in a private file that is kept when its change is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vmkeep.cli.console import Console
from vmkeep.cli.textfiles import read_text
from vmkeep.config import editor_command
from vmkeep.errors import HostFileMissing, InvalidRequest, VmkeepError

T = TypeVar("T")


def edit_text(text: str, name: str, change: Callable[[str], T], console: Console, *, limit_bytes: int) -> T | None:
    """Let the user edit the text, and return what ``change`` makes of it; None when the text came back as it was.

    When ``change`` refuses it, the user may edit it again. Whatever way this fails, what was typed stays in a file,
    and the error says where.
    """
    command = editor_command()
    directory = Path(tempfile.mkdtemp(prefix="vmkeep-edit-"))  # for its owner only
    path = directory / name
    path.write_text(text, "utf-8")
    path.chmod(0o600)
    kept = False
    try:
        while True:
            _run(command, path, console)
            edited = read_text(str(path), limit_bytes=limit_bytes)
            if edited == text:
                return None
            try:
                return change(edited)
            except VmkeepError as error:
                if not _wants_again(error, console):
                    raise
    except BaseException as error:
        kept = _holds_other(path, text)
        if kept:
            error.add_note(f"what was typed is kept in {path}")
        raise
    finally:
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)


def _run(command: list[str], path: Path, console: Console) -> None:
    try:
        # With --json standard output is for the document.
        ended = subprocess.run([*command, str(path)], stdout=sys.stderr if console.json else None, check=False)
    except OSError as error:
        raise HostFileMissing(
            f"the editor {command[0]!r} cannot be started: {error.strerror}",
            path=command[0],
            hint="Set VISUAL or EDITOR to an editor that is installed.",
        ) from error
    if ended.returncode != 0:
        raise InvalidRequest(
            f"the editor {command[0]!r} ended with status {ended.returncode}; nothing was changed",
            hint="Run the command again.",
        )


def _wants_again(error: VmkeepError, console: Console) -> bool:
    if console.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    console.failure(error)
    return console.ask("Edit it again?")


def _holds_other(path: Path, text: str) -> bool:
    """Return whether the file holds something that somebody typed."""
    try:
        return os.path.lexists(path) and path.read_bytes() != text.encode()
    except OSError:
        return True
