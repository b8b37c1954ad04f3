"""Whole commands measured from outside, and samples of both sides of a ratio."""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import libvirt
import nbd

from tests.rig import Host, MiB

Figures = dict[str, float]
_PROJECT = Path(__file__).resolve().parent.parent
# With the two modules that setup links into the venv.
_SOURCES = (str(_PROJECT / "src"), *(str(Path(module.__file__ or "")) for module in (libvirt, nbd)))


@dataclass(frozen=True, slots=True)
class Run:
    """One command: wall time, peak memory, what it printed, and the processor's time, with that of all it started."""

    seconds: float
    peak_bytes: int
    output: str
    processor_seconds: float = 0.0


class Samples:
    """Seconds and peak memory of several commands, each measured several times."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._peaks: dict[str, int] = defaultdict(int)

    def add(self, name: str, measured: Run | float) -> None:
        """Keep one measurement: a run, or seconds."""
        if isinstance(measured, Run):
            self._seconds[name].append(measured.seconds)
            self._peaks[name] = max(self._peaks[name], measured.peak_bytes)
        else:
            self._seconds[name].append(measured)

    def median(self, name: str) -> float:
        return statistics.median(self._seconds[name])

    def ratio(self, name: str, other: str) -> float:
        return self.median(name) / self.median(other)

    def peak_mib(self, name: str) -> float:
        return self._peaks[name] / MiB

    def figures(self) -> Figures:
        """Return each median as ``NAME_seconds``, with the fastest and the slowest run."""
        figures: Figures = {}
        for name, seconds in self._seconds.items():
            figures[f"{name}_seconds"] = statistics.median(seconds)
            figures[f"{name}_seconds_min"] = min(seconds)
            figures[f"{name}_seconds_max"] = max(seconds)
        return figures


def alternating(runs: int, sides: Sequence[Callable[[], None]]) -> Iterator[int]:
    """Carry out all sides ``runs`` times and yield the number of each round before it, for what both start from.

    Every second round goes through the sides backwards, so that none is always the first.
    """
    for number in range(runs):
        yield number
        for side in sides if number % 2 == 0 else reversed(sides):
            side()


def measured(host: Host, command: Sequence[str | Path]) -> Run:
    """Run a command inside the host, as a whole process. The benchmark ends when it fails."""
    with tempfile.NamedTemporaryFile("r", dir=host.dir / "work") as figures:
        # -o keeps GNU time's figures apart from what the command prints.
        timing = ["/usr/bin/env", "time", "-f", "%M %U %S", "-o", figures.name]
        begun = time.monotonic()
        done = host.run([*timing, *command])
        seconds = time.monotonic() - begun
        if done.returncode != 0:
            sys.exit(f"{shlex.join(str(word) for word in command)} failed:\n{done.stdout}{done.stderr}")
        peak_kib, *processor = figures.read().split()
        return Run(seconds, int(peak_kib) * 1024, done.stdout, sum(map(float, processor)))


def compile_modules() -> None:
    """Compile what the checkout's command imports, as an installation does.

    Where PYTHONDONTWRITEBYTECODE is set, each command would compile all that was edited since, which is twice its time.
    """
    subprocess.run([sys.executable, "-m", "compileall", "-q", *_SOURCES], check=True)


def timed(action: Callable[[], object]) -> float:
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def seconds_of(command: Sequence[str | Path]) -> float:
    """Return the seconds of a command that runs outside of any host."""
    return timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def seconds_of_sync(directory: Path) -> float:
    """Return the seconds that it takes to make all files of a directory durable: what a tool without fsync leaves."""
    files = [str(path) for path in directory.rglob("*") if path.is_file()]
    return seconds_of(["sync", *files])


def warm_memory(directory: Path, size_bytes: int) -> None:
    """Write and remove a file as large as what is measured next, so that both sides find the same memory.

    A virtual machine gives pages that it freed back to its host after a while, and the first write to such a page
    costs ten times as much (0.9 GB: 2.1 s against 0.2 s, seen). Without this the side that runs second looks slow.
    """
    with tempfile.NamedTemporaryFile(dir=directory) as scratch:
        piece = bytes(16 * MiB)
        for _ in range(size_bytes // len(piece)):
            scratch.write(piece)
