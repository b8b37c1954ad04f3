"""State files that were read, put into the repository: as new versions, or as the ones that are there already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from vmkeep.custody.states import KnownState, NewVersion, next_generation, vouched_states, why_new
from vmkeep.errors import IntegrityError
from vmkeep.repository import Repository, StateRef, StateVersion
from vmkeep.statefiles.capture import CapturedState
from vmkeep.values import dataclass


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


@dataclass(frozen=True, slots=True)
class StoredStates:
    """``refs`` refer to all state files of a moment, ``new`` are the versions that it added. ``older`` are sentences
    about those that are a version from before the newest.
    """

    refs: tuple[StateRef, ...]
    new: tuple[StateVersion, ...]
    older: tuple[str, ...]

    def new_versions(self) -> tuple[NewVersion, ...]:
        """Return what was added, as it crosses the door."""
        why = {ref.version_id: ref.because for ref in self.refs}
        return tuple(
            NewVersion(each.kind, each.id, each.generation, each.sha256, each.size_bytes, each.created, why[each.id])
            for each in self.new
        )


def store_states(
    into: PutsState,
    repository: Repository,
    read: Iterable[CapturedState],
    known: Sequence[KnownState],
    vm_uuid: str,
) -> StoredStates:
    """Store the state files that changed.

    ``known`` are versions that they may equal, the newest of each kind first. Content that is a version's already, and
    can still be read, is only referred to. So an older file that somebody put there never becomes the newest version;
    one that was put in place on purpose is not among the older ones of ``known``, and does. What nobody vouches for is
    never referred to: with a version of another host that repeats an older content, that content would count again.
    """
    refs, new, older = [], [], []
    for state in read:
        mine = vouched_states(known, state.kind)
        found = ((known_one, _stored(repository, known_one, state)) for known_one in mine)
        equal, stored = next(((each, version) for each, version in found if version is not None), (None, None))
        if equal is not None and stored is not None:
            refs.append(replace(stored.ref(), because=equal.because))
            if equal is not mine[0]:
                older.append(_told_of_older(state, equal, mine[0]))
            continue
        version = into.put_state(
            state.content,
            vm_uuid=vm_uuid,
            kind=state.kind,
            generation=next_generation(known, state.kind),
            file=state.file,
            owner=state.owner,
            group=state.group,
            mode=state.mode,
        )
        new.append(version)
        refs.append(replace(version.ref(), because=str(why_new(known, state.kind, version.sha256))))
    return StoredStates(tuple(refs), tuple(new), tuple(older))


def _told_of_older(state: CapturedState, equal: KnownState, newest: KnownState) -> str:
    what = "TPM state is" if state.kind == "tpm" else "UEFI variables are"
    return (
        f"The VM's {what} version {equal.generation}, and {newest.generation} is the newest: somebody put an older "
        "file there. It stays an older one; `vmkeep state accept` makes what lies there count."
    )


def _stored(repository: Repository, known: KnownState, read: CapturedState) -> StateVersion | None:
    """Return a version as the repository has it, if it has this content under this name and can still be read.

    The catalogue tells the name of a version that a point holds; of others it is empty.
    """
    if known.sha256 != read.sha256 or known.file not in ("", read.file):
        return None
    try:
        version, content = repository.state(known.version_id)
    except IntegrityError:
        return None
    return version if content == read.content and version.file == read.file else None
