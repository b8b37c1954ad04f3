"""Let the catalogue agree with the marks of points in the repository: removals and protections that others put or took.

A removal hides its point as soon as somebody who is trusted here has signed it. One that nobody did is known, told
once, and hides nothing: whoever has the repository's key may ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from vmkeep.catalog import Catalog, PointProtection, PointRemoval
from vmkeep.errors import IntegrityError, ObjectMissing
from vmkeep.flows.hosts import meet_signers
from vmkeep.flows.point_marks import as_protection, as_removal

if TYPE_CHECKING:
    from vmkeep.repository.marks import Mark


class HeldMarks(Protocol):
    """The part of a repository that is asked: the marks of one kind."""

    def stored(self) -> dict[str, datetime]: ...

    def get(self, point_id: str) -> Mark: ...


class HoldsMarks(Protocol):
    """A repository, as far as its marks of points."""

    @property
    def removals(self) -> HeldMarks: ...

    @property
    def protections(self) -> HeldMarks: ...


def catch_up_on_marks(catalog: Catalog, repository: HoldsMarks) -> tuple[str, ...]:
    """Take over what is not known, and let go what is not there any more; return sentences for a person.

    Raises what listing the repository raises.
    """
    told: list[str] = []
    _removals(catalog, repository.removals, told.append)
    _protections(catalog, repository.protections, told.append)
    visible = frozenset(catalog.point_ids())
    for removal in catalog.removals():
        if removal.hides and removal.point_id in visible:
            catalog.hide_point(removal)
            told.append(
                f"point {removal.point_id} of VM {removal.vm_name!r} was deleted on host {removal.host} and is hidden "
                f"here as well{f': {removal.why}' if removal.why else ''}"
            )
    return tuple(told)


def _removals(catalog: Catalog, held: HeldMarks, tell: Callable[[str], None]) -> None:
    stored = held.stored()
    known = {each.point_id: each for each in catalog.removals()}
    for point_id in known.keys() - stored.keys():
        catalog.end_removal(point_id)  # it is gone, or was brought back and is found again
    fresh = _fresh(known, stored)
    for mark in _read(catalog, held, fresh, "removal", tell):
        catalog.hide_point(as_removal(mark, stored[mark.id]))
    asked = [each for each in catalog.removals() if each.point_id in fresh and not each.hides]
    for removal in asked:
        tell(
            f"host {removal.host} asks that point {removal.point_id} be removed, and nobody has trusted its key here: "
            "the point stays"
        )


def _protections(catalog: Catalog, held: HeldMarks, tell: Callable[[str], None]) -> None:
    stored = held.stored()
    known = catalog.protections()
    for point_id in known.keys() - stored.keys():
        catalog.end_protection(point_id)
    for mark in _read(catalog, held, _fresh(known, stored), "protection", tell):
        catalog.protect_point(as_protection(mark, stored[mark.id]))


def _fresh(
    known: Mapping[str, PointRemoval] | Mapping[str, PointProtection], stored: Mapping[str, datetime]
) -> dict[str, datetime]:
    """Return the marks that are not known, or were put anew, with the times at which the store got them."""
    return {
        point_id: at
        for point_id, at in stored.items()
        if point_id not in known or _is_other(known[point_id].stored_at, at)
    }


def _read(
    catalog: Catalog, held: HeldMarks, wanted: dict[str, datetime], noun: str, tell: Callable[[str], None]
) -> Iterator[Mark]:
    for point_id in sorted(wanted):
        try:
            mark = held.get(point_id)
        except ObjectMissing:
            continue  # deleted meanwhile
        except IntegrityError as error:
            tell(f"the {noun} of point {point_id} in the repository cannot be read: {error.message}")
            continue
        meet_signers(catalog, [(mark.signature, mark.host)])
        yield mark


def _is_other(known: str, stored: datetime) -> bool:
    """Return whether a mark was put anew since it was met."""
    return datetime.fromisoformat(known) != stored
