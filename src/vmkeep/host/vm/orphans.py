"""State in libvirt's directories that belongs to no VM: found, and left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from vmkeep.config import Settings
from vmkeep.custody.orphans import Claims, Entry, Orphan, orphaned_entries, orphaned_secrets
from vmkeep.errors import HypervisorUnavailable, VmkeepError
from vmkeep.host.tasks.orphans import OrphansFound
from vmkeep.host.vm.claims import claims_of_vms, roots_to_judge
from vmkeep.hypervisor import Hypervisor
from vmkeep.statefiles.location import StateRoots
from vmkeep.statefiles.remains import MOST_ENTRIES, TooManyNames, entries_of, inventory

Kind = Literal["tpm", "nvram"]
_MOST_ORPHANS: Final = 1000
"""That are read and told at a time."""


def look_for_orphans(hypervisor: Hypervisor, settings: Settings) -> OrphansFound:
    """Return what belongs to no VM; see the task."""
    roots = roots_to_judge(hypervisor.uri)
    claims = claims_of_vms(hypervisor, settings)
    problems = [f"{doubt}; so it is not known what belongs to nobody" for doubt in claims.doubts]
    orphans: list[Orphan] = []
    for kind, root, entry in _unclaimed(roots, claims, problems):
        if len(orphans) == _MOST_ORPHANS:
            problems.append(f"there are more than {_MOST_ORPHANS}; the others are told when these are gone")
            break
        try:
            found = inventory(root, entry.name, kind)
        except OSError as error:
            problems.append(f"{root / entry.name} could not be read: {error.strerror or error}")
            continue
        if found is not None:
            orphans.append(found)
    return OrphansFound(tuple(orphans), orphaned_secrets(_secrets(hypervisor, problems), claims), tuple(problems))


def count_orphans(hypervisor: Hypervisor, settings: Settings) -> tuple[int, int]:
    """Return how many files and directories, and how many secrets, belong to no VM, without reading any."""
    claims = claims_of_vms(hypervisor, settings)
    entries = tuple(_unclaimed(roots_to_judge(hypervisor.uri), claims, []))
    return len(entries), len(orphaned_secrets(_secrets(hypervisor, []), claims))


def orphan_now(orphan: Orphan, hypervisor: Hypervisor, settings: Settings) -> Orphan | None:
    """Return what an orphan is at this moment; None when it is none any more. Raises OSError."""
    roots = roots_to_judge(hypervisor.uri)
    path = Path(orphan.path)
    if (orphan.kind, path.parent) not in _places(roots):
        return None
    claims = claims_of_vms(hypervisor, settings)
    unclaimed = _orphaned(orphan.kind, path.parent, entries_of(path.parent), claims)
    if path.name not in {entry.name for entry in unclaimed}:
        return None
    return inventory(path.parent, path.name, orphan.kind)


def _places(roots: StateRoots) -> tuple[tuple[Kind, Path], ...]:
    return ("tpm", roots.swtpm), ("nvram", roots.nvram)


def _unclaimed(roots: StateRoots, claims: Claims, problems: list[str]) -> Iterator[tuple[Kind, Path, Entry]]:
    for kind, root in _places(roots):
        try:
            entries = entries_of(root)
        except TooManyNames:
            problems.append(f"{root} holds more than {MOST_ENTRIES} names, and was not looked at")
            continue
        except OSError as error:
            problems.append(f"{root} could not be read: {error.strerror or os.strerror(error.errno or 0)}")
            continue
        for entry in _orphaned(kind, root, entries, claims):
            yield kind, root, entry


def _orphaned(kind: Kind, root: Path, entries: tuple[Entry, ...], claims: Claims) -> tuple[Entry, ...]:
    return orphaned_entries(kind, os.path.realpath(root), entries, claims)  # claims have real paths as well


def _secrets(hypervisor: Hypervisor, problems: list[str]) -> dict[str, str]:
    try:
        return hypervisor.secrets.listed("vtpm")
    except HypervisorUnavailable:
        raise
    except VmkeepError as error:  # of a libvirt without the driver of secrets
        problems.append(f"libvirt's secrets could not be listed: {error}")
        return {}
