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
