"""The order of a VM's points: that of the events that made them, which no clock decides.

A point carries an order number. It is greater than that of every point of its VM that its maker knew, so a clock that
is wrong or is set changes nothing. Two installations that write at the same time may draw one number, and points of
older releases have none; what is done then stands in docs/internals/repository-format.md, section 8a.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class Made:
    """A point as its order needs it. ``created`` is ISO 8601 in UTC, always in one form; ``sequence`` its number."""

    id: str
    parent: str | None
    created: str
    sequence: int | None = None


class Place(NamedTuple):
    """Where a point stands among those of its VM: the smaller the earlier. Comparable within one VM only.

    ``number`` is the greatest among its own and those of the points that it descends from, 0 where none has one;
    ``clock`` and ``depth`` count within one number only.
    """

    number: int
    clock: str
    depth: int
    id: str


def places(points: Iterable[Made]) -> dict[str, Place]:
    """Return the place of each of one VM's points, by id. A point always comes after the one it descends from."""
    known = {point.id: point for point in points}
    found: dict[str, Place] = {}
    for point_id in sorted(known):  # so that a circle, which only a broken writer makes, is cut at the same place
        for point in reversed(list(_unplaced(known, found, point_id))):
            found[point.id] = _after(found.get(point.parent or ""), point)
    return found


def _unplaced(known: Mapping[str, Made], found: Mapping[str, Place], point_id: str) -> Iterator[Made]:
    """Yield a point and those it descends from, up to the first whose place is known."""
    met: set[str] = set()
    point = known.get(point_id)
    while point is not None and point.id not in found and point.id not in met:
        met.add(point.id)
        yield point
        point = known.get(point.parent or "")


def _after(above: Place | None, point: Made) -> Place:
    number = point.sequence or 0
    if above is None or number > above.number:
        return Place(number, point.created, 0, point.id)
    return Place(above.number, max(point.created, above.clock), above.depth + 1, point.id)
