"""How a state file on a host stands to the versions of it that are kept: judged here and nowhere else. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
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
    BLANK = "blank"
    """It is not there, on purpose: the next start makes it anew, and what was kept before counts no more."""
    MISSING = "missing"
    """It is not there, and versions of it are: libvirt would make it anew, blank."""
    NOT_KEPT = "not-kept"
    """No version of it is known yet."""
    UNREAD = "unread"
    """It could not be looked at."""


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """A version of a state file. ``conflict``: one that never counts as the current one.

    ``vouched``: somebody vouches for it. One that only hosts hold that nobody trusts says nothing about a file.
    """

    kind: str
    generation: int
    sha256: str
    conflict: bool = False
    vouched: bool = True


@dataclass(frozen=True, slots=True)
class Grounds:
    """What the state files of a VM are judged by, whoever judges: a list, `doctor`, or the gate.

    ``versions`` are those known of all kinds, the newest first. ``placed`` has, by kind, the hash of what was put in
    place on purpose since the newest one, ``NOTHING`` for no file: that counts as current. ``tracked``: it is known
    which point the VM descends from, so it would be known if an older version were meant.
    """

    versions: tuple[KnownVersion, ...] = ()
    placed: Mapping[str, str] = field(default_factory=dict)
    tracked: bool = True

    def of_kind(self, kind: str) -> tuple[KnownVersion, ...]:
        """Return the versions of a kind that say something about a file, the newest first.

        Those that nobody vouches for are left out: whoever can write to the repository would have a file called older
        than it is, and keep a VM from starting.
        """
        return tuple(version for version in self.versions if version.kind == kind and version.vouched)

    def newest(self, kind: str) -> KnownVersion | None:
        """Return the version of a kind that counts as its newest."""
        return next((version for version in self.of_kind(kind) if not version.conflict), None)


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
    three times to look at it, or when a clock that was set back has it found later than now.
    """
    return standing if -LOOK_SECONDS <= seconds <= 3 * LOOK_SECONDS else Standing.UNKNOWN


def judge_state(found: FoundState, grounds: Grounds) -> JudgedState:
    """Say how a file stands."""
    known, placed = grounds.of_kind(found.kind), grounds.placed.get(found.kind)
    if found.problem is not None:
        return JudgedState(Standing.UNREAD)
    if found.sha256 is None and found.backup is not None:
        # Whatever it is, it is not what was there last: swtpm keeps the state before.
        generation = next((version.generation for version in known if version.sha256 == found.backup), None)
        return JudgedState(Standing.SUPERSEDED if known else Standing.MISSING, generation, from_backup=True)
    accepted = [version for version in known if not version.conflict]
    equal = next((version for version in (*accepted, *known) if version.sha256 == found.sha256), None)
    if found.sha256 is not None and found.sha256 == placed:
        # A person put it there, if need be of a point that nobody vouches for.
        return JudgedState(Standing.CURRENT, None if equal is None else equal.generation)
    if not known:
        return JudgedState(Standing.NOT_KEPT)
    if found.sha256 is None:
        return JudgedState(Standing.BLANK if placed == NOTHING else Standing.MISSING)
    if equal is None:
        return JudgedState(Standing.CHANGED)
    if equal == grounds.newest(found.kind):
        return JudgedState(Standing.CURRENT, equal.generation)
    if not grounds.tracked:
        return JudgedState(Standing.UNKNOWN, equal.generation)
    return JudgedState(Standing.CONFLICT if equal.conflict else Standing.SUPERSEDED, equal.generation)
