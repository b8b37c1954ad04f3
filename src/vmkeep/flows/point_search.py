"""Find the point that a person names, after the catalogue has caught up with the repository."""

from __future__ import annotations

from collections.abc import Callable

from vmkeep.catalog import Catalog, CatalogPoint, PointRemoval
from vmkeep.catalog.naming import SHORTEST_PREFIX
from vmkeep.commandline import command_line
from vmkeep.errors import ObjectDamaged, PointNotFound, VmkeepError
from vmkeep.flows.catch_up import CaughtUp, Counts, catch_up, hide_marked, missing_point
from vmkeep.flows.hosts import told_of_maker
from vmkeep.flows.installation import DamagedPoint, Premises
from vmkeep.flows.patience import patiently
from vmkeep.host.tasks.survey import Progress
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class FoundPoint:
    """The point, and what is to be said before it is used."""

    point: CatalogPoint
    told: tuple[str, ...] = ()


def search_point(premises: Premises, text: str, watch: Callable[[Progress], None]) -> FoundPoint:
    """Return the point that an id, a beginning of one, VM@latest or VM@TIME means, by all that the repository holds.

    When the repository cannot be listed, an id means what it means in the catalogue, and that is said; VM@latest and
    VM@TIME mean nothing then. Raises PointNotFound, ObjectDamaged for one of which there is only a damaged record, what
    opening and listing the repository raise, and GivenUp when its storage does not answer.
    """
    found = search_stored(premises, text, watch)
    if isinstance(found, DamagedPoint):
        remedy = command_line("vmkeep point delete", found.point, options="--yes")
        raise ObjectDamaged(
            f"point {found.point} cannot be used: {found.message}",
            path=f"points/{found.point}",
            hint=f"The other points are not touched by it. `{remedy}` removes it.",
        )
    return found


def search_stored(premises: Premises, text: str, watch: Callable[[Progress], None]) -> FoundPoint | DamagedPoint:
    """Return what ``search_point`` does, and a point of which there is only a damaged record as that."""
    catalog = premises.catalog
    if catalog.repository() is None:
        return FoundPoint(catalog.find_point(text))
    limit_seconds = premises.settings.stalled_after_seconds
    repository = patiently(lambda: premises.repository, limit_seconds, watch=watch)
    by_id = "@" not in text
    try:
        with catalog.copy_written():  # where the home cannot be written, what is restored must be the right point too
            caught = patiently(
                lambda: catch_up(catalog, repository, _counts(catalog, text)), limit_seconds, watch=watch
            )
    except VmkeepError as error:
        if not by_id:
            error.hint = _hint_of_known(catalog, text)
            raise
        told = f"whether the repository holds points that are not known here could not be told: {error.message}"
        return FoundPoint(catalog.find_point(text), (told,))
    try:
        found = catalog.find_point(text)
    except PointNotFound as error:
        meant = [damaged for damaged in caught.damaged if damaged.point.startswith(text.lower())]
        if len(text) < SHORTEST_PREFIX or len(meant) != 1:
            error.hint = _hint_of_hidden(catalog, text) or error.hint
            raise _with_notes(error, caught) from None
        return meant[0]
    except VmkeepError as error:
        raise _with_notes(error, caught) from None
    if not by_id and found.id in caught.missing:
        raise missing_point(found, repository.location)
    return FoundPoint(found, (*caught.sentences(), *_told_of_trust(catalog, found, by_id=by_id)))


def search_hidden(premises: Premises, text: str, watch: Callable[[Progress], None]) -> PointRemoval:
    """Return the removal of the hidden point that an id, or the beginning of one, means.

    Raises PointNotFound, and what opening and listing the repository raise.
    """
    catalog, repository = premises.catalog, premises.repository
    patiently(lambda: hide_marked(catalog, repository), premises.settings.stalled_after_seconds, watch=watch)
    wanted = text.lower()
    found = [each for each in catalog.removals() if each.point_id.startswith(wanted)]
    if len(wanted) < SHORTEST_PREFIX or len(found) != 1:
        several = f"{len(found)} deleted points begin" if len(found) > 1 else "no deleted point begins"
        raise PointNotFound(
            f"{several} with {text!r}",
            hint="`vmkeep points --deleted` lists those that can come back; what is not among them is gone for good.",
        )
    return found[0]


def _hint_of_hidden(catalog: Catalog, text: str) -> str | None:
    if not catalog.is_anything_marked():
        return None
    from vmkeep.flows.point_marks import told_of_hidden

    return told_of_hidden(catalog, text, SHORTEST_PREFIX)


def _with_notes(error: VmkeepError, caught: CaughtUp) -> VmkeepError:
    """Say with the error what was found before it: nobody would hear of it again."""
    for sentence in caught.sentences():
        error.add_note(sentence)
    return error


def _told_of_trust(catalog: Catalog, found: CatalogPoint, *, by_id: bool) -> tuple[str, ...]:
    """Return what is to be said of who made a point, and of later ones that were passed over."""
    passed = () if by_id else catalog.newer_distrusted(found)
    told = told_of_maker(found)
    over = f"later points of VM {found.vm_name!r}, of distrusted hosts, are passed over: {', '.join(passed)}"
    return (*([over] if passed else []), *([told] if told else []))


def _counts(catalog: Catalog, text: str) -> Counts:
    """Return which VMs of the repository are meant, besides those that the catalogue knows."""
    name, at, _ = text.rpartition("@")
    if at:
        uuids = frozenset(catalog.vms_named(name))
        if uuids:
            return lambda point: point.vm_uuid in uuids
        return lambda point: name in (point.vm_name, point.vm_uuid)
    beginning = text.lower()
    return lambda point: point.id.startswith(beginning)


def _hint_of_known(catalog: Catalog, text: str) -> str:
    try:
        known = catalog.find_point(text)
    except PointNotFound:
        return "Which point is the last one cannot be told without the repository's list of points."
    return (
        f"Which point {text} is cannot be told without the repository's list of points. The last one that is known "
        f"here is {known.id}, of {known.created}; named by its id it can be restored all the same."
    )
