"""What is known of the versions of a state file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class KnownState:
    """An accepted version of a state file; the same content again needs no new version.

    ``vouched``: somebody vouches for it. One that only hosts hold that nobody trusts has its number, and says nothing
    about a content: a new version is above it, and never the same.
    """

    kind: str
    version_id: str
    generation: int
    sha256: str
    size_bytes: int
    file: str
    vouched: bool = True


def vouched_states(known: Iterable[KnownState], kind: str) -> tuple[KnownState, ...]:
    """Return the versions of a kind that a content may equal, in their order."""
    return tuple(each for each in known if each.kind == kind and each.vouched)


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
    """A state version that was put into the repository, and that nothing knows yet. ``created`` is ISO 8601 in UTC."""

    kind: str
    id: str
    generation: int
    sha256: str
    size_bytes: int
    created: str


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
