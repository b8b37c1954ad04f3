"""What a verification found out, of one point or of a repository."""

from __future__ import annotations

from collections.abc import Mapping

from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One object that is not as it was written, and the points that cannot be restored in full for it."""

    object: str
    what: str
    harms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PointReport:
    """``unreadable`` are objects that gave an error, ``unsteady`` such as were wrong once and right the second time."""

    point_id: str
    findings: tuple[Finding, ...]
    blocks: int
    bytes_read: int
    unreadable: tuple[Finding, ...] = ()
    unsteady: tuple[Finding, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether the point can be restored in full: a finding may be about what restoring does not need."""
        return not any(self.point_id in finding.harms for finding in (*self.findings, *self.unreadable))


@dataclass(frozen=True, slots=True)
class RepositoryReport:
    """``points`` are those looked at; ``harmed`` those that cannot be restored in full.

    ``packs`` are there, of which ``packs_read`` were read, and ``blocks`` is how many blocks were.
    ``damaged_packs`` are there, but later points should not use them: see ``Repository.condemn``; ``pardoned_packs``
    are condemned and were proved sound. ``unreadable`` and ``unsteady`` are as in a point's report.
    """

    findings: tuple[Finding, ...]
    points: tuple[str, ...]
    packs: int
    bytes_read: int
    damaged_packs: tuple[bytes, ...] = ()
    blocks: int = 0
    unreadable: tuple[Finding, ...] = ()
    unsteady: tuple[Finding, ...] = ()
    pardoned_packs: tuple[bytes, ...] = ()
    packs_read: int = 0

    @property
    def harmed(self) -> tuple[str, ...]:
        return tuple(sorted({point for finding in self.findings for point in finding.harms}))

    @property
    def sound(self) -> bool:
        return not self.findings and not self.unreadable


def findings_of(found: Mapping[tuple[str, str], set[str]]) -> tuple[Finding, ...]:
    """Return what was found, by object and words, with the points that it harms."""
    return tuple(Finding(name, what, tuple(sorted(harms))) for (name, what), harms in sorted(found.items()))
