"""The key of the repository put in another's place, which no point and no base may notice."""

from __future__ import annotations

import random

from tests.soak.guest import Guest
from tests.soak.operations.registry import operation
from tests.soak.world import World


@operation(1)
def rewrap_key(world: World, _guest: Guest, chance: random.Random) -> str:
    """Each time a new key file, and now and then a new data key for what is written from then on."""
    words = ("--new-data-key",) if chance.random() < 0.5 else ()
    world.expect(world.commands.run("key", "rewrap", "--yes", *words))
    return " ".join(words)
