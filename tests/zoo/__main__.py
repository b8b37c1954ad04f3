"""`python -m tests.zoo`, which is `make zoo`.

Exit status: 0 when every row is as promised, 1 when one is not, 2 when it cannot run here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.rig import missing_requirements
from tests.zoo.keeper import open_house, play_named
from tests.zoo.playing import Played
from tests.zoo.rows import ROWS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("zoo", description="Play configurations of VMs whole, and compare every byte.")
    parser.add_argument("--rows", default="", help="names of rows, with commas; all if left out")
    parser.add_argument("--jobs", type=int, default=2, help="how many are played at one time (2)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--list", action="store_true", help="print the rows and play none")
    options = parser.parse_args(arguments)
    names = [name for name in options.rows.split(",") if name] or list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        parser.error(f"no row is called {', '.join(unknown)}; --list prints them")
    if options.list:
        print("\n".join(f"{name:24} {ROWS[name].what}" for name in names))
        return 0
    missing = missing_requirements()
    if missing:
        print(f"zoo: it cannot run here; missing: {', '.join(missing)} (make setup)", file=sys.stderr)
        return 2
    results = []
    for played in _all_played(names, max(1, options.jobs)):
        results.append(played)
        if not options.json:
            _say(played)
    bad = [played for played in results if played.violations]
    if options.json:
        print(json.dumps([{"row": p.row.name, "violations": p.violations, "seconds": p.seconds} for p in results]))
    else:
        print(
            f"{len(results)} rows, {len(bad)} not as promised{': ' if bad else ''}"
            f"{', '.join(played.row.name for played in bad)}"
        )
    return 1 if bad else 0


def _all_played(names: Sequence[str], jobs: int) -> Iterator[Played]:
    """Play rows in processes with a host each, and yield them as they end."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(names)), context, open_house) as pool:
        for future in as_completed([pool.submit(play_named, name) for name in names]):
            yield future.result()


def _say(played: Played) -> None:
    verdict = "as promised" if not played.violations else "VIOLATED"
    print(f"{played.row.name:24} {played.seconds:5.1f} s  {verdict}", flush=True)
    for violation in played.violations:
        print(f"    {violation}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
