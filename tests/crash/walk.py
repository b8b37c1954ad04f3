"""Which effects of a command it is killed at: all of them, or a sample that has each kind of effect in it."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.crash import effects
from tests.turns import DAY, EVERY, SEED


@dataclass(frozen=True, slots=True)
class Death:
    """At which effect of a run it dies, counted from 1: before it, or ``delay_ms`` after it began. None: it lives."""

    effect: int | None
    delay_ms: float = 0.0


NO_DEATH = Death(None)
SHARES = 40 if EVERY else 2
"""Into how many tests a walk is cut, so that one failure does not hide the others and none takes minutes."""
_DATABASE = re.compile(r"\.sqlite(-wal|-journal)?$|^sync |^chmod |^chown ")
# Requests to libvirt and programs that were started work on after vmkeep is gone.
_GOES_ON = re.compile(r"^(libvirt|spawn)\b")
_DELAYS_MS = (0.5, 3.0, 12.0, 40.0)


def deaths(done: Sequence[str], most: int | None = None, *, first: int = 1, daily: bool = False) -> list[Death]:
    """Return where to die of what an undisturbed run has done; at most so many, unless all are asked for.

    Each is a death before an effect, which also is the one after the effect before. Those that go on without vmkeep
    are met while they are under way as well. A sample takes what is rare first, where each kind can be met, and of
    equal effects by chance; with ``daily`` others each day, where it does not matter that a run may end without the
    last effects of the counted one.
    """
    chance = random.Random(f"{SEED} {DAY}" if daily else SEED)
    numbers = range(first, len(done) + 1)
    places = [Death(number) for number in numbers]
    places += [Death(number, delay) for number in numbers if _GOES_ON.search(done[number - 1]) for delay in _DELAYS_MS]
    if EVERY or most is None or len(places) <= most:
        return sorted(places, key=_order)
    chance.shuffle(places)
    kinds: dict[str, list[Death]] = {}
    for place in places:
        effect = done[(place.effect or 0) - 1]
        kinds.setdefault("database or sync" if _DATABASE.search(effect) else effect, []).append(place)
    taken: list[Death] = []
    while len(taken) < most:
        rarest_first = sorted((kind for kind in kinds.values() if kind), key=len)
        if len(rarest_first) > most:  # else the most frequent kinds, the database's among them, would never be met
            chance.shuffle(rarest_first)
        taken += [kind.pop() for kind in rarest_first]
    return sorted(taken[:most], key=_order)


def _order(death: Death) -> tuple[int, float]:
    return death.effect or 0, death.delay_ms


def need_effects() -> None:
    """Skip where effects cannot be counted; in CI that is a failure."""
    lacking = effects.is_possible()
    if lacking and os.environ.get("CI") == "true":
        pytest.fail(lacking, pytrace=False)
    if lacking:
        pytest.skip(lacking)
