"""Measure vmkeep against peers on this machine: `make bench`, or `make bench ARGS="incremental restore"`.

Every figure that counts is a ratio whose two sides were measured alternately in this run; seconds are for
reading only. docs/performance.md says what each figure means and what was reached.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator

from bench import (
    begin,
    catalogue,
    flows,
    full,
    gate,
    guest,
    history,
    huge,
    incremental,
    inplace,
    instant,
    maps,
    moments,
    peers,
    prune,
    restore,
    scan,
    start,
    stopped,
    verify,
    watch,
)
from bench.measuring import Figures, compile_modules
from tests.rig import Host

SECTIONS: dict[str, Callable[[Host, int], Figures]] = {
    "start": start.measure,
    "full": full.measure,
    "incremental": incremental.measure,
    "restore": restore.measure,
    "stopped": stopped.measure,
    "scan": scan.measure,
    "instant": instant.measure,
    "guest": guest.measure,
    "inplace": inplace.measure,
    "history": history.measure,
    "maps": maps.measure,
    "huge": huge.measure,
    "moments": moments.measure,
    "gate": gate.measure,
    "watch": watch.measure,
    "catalogue": catalogue.measure,
    "begin": begin.measure,
    "prune": prune.measure,
    "verify": verify.measure,
    "flows": flows.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure vmkeep against its peers.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--runs", type=int, default=5, help="how often each side is measured (medians are printed)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    if missing := peers.missing_commands():
        parser.error(f"this machine lacks {', '.join(missing)}; run scripts/bench-peers")
    compile_modules()
    figures: dict[str, Figures] = {}
    try:
        for section, values in measure(arguments.sections or list(SECTIONS), arguments.runs):
            figures[section] = values
            if not arguments.json:
                show(section, values)
    finally:  # a section that fails does not take with it what was measured before
        if arguments.json:
            print(json.dumps(figures, indent=2))
    return 0


def measure(sections: list[str], runs: int) -> Iterator[tuple[str, Figures]]:
    """Yield each section with its figures, among them what else the machine did when it began."""
    with Host("bench") as host:
        for section in sections:
            machine: Figures = {"cores": os.cpu_count() or 0, "load_before": os.getloadavg()[0], "runs": runs}
            yield section, {**SECTIONS[section](host, runs), **machine}
            host.clear()


def show(section: str, figures: Figures) -> None:
    """Print the figures of a section, one a line, ratios first."""
    print(section)
    for name, value in sorted(figures.items(), key=lambda item: "_over_" not in item[0]):
        print(f"  {name:48} {value:.3f}" if isinstance(value, float) else f"  {name:48} {value}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
