"""Passphrases: asked for on the terminal, or read from a file; never an argument, which all users can read."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from vmkeep.errors import HostFileMissing, InvalidRequest, TargetExists, VmkeepError
from vmkeep.filesystem import file_error

PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Read the passphrase from the first line of a file instead of asking for it.",
        show_default=False,
    ),
]


def passphrase_from(file: Path | None, *, new: bool) -> str:
    """Return the passphrase; a new one is asked for twice. Raises InvalidRequest, and what reading the file raises."""
    if file is not None:
        first = read_whole_text(file).splitlines()[:1]
        if not first or not first[0]:
            raise InvalidRequest(f"The passphrase file {file} is empty", path=str(file))
        return first[0]
    if not sys.stdin.isatty():
        raise InvalidRequest(
            "A passphrase is needed and there is no terminal to ask for it", hint="Give --passphrase-file FILE."
        )
    passphrase = getpass.getpass("Passphrase: ")
    if new and getpass.getpass("The same again: ") != passphrase:
        raise InvalidRequest("The two passphrases are not the same", hint="Run the command again.")
    return passphrase


def read_whole_text(path: Path) -> str:
    """Return a text in UTF-8. Raises InvalidRequest for what is none, and what reading it raises."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not a text", path=str(path)) from error
    except OSError as error:
        raise file_refused(error, path, "read") from error


def file_refused(error: OSError, path: Path, doing: str = "written") -> VmkeepError:
    """Return our error for one of the operating system's about a file that the user named."""
    where = str(path)
    if isinstance(error, FileExistsError):
        return TargetExists(f"{path} is there already", path=where, hint="Choose another file.")
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return HostFileMissing(f"{path}: {error.strerror}", path=where)
    return file_error(error, path, doing)
