"""What the gate is told of a VM's state: with which contents it may start, and with which not. No I/O.

It says no exactly where ``judge_state`` calls a file superseded, a conflict or missing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from vmkeep.custody.standing import Grounds
from vmkeep.values import dataclass

# A start reads and parses them, in less than 0.1 s with the hash of the file: 10,000 take some 10 ms.
_MOST_SUPERSEDED: Final = 10_000


class GatePolicy(StrEnum):
    """What the gate does about a VM with a lost or older state."""

    STRICT = "strict"
    """It is not started."""
    WARN = "warn"
    """It is started, and the system log has a warning."""
    OFF = "off"
    """Nothing."""


@dataclass(frozen=True, slots=True)
class GatedState:
    """SHA-256 of contents of a kind of state, ``NOTHING`` for no file. Others have changed since, and pass."""

    kind: str
    allowed: tuple[str, ...]
    superseded: tuple[str, ...]


def gated_state(kind: str, grounds: Grounds) -> GatedState | None:
    """Return what the gate goes by for a kind of state; None when no version of it is known."""
    known, newest = grounds.of_kind(kind), grounds.newest(kind)
    if not known:
        return None
    counting = (None if newest is None else newest.sha256, grounds.placed.get(kind))
    allowed = tuple(dict.fromkeys(content for content in counting if content is not None))
    older = dict.fromkeys(version.sha256 for version in known if grounds.tracked)
    superseded = [content for content in older if content not in allowed]
    return GatedState(kind, allowed, tuple(superseded[:_MOST_SUPERSEDED]))
