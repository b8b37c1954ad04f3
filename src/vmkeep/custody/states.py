"""What is known of the versions of a state file."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Protocol, TypeVar

from vmkeep.values import dataclass


class Because(StrEnum):
    """Why a state version was given a number of its own, by who gave it."""

    CHANGED = "changed"
    """It was no content that he knew of."""
    PLACED = "placed"
    """Somebody put it in place on purpose: a restore, a revert, an import, `state accept`."""
    RETURNED = "returned"
    """It was an older content of his, and nobody knew where the VM was, or that version could not be read any more."""


NOT_SAID = ""
"""In place of that, of a version that an older release made."""


@dataclass(frozen=True, slots=True)
class KnownState:
    """An accepted version of a state file; the same content again needs no new version.

    ``vouched``: somebody vouches for it. One that only hosts hold that nobody trusts has its number, and says nothing
    about a content: a new version is above it, and never the same. ``because`` is why it has its number. ``again``: a
    version with this content is a new one when it is met, and why; then the others need not be of any version.
    """

    kind: str
    version_id: str
    generation: int
    sha256: str
    size_bytes: int
    file: str
    vouched: bool = True
    because: str = NOT_SAID
    again: str = NOT_SAID


def vouched_states(known: Iterable[KnownState], kind: str) -> tuple[KnownState, ...]:
    """Return the versions of a kind that a content may equal, in their order."""
    return tuple(each for each in known if each.kind == kind and each.vouched and not each.again)


def why_new(known: Iterable[KnownState], kind: str, sha256: str) -> Because:
    """Return why a content that equals no version which can be referred to gets a number of its own."""
    same = [each for each in known if (each.kind, each.sha256) == (kind, sha256) and each.vouched]
    said = {each.again for each in same}
    if Because.PLACED in said:
        return Because.PLACED
    return Because.RETURNED if same else Because.CHANGED


def next_generation(known: Iterable[KnownState], kind: str) -> int:
    """Return the generation of a new version of a kind: above all that are known, whoever holds them."""
    return max((each.generation for each in known if each.kind == kind), default=0) + 1


@dataclass(frozen=True, slots=True)
class ChosenVersion:
    """A state version by its id, and the SHA-256 that the catalogue knows of it."""

    kind: str
    id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class KeptSecret:
    """What is held by an envelope that is vouched for: the secret of this UUID, for a state version."""

    version_id: str
    uuid: str


@dataclass(frozen=True, slots=True)
class SecretSource:
    """The secret that opens a TPM state, by its UUID, and the point or the pin whose envelope holds its value."""

    uuid: str
    point: str = ""
    pin: str = ""


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A secret that a host sealed into the envelope of a pin which is still to be put, and the version that it opens.

    ``version_id`` is empty for a TPM that has no state yet. The value is nowhere but in the envelope.
    """

    pin_id: str
    version_id: str
    usage: str
    uuid: str


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A state version that was put into the repository, and that nothing knows yet. ``created`` is ISO 8601 in UTC.

    ``because`` is why it has its number.
    """

    kind: str
    id: str
    generation: int
    sha256: str
    size_bytes: int
    created: str
    because: str = NOT_SAID


class Numbered(Protocol):
    """A state version, as far as it is asked which of several counts."""

    @property
    def conflict(self) -> bool: ...
    @property
    def generation(self) -> int: ...


N = TypeVar("N", bound=Numbered)


def that_counts(same: Iterable[N]) -> N | None:
    """Return of several versions with one content the one that counts: the newest that is no conflict, else the newest
    conflict; None of none.
    """
    return min(same, key=lambda each: (each.conflict, -each.generation), default=None)


class Reasoned(Protocol):
    """An accepted state version, as far as it is asked whether it is news."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def because(self) -> str: ...
    @property
    def made_here(self) -> bool: ...


def repeated_unawares(accepted: Iterable[Reasoned]) -> set[str]:
    """Return which versions repeat a content that is older here, because who made them did not know that it is.

    ``accepted`` are the versions of a VM that somebody vouches for. Another installation, which trusts nobody here,
    takes an older content for a new one; it says that it knew of no such content. What somebody put in place on purpose
    counts, what says nothing of all that, and what was made here.
    """
    found: set[str] = set()
    newest: dict[str, str] = {}
    met: set[tuple[str, str]] = set()
    for each in sorted(accepted, key=lambda each: each.generation):
        content = (each.kind, each.sha256)
        unaware = each.because == Because.CHANGED and not each.made_here
        if unaware and content in met and newest[each.kind] != each.sha256:
            found.add(each.id)
            continue
        met.add(content)
        newest[each.kind] = each.sha256
    return found
