"""Which versions of a VM's state files are kept for their own sake, when no point and no snapshot needs them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from vmkeep.planning.retention import KeepRule, kept_by
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """A version of a state file. ``created`` is ISO 8601 in UTC; ``held``: a point or a snapshot keeps it."""

    id: str
    kind: str
    created: str
    conflict: bool
    held: bool


def kept_for_themselves(versions: Iterable[HeldVersion], rule: KeepRule, meant: Iterable[str] = ()) -> dict[str, str]:
    """Return why versions are kept that nothing else holds, by id: those that are not named may go.

    ``versions`` are those of one VM, of each kind the newest first; ``meant`` are ids of those that somebody put in
    place on purpose. The newest of each kind is always kept, and so is one that is a conflict: a person decides.
    """
    found: dict[str, str] = {}
    of_kind: dict[str, list[HeldVersion]] = {}
    for version in versions:
        of_kind.setdefault(version.kind, []).append(version)
    for mine in of_kind.values():
        accepted = [version for version in mine if not version.conflict]
        why = {version.id: "conflict" for version in mine if version.conflict}
        # Held ones count as well: what stands for an hour in a point need not be kept a second time.
        why |= {accepted[place].id: name for place, name in kept_by(rule, _moments(accepted)).items()}
        why |= {version.id: "placed" for version in accepted if version.id in set(meant)}
        if accepted:
            why[accepted[0].id] = "newest"
        found |= {version.id: why[version.id] for version in mine if version.id in why and not version.held}
    return found


def _moments(versions: Sequence[HeldVersion]) -> list[datetime]:
    return [datetime.fromisoformat(version.created) for version in versions]
