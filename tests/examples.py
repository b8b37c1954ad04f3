"""How many examples are made up for a property: few in `make test`, which makes up others each time.

Nothing guides the search, so what counts is how many were tried over all runs: `VMKEEP_EXAMPLES=10` tries ten times as
many in one.
"""

from __future__ import annotations

import os

_TIMES = float(os.environ.get("VMKEEP_EXAMPLES", "1"))
USUAL = 60


def examples(number: int = USUAL) -> int:
    """Return how many to try where ``number`` are tried in `make test`."""
    return max(1, round(number * _TIMES))
