"""What may happen in a life, one function each: it does it to the world, and to the model what must come of it."""

from tests.soak.operations import (  # noqa: F401  importing them is what registers them
    guestwrites,
    identities,
    interference,
    interruptions,
    keys,
    pointcommands,
    power,
    pressure,
    restores,
    snapshots,
    tpms,
)
from tests.soak.operations.registry import OPERATIONS, Operation

__all__ = ["OPERATIONS", "Operation"]
