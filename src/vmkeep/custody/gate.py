"""What the gate is told of a VM's state: with which contents it may start, and with which not. No I/O.

It says no exactly where ``judge_state`` calls a file superseded, a conflict or missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from vmkeep.custody.standing import KnownVersion
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


def gated_state(
    kind: str, versions: Iterable[KnownVersion], placed: str | None = None, *, tracked: bool = True
) -> GatedState | None:
    """Return what the gate goes by for a kind of state; None when no version of it is known.

    ``versions`` are those of the kind, the newest first; ``placed`` and ``tracked`` are as in ``judge_state``.
    """
    known = tuple(versions)
    if not known:
        return None
    newest = next((version.sha256 for version in known if not version.conflict), None)
    allowed = tuple(dict.fromkeys(content for content in (newest, placed) if content is not None))
    older = dict.fromkeys(version.sha256 for version in known if tracked)
    superseded = [content for content in older if content not in allowed]
    return GatedState(kind, allowed, tuple(superseded[:_MOST_SUPERSEDED]))
