"""How a person names a point: its id, the beginning of one, VM@latest, or VM@TIME. The rules, whoever keeps the points.

Raises PointNotFound with what would have been meant, and ChoiceRequired where a point that nobody vouches for is newer
than one that is proved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple, Protocol

from vmkeep.catalog.records import CatalogPoint, Trust
from vmkeep.catalog.times import TIME_FORMS, end_of_named_time
from vmkeep.commandline import command_line, shell_word
from vmkeep.errors import ChoiceRequired, PointNotFound

SHORTEST_PREFIX: Final = 4
LATEST: Final = "@latest"
_LISTED_CANDIDATES: Final = 8


class Candidate(NamedTuple):
    """A point as far as it is looked at before it is chosen. ``safety``: nobody asked for it."""

    id: str
    created: str
    safety: bool
    signed_by: str | None
    trust: Trust


class KeptPoints(Protocol):
    """The points that a name may mean."""

    def get(self, point_id: str) -> CatalogPoint | None: ...

    def beginning_with(self, text: str, most: int) -> Sequence[CatalogPoint]:
        """Return points whose ids begin so, oldest first, no more than ``most``."""
        ...

    def candidates(self, vm_uuid: str) -> Iterable[Candidate]:
        """Return the points of a VM, the last made first."""
        ...

    def uuids_named(self, text: str) -> Sequence[str]:
        """Return the UUIDs of the VMs that a name or UUID means."""
        ...


def find(kept: KeptPoints, text: str) -> CatalogPoint:
    """Return the point that a full id, a unique beginning of one (4 characters or more), VM@latest or VM@TIME means.

    Raises PointNotFound, with the candidates when there are several.
    """
    exact = kept.get(text.lower())
    if exact is not None:
        return exact
    if text.endswith(LATEST):
        return _newest(kept, text.removesuffix(LATEST), None)
    name, at, time = text.rpartition("@")
    if at:
        return _at_time(kept, name, time)
    wanted = text.lower()
    hint = _hint_of_vm(kept, text)
    if len(wanted) < SHORTEST_PREFIX:
        raise PointNotFound(
            f"{text!r} is too short for the id of a point",
            hint=hint or f"Give {SHORTEST_PREFIX} characters of it or more.",
        )
    found = kept.beginning_with(wanted, _LISTED_CANDIDATES + 1)
    if not found:
        raise PointNotFound(f"No point has an id that begins with {text!r}", hint=hint)
    if len(found) > 1:
        shown = [f"{point.id} ({point.vm_name}, {point.created})" for point in found[:_LISTED_CANDIDATES]]
        more = " and more" if len(found) > _LISTED_CANDIDATES else ""
        raise PointNotFound(
            f"{text!r} fits several points: {', '.join(shown)}{more}", hint="Give more characters of the id."
        )
    return found[0]


def _hint_of_vm(kept: KeptPoints, text: str) -> str | None:
    """Return what to write for a point of the VM that was named in place of one."""
    if not kept.uuids_named(text):
        return None
    return f"That is a VM. Its newest point is {shell_word(text + LATEST)}; `vmkeep points` lists all."


def _at_time(kept: KeptPoints, name: str, time: str) -> CatalogPoint:
    until = end_of_named_time(time)
    if until is None:
        raise PointNotFound(f'{time!r} is neither "latest" nor a time', hint=f"A time is written as {TIME_FORMS}.")
    return _newest(kept, name, until)


def _newest(kept: KeptPoints, name: str, until: datetime | None) -> CatalogPoint:
    uuids = kept.uuids_named(name)
    newest = [point for uuid in uuids if (point := _meant(kept, uuid, until)) is not None]
    if not newest:
        raise _none_found(kept, name, uuids, until)
    if len(newest) > 1:
        shown = ", ".join(f"{point.id} (VM {point.vm_uuid}, {point.created})" for point in newest)
        raise PointNotFound(
            f"Several VMs are called {name!r}; their latest points: {shown}",
            vm=name,
            hint="Name the point by its id, or the VM by its UUID.",
        )
    return newest[0]


def _meant(kept: KeptPoints, vm_uuid: str, until: datetime | None) -> CatalogPoint | None:
    """Return the newest point that is meant by VM@latest or VM@TIME, without those of hosts that are distrusted.

    Raises ChoiceRequired when the newest is not vouched for (signed by an unknown key, or not at all) and an older one
    is: who has the repository's key can make such a one, and who has lost a trusted host may need just that.
    """
    doubtful: Candidate | None = None
    for point in kept.candidates(vm_uuid):
        if point.safety or (until is not None and datetime.fromisoformat(point.created) > until):
            continue
        if point.trust is Trust.DISTRUSTED:
            continue
        if not (point.trust.is_proved or point.signed_by == ""):
            doubtful = doubtful or point
            continue
        found = kept.get(point.id)
        if doubtful is not None and found is not None:
            raise _doubt(doubtful, found)
        return found
    return None if doubtful is None else kept.get(doubtful.id)


def _doubt(doubtful: Candidate, vouched: CatalogPoint) -> ChoiceRequired:
    signed = f"is signed with a key that nobody has trusted here, {doubtful.signed_by}"
    trust = command_line("vmkeep host trust", doubtful.signed_by or "")
    remedy = f"`{trust}` trusts the key, `vmkeep host distrust` shuts it out"
    if not doubtful.signed_by:
        signed, remedy = "is not signed", "hosts of an older vmkeep sign nothing: bring them up to date"
    return ChoiceRequired(
        f"The newest point of VM {vouched.vm_name!r}, {doubtful.id} of {doubtful.created}, {signed}; the newest one "
        f"that is proved is {vouched.id} of {vouched.created}",
        vm=vouched.vm_name,
        hint=f"Name the one that you mean by its id; {remedy}.",
    )


def _none_found(kept: KeptPoints, name: str, uuids: Sequence[str], until: datetime | None) -> PointNotFound:
    found = [point for uuid in uuids for point in kept.candidates(uuid)]
    made = [point for point in found if not point.safety]
    if made and until is not None and not all(point.trust is Trust.DISTRUSTED for point in made):
        first = min(made, key=lambda point: point.created)
        words = f"VM {name!r} has no point from {until.isoformat(timespec='seconds')} or before"
        return PointNotFound(words, vm=name, hint=f"The earliest by its clock, {first.id}, is of {first.created}.")
    distrusted = [point.id for point in made if point.trust is Trust.DISTRUSTED]
    if distrusted and len(distrusted) == len(made):
        words = f"VM {name!r} has points of distrusted hosts only: {', '.join(distrusted)}"
        hint = "Name one by its id to restore its data with --output; `vmkeep host list` shows the hosts."
        return PointNotFound(words, vm=name, hint=hint)
    if found and not made:
        ids = [point.id for point in found]
        words = f"VM {name!r} has safety points only, which restores in place took: {', '.join(ids)}"
        return PointNotFound(words, vm=name, hint="Name one by its id to go back to the state that was left.")
    return PointNotFound(f"There is no point of a VM {name!r}", vm=name)
