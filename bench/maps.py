"""A map of 1.6 million alternating ranges, read over NBD, merged and cut into blocks, in a process of its own.

The export is nbdkit's random sparse disk: 200 GiB, half of it data, in runs of 128 KiB. Nothing is compared with it:
the figures are seconds and peak memory.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.measuring import Figures, Samples, measured
from tests.rig import Host

_DISK = ("sparse-random", "size=200G", "percent=50", "runlength=131072", "seed=1")
_READ = """
import sys, time
from vmkeep.extents import cut, merge
from vmkeep.transfer.connections import Connections
from vmkeep.transfer.nbd import NbdSource
source = NbdSource(Connections(sys.argv[1]).export("", most=4), None)
begun = time.monotonic()
extents = merge(source.dirty_map(), source.zero_map(), source.size_bytes)
if sys.argv[2] == "cut":
    extents = cut(extents, block_bytes=65536, size_bytes=source.size_bytes, max_blocks=16)
print(sum(1 for _ in extents), time.monotonic() - begun)
"""


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of large maps; docs/performance.md says what each means."""
    socket = host.dir / "work/map.sock"
    with subprocess.Popen(["nbdkit", "--foreground", "--unix", str(socket), *_DISK]) as server:
        try:
            while not socket.exists():
                time.sleep(0.1)
            return _measure(host, socket, runs)
        finally:
            server.terminate()


def _measure(host: Host, socket: Path, runs: int) -> Figures:
    samples = Samples()
    figures: Figures = {}
    for _ in range(runs):
        for part in ("merged", "cut"):
            run = measured(host, [sys.executable, "-c", _READ, socket, part])
            count, seconds = run.output.split()
            samples.add(f"map_{part}", run)
            samples.add(f"map_{part}_without_start", float(seconds))
            figures[f"map_{part}_ranges"] = int(count)
    return {**figures, "map_peak_mib": samples.peak_mib("map_cut"), **samples.figures()}
