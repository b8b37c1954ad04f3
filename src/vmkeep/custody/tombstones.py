"""Tombstones: what must still be deleted on a host, and did not go when it was to go. No I/O.

A tombstone names what may be deleted by its content: a file that was put there since has another one, and stays. So it
gives nobody a right to more than what the first deletion had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from vmkeep.errors import InvalidRequest
from vmkeep.values import dataclass

ID_DIGITS: Final = 32
_FIRST_WAIT: Final = timedelta(minutes=10)
_LONGEST_WAIT: Final = timedelta(days=1)
_DOUBLINGS: Final = 8


class TombstoneState(StrEnum):
    """Where a tombstone stands."""

    OPEN = "open"
    """It was never tried again."""
    RETRIED = "retried"
    """It was tried again, and failed."""
    SETTLED = "settled"
    """Nothing is left to be done."""
    WAIVED = "waived"
    """Somebody said that what lies there stays, or was dealt with otherwise."""


TRANSITIONS: Final[Mapping[TombstoneState, frozenset[TombstoneState]]] = MappingProxyType(
    {
        TombstoneState.OPEN: frozenset({TombstoneState.RETRIED, TombstoneState.SETTLED, TombstoneState.WAIVED}),
        TombstoneState.RETRIED: frozenset({TombstoneState.RETRIED, TombstoneState.SETTLED, TombstoneState.WAIVED}),
        TombstoneState.SETTLED: frozenset(),
        TombstoneState.WAIVED: frozenset(),
    }
)
"""From each state, the states that may follow."""
UNSETTLED: Final = frozenset(state for state, following in TRANSITIONS.items() if following)


class TombstoneKind(StrEnum):
    """What is to be deleted."""

    STATE = "state"
    """Files of a TPM's state, in the directory that swtpm had."""
    SECRET = "secret"  # noqa: S105  a word, no secret
    """A secret of libvirt's."""


class Ending(StrEnum):
    """How a tombstone was settled."""

    NONE = ""
    """It was not."""
    DELETED = "deleted"
    """A retry deleted it."""
    GONE = "gone"
    """It was gone: somebody else deleted it."""
    SUPERSEDED = "superseded"
    """It is needed again: the VM has a TPM there, or names the secret."""


class Protection(StrEnum):
    """What protects the content of files that are left."""

    NONE = "none"
    """Nothing: it is not encrypted."""
    BESIDE = "beside"
    """It is encrypted, and libvirt keeps the secret in plain on the same host."""
    SEALED = "sealed"
    """It is encrypted, and libvirt keeps the secret sealed to the host: from 12.1 on."""
    MEMORY = "memory"
    """It is encrypted, and libvirt has the secret in its memory only."""
    AWAY = "away"
    """It is encrypted, and the secret is not on the host any more."""
    EMPTY = "empty"
    """There is nothing in it."""
    UNKNOWN = "unknown"
    """It could not be read."""


@dataclass(frozen=True, slots=True)
class TombstoneFile:
    """A file that may be deleted: one that has this content, or an empty one and swtpm's lock, which have none.

    ``sha256`` and ``version_id`` are empty for a file without content. ``why`` is what kept it, a sentence.
    """

    path: str
    sha256: str
    size_bytes: int
    version_id: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What must still be deleted on a host. ``place`` is a directory, or the UUID of a secret.

    ``origin`` is the operation that could not delete it, ``secret`` the UUID of the secret that opens the files, empty
    for plain ones. Times are ISO 8601 in UTC. ``tries`` counts those after the first; ``who`` and ``why`` are of a
    tombstone that was waived.
    """

    id: str
    origin: str
    kind: TombstoneKind
    host_uuid: str
    host_name: str
    vm_uuid: str
    vm_name: str
    place: str
    since: str
    files: tuple[TombstoneFile, ...] = ()
    protection: Protection = Protection.UNKNOWN
    secret: str = ""
    state: TombstoneState = TombstoneState.OPEN
    tries: int = 0
    last_at: str | None = None
    last_error: str = ""
    ended: str | None = None
    ending: Ending = Ending.NONE
    who: str = ""
    why: str = ""

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done."""
        return self.state in UNSETTLED

    @property
    def paths(self) -> tuple[str, ...]:
        """What is to go, for people: the files, or the directory where only that is left."""
        return tuple(file.path for file in self.files) or (self.place,)

    def failed(self, at: str, error: str) -> Tombstone:
        """Return it as it is after a try that failed. Raises InvalidRequest when nothing is to be done any more."""
        again = self._moved(TombstoneState.RETRIED)
        return replace(again, tries=self.tries + 1, last_at=at, last_error=error)

    def settled(self, at: str, ending: Ending) -> Tombstone:
        """Return it as it is when nothing is left to be done. Raises as ``failed``."""
        return replace(self._moved(TombstoneState.SETTLED), ended=at, ending=ending)

    def waived(self, at: str, who: str, why: str) -> Tombstone:
        """Return it as it is when somebody has let it be. Raises as ``failed``."""
        return replace(self._moved(TombstoneState.WAIVED), ended=at, who=who, why=why)

    def is_due(self, now: datetime) -> bool:
        """Return whether a command that was not asked to may try it: ten minutes after the first try, then ever later.

        A clock that was set back lets it be tried.
        """
        if not self.is_open:
            return False
        last = datetime.fromisoformat(self.last_at or self.since)
        wait = min(_FIRST_WAIT * 2 ** min(self.tries, _DOUBLINGS), _LONGEST_WAIT)
        return not last <= now < last + wait

    def follows(self, known: Tombstone) -> bool:
        """Return whether this may take the place of ``known``, which is as it was when it was read."""
        changing = {"state", "tries", "last_at", "last_error", "ended", "ending", "who", "why"}
        same = all(
            getattr(self, name) == getattr(known, name) for name in self.__dataclass_fields__ if name not in changing
        )
        return same and self.state in TRANSITIONS[known.state]

    def _moved(self, to: TombstoneState) -> Tombstone:
        if to not in TRANSITIONS[self.state]:
            raise InvalidRequest(
                f"tombstone {self.id} is {self.state} already",
                vm=self.vm_name,
                hint="`vmkeep tombstones list --all` shows what became of it.",
            )
        return replace(self, state=to)


def tombstone_id(origin: str, kind: TombstoneKind, place: str) -> str:
    """Return the id of a tombstone: the same for whoever writes it again after a kill."""
    return hashlib.sha256(f"{origin} {kind} {place}".encode()).hexdigest()[:ID_DIGITS]


def told_of_protection(protection: Protection) -> str:
    """Return what protects files, for people."""
    return {
        Protection.NONE: "not encrypted",
        Protection.BESIDE: "encrypted, with libvirt's secret in plain on the same host",
        Protection.SEALED: "encrypted, with libvirt's secret sealed to the host",
        Protection.MEMORY: "encrypted, with libvirt's secret in its memory only",
        Protection.AWAY: "encrypted, and libvirt's secret is gone from the host",
        Protection.EMPTY: "without content",
        Protection.UNKNOWN: "whether it is encrypted is not known",
    }[protection]


def chosen_tombstones(tombstones: Iterable[Tombstone], host_uuid: str) -> tuple[Tombstone, ...]:
    """Return those of a host on which something is still to be done."""
    return tuple(each for each in tombstones if each.is_open and each.host_uuid == host_uuid)
