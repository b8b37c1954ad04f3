"""What differs between two versions of a state file, or between one and what lies on the host. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable

from vmkeep.catalog import Catalog, CatalogState
from vmkeep.custody.differences import StateDifference, compare_states
from vmkeep.flows.vm_states import chosen_of, named_version, versions_kept
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.states import CompareState
from vmkeep.repository import Repository
from vmkeep.repository.chosen import read_chosen
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class StateCompared:
    """Two contents of a state file of a VM. ``after`` is None for the file as it lies on the host."""

    vm_uuid: str
    before: CatalogState
    after: CatalogState | None
    difference: StateDifference


def compare_kept_state(
    catalog: Catalog,
    repository: Callable[[], Repository],
    host: Callable[[], Host],
    vm: str,
    kind: str,
    versions: tuple[str, str | None],
) -> StateCompared:
    """Compare two versions of a kind of state of a VM, or one and the file on the host.

    A version is named by its number, or by the first 8 or more digits of its SHA-256. Raises VmNotFound, InvalidRequest
    for a version that there is not, and what reading a version or the file raises.
    """
    kept = versions_kept(catalog, vm, kind)
    before = named_version(kept, versions[0], vm, kind).version
    if versions[1] is None:
        found = host().ask(CompareState(before.vm_uuid, chosen_of(before)))
        return StateCompared(before.vm_uuid, before, None, found)
    after = named_version(kept, versions[1], vm, kind).version
    contents = [read_chosen(repository(), each.vm_uuid, chosen_of(each))[1] for each in (before, after)]
    return StateCompared(before.vm_uuid, before, after, compare_states(kind, *contents))
