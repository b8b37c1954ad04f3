"""What is known of the versions of a state file."""

from __future__ import annotations

from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class KnownState:
    """An accepted version of a state file; the same content again needs no new version."""

    kind: str
    version_id: str
    generation: int
    sha256: str
    size_bytes: int
    file: str


@dataclass(frozen=True, slots=True)
class ChosenVersion:
    """A state version by its id, and the SHA-256 that the catalogue knows of it."""

    kind: str
    id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A state version that was put into the repository, and that nothing knows yet. ``created`` is ISO 8601 in UTC."""

    kind: str
    id: str
    generation: int
    sha256: str
    size_bytes: int
    created: str
