"""Runs the real command in a process of its own, as a user does, with a home of its own.

``vmkeep`` forks it from a process that has imported it (tests/rig/forking.py); ``typed`` and ``COMMAND`` start it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rig.forking import CommandForks, ThisMachine

COMMAND = (sys.executable, "-m", "vmkeep.cli.main")


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended."""

    status: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        """Return the one JSON document of standard output."""
        value: dict[str, Any] = json.loads(self.out)
        return value

    def error(self) -> dict[str, Any]:
        """Return the error of standard error, which must be the only thing there."""
        value: dict[str, Any] = json.loads(self.err)["error"]
        return value


def environment(home: Path) -> dict[str, str]:
    """Return an environment in which nothing of this machine's own settings counts."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**kept, "VMKEEP_HOME": str(home), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def vmkeep(home: Path, *arguments: str, stdin: str = "") -> Answer:
    """Run a command line to its end."""
    ended = CommandForks(ThisMachine(Path.cwd())).run(
        ["vmkeep", *arguments], environment(home), stdin, timeout_seconds=60
    )
    return Answer(ended.returncode, ended.stdout, ended.stderr)


def typed(line: str, *arguments: str, env: dict[str, str]) -> Answer:
    """Run a line of a shell, in which ``{command}`` stands for a command line, and return what its streams had."""
    command = " ".join(f"'{word}'" for word in (*COMMAND, *arguments))
    ended = subprocess.run(
        ["/bin/sh", "-c", line.replace("{command}", command)],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Answer(ended.returncode, ended.stdout, ended.stderr)
