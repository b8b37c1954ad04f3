"""What differs between two versions of a state file, or between one and what lies on the host. Nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from vmkeep.catalog import Catalog, CatalogState
from vmkeep.commandline import command_line
from vmkeep.custody.differences import StateDifference, compare_states
from vmkeep.errors import InvalidRequest
from vmkeep.flows.vm_states import VersionKept, chosen_of, versions_kept
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.states import CompareState
from vmkeep.repository import Repository
from vmkeep.repository.chosen import read_chosen
from vmkeep.values import dataclass

_NUMBER: Final = re.compile(r"[0-9]{1,7}")
_BEGINNING: Final = re.compile(r"[0-9a-f]{8,64}")


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
    before = named_version(kept, versions[0], vm, kind)
    if versions[1] is None:
        found = host().ask(CompareState(before.vm_uuid, chosen_of(before)))
        return StateCompared(before.vm_uuid, before, None, found)
    after = named_version(kept, versions[1], vm, kind)
    contents = [read_chosen(repository(), each.vm_uuid, chosen_of(each))[1] for each in (before, after)]
    return StateCompared(before.vm_uuid, before, after, compare_states(kind, *contents))


def named_version(kept: Sequence[VersionKept], text: str, vm: str, kind: str) -> CatalogState:
    """Return the version that a number or the beginning of a hash means.

    Of two with one number that is the one which counts: a conflict is named by its hash. Raises InvalidRequest.
    """
    if _NUMBER.fullmatch(text):
        named = [each.version for each in kept if each.version.generation == int(text)]
        named = [each for each in named if not each.conflict] or named
    elif _BEGINNING.fullmatch(text.lower()):
        named = [each.version for each in kept if each.version.sha256.startswith(text.lower())]
    else:
        named = []
    # Versions with one content are the same to whoever names it by that.
    if len({each.sha256 for each in named}) == 1:
        return named[0]
    told = "several versions" if named else "no version"
    raise InvalidRequest(
        f"{text!r} means {told} of the {kind} state of VM {vm!r}",
        vm=vm,
        hint=f"`{command_line('vmkeep state versions', vm)}` lists them; name one by its number or its SHA-256.",
    )
