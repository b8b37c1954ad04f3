"""What is tried in turn: places, errors and arrangements that prove the same promise, some of them each day.

Which ones is a matter of the day and never of chance, so all of them come within some days, two runs of a day are the
same, and the name of a test tells what was tried. ``VMKEEP_CRASH_ALL=1`` tries all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

EVERY = os.environ.get("VMKEEP_CRASH_ALL") == "1"
"""Try everything, in place of a sample. Takes hours."""
SEED = int(os.environ.get("VMKEEP_CRASH_SEED", "1"))
# Told to the processes that share the tests, which must all draw the same, also around midnight.
DAY = int(os.environ.setdefault("VMKEEP_CRASH_DAY", str(datetime.now(UTC).toordinal())))


def sampled(places: Sequence[T], most: int) -> list[T]:
    """Return as many of the places that a test was written for, others each day; all with VMKEEP_CRASH_ALL.

    Every one of them is tried within some days. The name of a test tells the place, so what failed is run again with
    ``VMKEEP_CRASH_ALL=1`` and that name.
    """
    if EVERY or len(places) <= most:
        return list(places)
    # As a hand of cards that goes round: who was not drawn today is drawn before anybody is drawn again.
    order = random.Random(SEED).sample(range(len(places)), len(places))
    drawn = {order[(DAY * most + number) % len(places)] for number in range(most)}
    return [place for number, place in enumerate(places) if number in drawn]


Group = tuple[Path, str]


def groups_in_turn(items: Iterable[pytest.Item]) -> dict[Group, tuple[int, list[pytest.Item]]]:
    """Return the tests marked ``in_turn(most)`` with how many of each group are tried a day.

    A group is the examples of one test, or all tests of a file that have the same ``among``.
    """
    groups: dict[Group, tuple[int, list[pytest.Item]]] = {}
    for item in items:
        mark = item.get_closest_marker("in_turn")
        if mark is not None:
            among = str(mark.kwargs.get("among") or getattr(item, "originalname", item.name))
            groups.setdefault((item.path, among), (mark.args[0], []))[1].append(item)
    return groups


def skip_all_but_sampled(items: Iterable[pytest.Item]) -> None:
    """Skip what is marked ``in_turn`` and has no turn today."""
    for most, members in groups_in_turn(items).values():
        drawn = sampled([item.name for item in members], most)
        for item in members:
            if item.name not in drawn:
                item.add_marker(pytest.mark.skip(reason="not its turn today (VMKEEP_CRASH_ALL=1 for all)"))
