"""Processes that have the injector in them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.environment.injector import Injector
from tests.rig import Host


@dataclass(frozen=True, slots=True)
class Preloaded:
    """A host in which the forked commands have the injector in them; it does nothing until a run asks for it."""

    host: Host
    injector: Injector

    @property
    def dir(self) -> Path:
        return self.host.dir

    def popen(self, command: Sequence[str | Path], *, stdin: int, stderr: int | None) -> subprocess.Popen[str]:
        env = {"LD_PRELOAD": str(self.injector.library)}
        return self.host.popen(command, env=env, stdin=stdin, stderr=stderr)  # type: ignore[arg-type] # as in Popen

    def run(self, command: Sequence[str | Path], *, check: bool) -> object:
        return self.host.run(command, check=check)
