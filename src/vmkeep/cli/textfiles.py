"""Texts that a command is given in a file or on standard input, and writes to a file of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vmkeep.errors import HostFileMissing, InvalidRequest
from vmkeep.filesystem import file_error, replace_file, write_new_file

STANDARD = "-"
"""What stands for standard input or output in place of a file."""


def read_text(file: str, *, limit_bytes: int) -> str:
    """Return the text of a file, of standard input for ``-``. Raises InvalidRequest when it is none, or too long."""
    name = "standard input" if file == STANDARD else file
    try:
        if file == STANDARD:
            content = sys.stdin.buffer.read(limit_bytes + 1)
        else:
            with Path(file).open("rb") as stream:
                content = stream.read(limit_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise HostFileMissing(f"{name} is not there", path=file, hint="Check the name of the file.") from error
    except IsADirectoryError as error:
        raise InvalidRequest(f"{name} cannot be read: {error.strerror}", path=file) from error
    except OSError as error:
        raise file_error(error, Path(name), "read") from error
    if len(content) > limit_bytes:
        raise InvalidRequest(f"{name} is longer than {limit_bytes} bytes", path=file)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not a text in UTF-8", path=file) from error


def write_text(file: str, text: str, *, force: bool) -> None:
    """Write a private file, whole or not at all. Raises TargetExists for one that is there, unless ``force``."""
    path = Path(os.path.abspath(file))  # noqa: PTH100  a link stays a link
    try:
        (replace_file if force else write_new_file)(path, text.encode())
    except OSError as error:
        raise file_error(error, path) from error
