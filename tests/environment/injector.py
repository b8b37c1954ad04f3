"""Errors and delays of the system, by path and call, in a command and what it starts.

A library of a few hundred lines of C is built with gcc and loaded with LD_PRELOAD (``injector.c``). A first run counts
the calls; then a run fails at each of them.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("injector.c")
KINDS: Final = ("open", "create", "read", "write", "sync", "rename", "link", "unlink", "mkdir", "lock", "statvfs")
"""What can be made to fail; ``chmod`` and ``stat`` as well, when they are asked for by name."""
FOREVER: Final = -1


@dataclass(frozen=True, slots=True)
class Fault:
    """Calls of these kinds on paths below the prefixes; from call ``at`` on, ``times`` of them fail with the error.

    ``at`` 0 only counts. ``error`` 0 only delays.
    """

    prefixes: tuple[str | Path, ...]
    error: int = 0
    at: int = 0
    times: int = 1
    kinds: tuple[str, ...] = KINDS
    delay_ms: int = 0

    def __str__(self) -> str:
        what = errno.errorcode.get(self.error, "no error")
        lasting = " and all after it" if self.times == FOREVER else ""
        return f"{what} at call {self.at}{lasting} ({', '.join(self.kinds)}) below {', '.join(map(str, self.prefixes))}"


@dataclass(frozen=True, slots=True)
class Call:
    """One counted call, in the order of counting; ``hit`` when it failed or was delayed."""

    number: int
    hit: bool
    process: int
    kind: str
    path: str


@dataclass(slots=True)
class Injector:
    """The library, and the records of runs below one directory."""

    directory: Path
    _runs: int = field(default=0)

    def __post_init__(self) -> None:
        build = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(self.library), str(_SOURCE), "-ldl"]
        subprocess.run(build, check=True)

    @property
    def library(self) -> Path:
        return self.directory / "injector.so"

    def environment(self, fault: Fault) -> dict[str, str]:
        """Return what a command of the next run has to have in its environment."""
        self._runs += 1
        return {
            "LD_PRELOAD": str(self.library),
            "VMKEEP_FAULT_RECORD": str(self._record),
            "VMKEEP_FAULT_PREFIXES": ":".join(map(str, fault.prefixes)),
            "VMKEEP_FAULT_KINDS": ",".join(fault.kinds),
            "VMKEEP_FAULT_ERRNO": str(fault.error),
            "VMKEEP_FAULT_AT": str(fault.at),
            "VMKEEP_FAULT_TIMES": str(fault.times),
            "VMKEEP_FAULT_DELAY_MS": str(fault.delay_ms),
        }

    def calls(self) -> Sequence[Call]:
        """Return the calls that the last run made, in order."""
        if not self._record.exists():
            return []
        found = []
        for line in self._record.read_text(errors="surrogateescape").splitlines():
            number, met, process, kind, path = line.split(" ", 4)
            found.append(Call(int(number), met == "hit", int(process), kind, path))
        return sorted(found, key=lambda call: call.number)

    @property
    def _record(self) -> Path:
        return self.directory / f"run-{self._runs}.calls"
