"""Standard output and standard error that are not as a program expects: closed, full, without a reader.

A descriptor that is closed at the start is given to the next file that is opened, which would get what is printed. So
the three are there before anything else is (``make_whole``), and a write to one that was closed is an error.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO, cast

from vmkeep.cli.terminal import Screened


class OutputLost(OSError):
    """What was to be printed on standard output could not be written."""


class _Closed(io.TextIOBase):
    """A stream whose descriptor was closed when the command was started."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EBADF, "it is closed")

    def writable(self) -> bool:
        return True


class _Output:
    """Standard output, whose failures can be told from those of other files, whoever prints."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputLost(error.errno, error.strerror) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputLost(error.errno, error.strerror) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Forgiving:
    """Standard error for what only shows how things come on: a terminal that went away ends nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_whole() -> None:
    """Let the three standard descriptors be open, and standard output raise OutputLost. Before any file is opened."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123  for as long as the process lives
    if sys.stdout is None:
        sys.stdout = cast("TextIO", _Closed())
    if sys.stderr is None:
        sys.stderr = cast("TextIO", _Closed())
    sys.stdout = cast("TextIO", Screened(cast("TextIO", _Output(sys.stdout)), always=False))
    sys.stderr = cast("TextIO", Screened(sys.stderr, always=True))


def silence_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter's own flush at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
