"""The log of `--debug`: JSON lines in a file that one can send. Without --debug nothing is logged anywhere."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import tempfile
from collections.abc import MutableMapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from vmkeep import __version__
from vmkeep.cli.terminal import printable_json
from vmkeep.config import Settings
from vmkeep.filesystem import file_errors
from vmkeep.logs import begin_logging

_SECRET_WORDS = ("passphrase", "password", "secret", "token", "private")
_HIDDEN = "(not logged)"
_INVITE = "vmkeep1-"
"""How an invite begins (vmkeep.identity.tokens), which `vmkeep agent enrol` is given."""


def start_log(directory: Path) -> Path:
    """Log everything of this process into a new file and return its path, which is elsewhere where there is no room.

    A home that cannot be written may be what one wants the log of.
    """
    try:
        path, file = _open(directory)
    except OSError:
        elsewhere = Path(tempfile.gettempdir())
        with file_errors(elsewhere):
            path, file = _open(Path(tempfile.mkdtemp(prefix="vmkeep-log-", dir=elsewhere)))
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        hide_secrets,
    ]
    rendered = structlog.processors.JSONRenderer(serializer=printable_json, default=str)
    structlog.configure(
        processors=[*shared, rendered],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(file)
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[remove, rendered], foreign_pre_chain=shared))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    # Its statements come with their parameters: whole domain definitions.
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)
    begin_logging()
    return path


class _LogFile(io.TextIOWrapper):
    """A file whose loss is no reason for what is logged to fail."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def _open(directory: Path) -> tuple[Path, _LogFile]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    path = directory / f"vmkeep-{moment}-{os.getpid()}.log"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    binary = io.BufferedWriter(io.FileIO(handle, "w"))
    return path, _LogFile(binary, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def log_beginning(arguments: Sequence[str], settings: Settings) -> None:
    """Write what a person who reads the log must know first. No secret is an argument or a setting, but for tokens."""
    structlog.get_logger("vmkeep").info(
        "begin",
        version=__version__,
        arguments=[_HIDDEN if word.startswith(_INVITE) else word for word in arguments],
        python=platform.python_version(),
        system=platform.platform(),
        user=os.geteuid(),
        **{name: str(getattr(settings, name)) for name in settings.__slots__},
    )


def log_failure(error: BaseException) -> None:
    """Write an error with its traceback."""
    structlog.get_logger("vmkeep").error("the command failed", exc_info=error)


def hide_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace values whose names say that they are secret, at whatever depth."""
    return {key: _HIDDEN if _is_secret(key) else _without_secrets(value) for key, value in event.items()}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _HIDDEN if _is_secret(str(key)) else _without_secrets(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(held) for held in value]
    return value


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_WORDS)
