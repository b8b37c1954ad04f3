"""How a state file on a host stands to the versions of it that are kept: judged here and nowhere else. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from vmkeep.values import dataclass

LOOK_SECONDS: Final = 60.0
"""How often a watch looks at all state files of a host, at least."""
NOTHING: Final = ""
"""Stands among contents for a file that is not there, on purpose."""


class Standing(StrEnum):
    """What a state file is, next to the versions that are known of it."""

    CURRENT = "current"
    """It is the newest version, or what was put in its place on purpose."""
    CHANGED = "changed"
    """It is no version: it changed since the newest was kept."""
    SUPERSEDED = "superseded"
    """It is an older version: somebody put it there, and the guest's state would be rolled back."""
    UNKNOWN = "unknown"
    """It is an older version, and nobody knows whether that is meant: the catalogue was lost and made anew. Or nobody
    has looked at it for long."""
    CONFLICT = "conflict"
    """It is a version that came late, or from a copy of the VM, and never counted as the current one."""
    MISSING = "missing"
    """It is not there, and versions of it are: libvirt would make it anew, blank."""
    NOT_KEPT = "not-kept"
    """No version of it is known yet."""
    UNREAD = "unread"
    """It could not be looked at."""


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """A version of a state file. ``conflict``: one that never counts as the current one."""

    kind: str
    generation: int
    sha256: str
    conflict: bool = False


@dataclass(frozen=True, slots=True)
class FoundState:
    """A state file as it was found on a host.

    ``sha256`` is None where there is no file. ``backup`` is then the hash of what swtpm 0.11 and later may have kept
    beside it, of the state before: it renames that into place. ``problem`` says why it could not be read.
    """

    kind: str
    path: str
    sha256: str | None = None
    size_bytes: int | None = None
    backup: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class JudgedState:
    """``generation`` is that of the version that the file is, or will be at the next start; None: it is none.

    ``from_backup``: the file is missing, and swtpm would put what it kept beside it in its place.
    """

    standing: Standing
    generation: int | None = None
    from_backup: bool = False


def standing_after(standing: Standing, seconds: float) -> Standing:
    """Return how a file stands by what was found so many seconds ago: nobody knows, when that is longer than it takes
    three times to look at it.
    """
    return standing if seconds <= 3 * LOOK_SECONDS else Standing.UNKNOWN


def judge_state(
    found: FoundState, versions: Iterable[KnownVersion], placed: str | None = None, *, tracked: bool = True
) -> JudgedState:
    """Say how a file stands. ``versions`` are those of its kind, the newest first.

    ``placed`` is the hash of what was put in place on purpose since the newest one, ``NOTHING`` for no file: that
    counts as current. ``tracked``: it is known which point the VM descends from, so it would be known if one had been.
    """
    known = tuple(versions)
    if found.problem is not None:
        return JudgedState(Standing.UNREAD)
    if found.sha256 is None and found.backup is not None:
        # Whatever it is, it is not what was there last: swtpm keeps the state before.
        generation = next((version.generation for version in known if version.sha256 == found.backup), None)
        return JudgedState(Standing.SUPERSEDED if known else Standing.MISSING, generation, from_backup=True)
    if not known:
        return JudgedState(Standing.NOT_KEPT)
    if found.sha256 is None:
        return JudgedState(Standing.CURRENT if placed == NOTHING else Standing.MISSING)
    accepted = [version for version in known if not version.conflict]
    equal = next((version for version in (*accepted, *known) if version.sha256 == found.sha256), None)
    if equal is None:
        return JudgedState(Standing.CHANGED)
    if found.sha256 == placed or equal in accepted[:1]:
        return JudgedState(Standing.CURRENT, equal.generation)
    if not tracked:
        return JudgedState(Standing.UNKNOWN, equal.generation)
    return JudgedState(Standing.CONFLICT if equal.conflict else Standing.SUPERSEDED, equal.generation)
