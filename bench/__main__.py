"""Measure vmkeep against peers on this machine: `make bench`, or `make bench ARGS="incremental restore"`.

Every figure that counts is a ratio whose two sides were measured alternately in this run; seconds are for
reading only. docs/performance.md says what each figure means and what was reached.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable

from bench import full, incremental, peers, restore, scan, stopped
from bench.measuring import Figures
from tests.rig import Host

SECTIONS: dict[str, Callable[[Host, int], Figures]] = {
    "full": full.measure,
    "incremental": incremental.measure,
    "restore": restore.measure,
    "stopped": stopped.measure,
    "scan": scan.measure,
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
    figures = measure(arguments.sections or list(SECTIONS), arguments.runs)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures)
    return 0


def measure(sections: list[str], runs: int) -> dict[str, Figures]:
    """Return the figures of each section, and those of the machine: the load average before each section, too."""
    machine: Figures = {"cores": os.cpu_count() or 0, "runs": runs}
    figures = {"machine": machine}
    with Host("bench") as host:
        for section in sections:
            machine[f"load_before_{section}"] = os.getloadavg()[0]
            figures[section] = SECTIONS[section](host, runs)
            host.clear()
    return figures


def show(figures: dict[str, Figures]) -> None:
    """Print the figures, one a line, ratios first."""
    for section, values in figures.items():
        print(section)
        for name, value in sorted(values.items(), key=lambda item: "_over_" not in item[0]):
            print(f"  {name:48} {value:.3f}" if isinstance(value, float) else f"  {name:48} {value}")


if __name__ == "__main__":
    sys.exit(main())
