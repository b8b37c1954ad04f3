"""State files that were read, put into the repository: as new versions, or as the ones that are there already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from vmkeep.custody.states import KnownState
from vmkeep.errors import IntegrityError
from vmkeep.repository import Repository, StateRef, StateVersion
from vmkeep.statefiles.capture import CapturedState


class PutsState(Protocol):
    """A repository, or a writer of a point."""

    def put_state(
        self,
        content: bytes,
        *,
        vm_uuid: str,
        kind: str,
        generation: int,
        file: str,
        owner: str,
        group: str,
        mode: int,
    ) -> StateVersion: ...


def store_states(
    into: PutsState,
    repository: Repository,
    read: Iterable[CapturedState],
    newest: Sequence[KnownState],
    vm_uuid: str,
) -> tuple[list[StateRef], list[StateVersion]]:
    """Store the state files that changed, and return what refers to all of them, and the new versions.

    Content that is the newest version's already, and can still be read, is only referred to.
    """
    refs, new = [], []
    known = {state.kind: state for state in newest}
    for state in read:
        before = known.get(state.kind)
        if before is not None and _is_stored(repository, before, state):
            kind, version_id, generation = before.kind, before.version_id, before.generation
            refs.append(StateRef(kind, version_id, generation, before.sha256, before.size_bytes, before.file))
            continue
        version = into.put_state(
            state.content,
            vm_uuid=vm_uuid,
            kind=state.kind,
            generation=before.generation + 1 if before is not None else 1,
            file=state.file,
            owner=state.owner,
            group=state.group,
            mode=state.mode,
        )
        new.append(version)
        refs.append(version.ref())
    return refs, new


def _is_stored(repository: Repository, before: KnownState, read: CapturedState) -> bool:
    """Return whether the newest version has this content and can still be read."""
    if (before.sha256, before.file) != (read.sha256, read.file):
        return False
    try:
        return repository.state(before.version_id)[1] == read.content
    except IntegrityError:
        return False
