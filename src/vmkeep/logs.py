"""Loggers: structlog's once a log is wanted, silent before. Modules take one with ``get_logger``.

structlog brings rich, asyncio and pygments with it: 50 ms of each command and of each guardian, which log nothing
unless somebody asks for it (measured with ``-X importtime``).
"""

from __future__ import annotations

from typing import Any


class Logger:
    """A named logger; events are short words and what is told about them is given by name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **told: Any) -> None:
        self._write("debug", event, told)

    def info(self, event: str, **told: Any) -> None:
        self._write("info", event, told)

    def warning(self, event: str, **told: Any) -> None:
        self._write("warning", event, told)

    def error(self, event: str, **told: Any) -> None:
        self._write("error", event, told)

    def exception(self, event: str, **told: Any) -> None:
        """Write an event with the traceback of the exception that is being handled."""
        self._write("exception", event, told)

    def _write(self, level: str, event: str, told: dict[str, Any]) -> None:
        if _Wanted.log:
            import structlog

            getattr(structlog.get_logger(self._name), level)(event, **told)


class _Wanted:
    log = False


def get_logger(name: str) -> Logger:
    """Return the logger of a module."""
    return Logger(name)


def begin_logging() -> None:
    """From here on what is logged goes to structlog, which the caller has set up."""
    _Wanted.log = True
