"""`python -m tests.soak`: lives one after the other, in one process or several, until steps or minutes are used up."""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.soak.ledger import Ledger
from tests.soak.life import Life, Plan
from tests.soak.sabotage import SABOTAGES
from tests.soak.world import Hosts

_DEFAULT_STEPS = 200


def main(arguments: Sequence[str], hosts: Hosts | None = None) -> int:
    """Run the soak, on hosts of its own unless some are given; return its exit status: 0 when nothing was violated."""
    asked = _parser().parse_args(arguments)
    asked.log = asked.log or Path(f"soak-{asked.seed}.log")
    asked.steps = asked.steps or (_DEFAULT_STEPS if asked.minutes is None else sys.maxsize)
    print(f"soak: seed {asked.seed}, log {asked.log}", flush=True)
    if asked.jobs > 1:
        ledger = _run_many(asked)
    else:
        with Path(asked.log).open("w") as log:
            ledger = _run(asked, Ledger(log), hosts or Hosts())
    if asked.counts is not None:
        ledger.save(asked.counts)
    else:
        print("\n".join(ledger.summary()))
    return 1 if ledger.violations else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None, help="how many steps in all lives [200, unless --minutes]")
    parser.add_argument("--minutes", type=float, default=None, help="begin no life after so long")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes, each with hosts of its own")
    parser.add_argument("--log", type=Path, default=None, help="a line for each step [soak-SEED.log]")
    parser.add_argument("--only-life", type=int, default=None, help="only the life of this number")
    parser.add_argument("--stop-before", type=int, default=None, help="end that life before this step")
    parser.add_argument("--keep", action="store_true", help="wait at the end of a life, so that one can look")
    parser.add_argument("--calm", action="store_true", help="kill and stop nothing: each run of a seed is the same")
    parser.add_argument("--go-on", action="store_true", help="go on with the next life after a violation")
    parser.add_argument("--sabotage", choices=sorted(SABOTAGES), default=None, help="do this harm, to see it found")
    parser.add_argument("--first", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--stride", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--counts", type=Path, default=None, help=argparse.SUPPRESS)
    return parser


def _run(asked: argparse.Namespace, ledger: Ledger, hosts: Hosts) -> Ledger:
    plan = Plan(asked.seed, asked.sabotage, asked.stop_before, asked.keep, asked.calm)
    until = time.monotonic() + asked.minutes * 60 if asked.minutes is not None else None
    numbers = [asked.only_life] if asked.only_life is not None else itertools.count(asked.first, asked.stride)
    try:
        for number in numbers:
            left = asked.steps - ledger.total
            if left <= 0 or (until is not None and time.monotonic() > until):
                break
            whole = Life(plan, number, hosts, ledger).live(left)
            if not whole and not asked.go_on:
                break
    finally:
        hosts.close()
    return ledger


def _run_many(asked: argparse.Namespace) -> Ledger:
    """Share the lives out to processes: each has hosts of its own, and takes every so-manieth life."""
    with tempfile.TemporaryDirectory(prefix="vmkeep-soak-") as directory:
        files = [Path(directory) / str(number) for number in range(asked.jobs)]
        processes = [_start(asked, number, file) for number, file in enumerate(files)]
        statuses = [process.wait() for process in processes]
        with Path(asked.log).open("w") as log:
            ledger = Ledger(log)
            for number, file in enumerate(files):
                part = _part_log(asked, number)
                log.write(part.read_text())
                part.unlink()
                if file.exists():
                    ledger.add(file)
                else:
                    ledger.violations.append(f"process {number} ended with {statuses[number]} and counted nothing")
    return ledger


def _start(asked: argparse.Namespace, number: int, counts: Path) -> subprocess.Popen[bytes]:
    words = ["--seed", asked.seed, "--steps", asked.steps // asked.jobs, "--first", number + 1, "--stride", asked.jobs]
    words += ["--log", _part_log(asked, number), "--counts", counts]
    words += ["--minutes", asked.minutes] if asked.minutes is not None else []
    words += ["--sabotage", asked.sabotage] if asked.sabotage is not None else []
    words += ["--go-on"] if asked.go_on else []
    words += ["--calm"] if asked.calm else []
    return subprocess.Popen([sys.executable, "-m", "tests.soak", *map(str, words)])


def _part_log(asked: argparse.Namespace, number: int) -> Path:
    log = Path(asked.log)
    return log.with_name(f"{log.name}.{number}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
