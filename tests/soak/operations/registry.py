"""The list of operations. Each names how often it comes, and when it can come at all."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tests.soak.guest import Guest
from tests.soak.world import World

Step: TypeAlias = Callable[[World, Guest, random.Random], str]
Condition: TypeAlias = Callable[[World, Guest], bool]


@dataclass(frozen=True, slots=True)
class Operation:
    """``run`` does it to a VM and says what it was; ``possible`` tells whether it can be done now.

    ``timed``: what comes of it depends on how fast the machine is just then.
    """

    name: str
    weight: int
    run: Step
    possible: Condition
    while_saved: bool
    timed: bool


OPERATIONS: dict[str, Operation] = {}


def operation(
    weight: int,
    possible: Condition = lambda _world, _guest: True,
    *,
    while_saved: bool = False,
    timed: bool = False,
) -> Callable[[Step], Step]:
    """Register a function under its own name. ``while_saved``: also of a VM whose memory is saved (managed save)."""

    def register(run: Step) -> Step:
        name = run.__name__.replace("_", "-")
        OPERATIONS[name] = Operation(name, weight, run, possible, while_saved, timed)
        return run

    return register


def is_off(_world: World, guest: Guest) -> bool:
    return guest.off


def is_on(_world: World, guest: Guest) -> bool:
    return not guest.off


def has_points(world: World, guest: Guest) -> bool:
    return bool(world.points_of(guest))


def has_snapshots(_world: World, guest: Guest) -> bool:
    return bool(guest.snapshots)
