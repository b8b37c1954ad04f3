"""Where the checkpoints of points belong, by name: parents, order and times are those of the points."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from vmkeep.planning.model import KnownPoint
from vmkeep.planning.order import Made, places
from vmkeep.values import dataclass


def newest_first(points: Iterable[KnownPoint]) -> tuple[KnownPoint, ...]:
    """Return points of one VM, the last made first."""
    by_id = {point.point_id: point for point in points}
    place = places(Made(known.point_id, known.parent, known.created, known.sequence) for known in by_id.values())
    return tuple(sorted(by_id.values(), key=lambda point: place[point.point_id], reverse=True))


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where the checkpoints of our points belong, by name: parents, order and times are those of the points. No I/O."""

    points: Mapping[str, KnownPoint]

    @classmethod
    def of(cls, prefix: str, points: Sequence[KnownPoint]) -> Lineage:
        return cls({prefix + point.point_id: point for point in points})

    def creation_time(self, name: str) -> int:
        """Return when a checkpoint was made, in seconds since 1970; now, where its point does not tell."""
        created = self.points[name].created if name in self.points else ""
        return int(datetime.fromisoformat(created).timestamp()) if created else int(time.time())

    def ancestors(self, name: str) -> list[str]:
        """Return the names of the points that a point descends from, the nearest first, as far as they are known."""
        by_id = {point.point_id: above for above, point in self.points.items()}
        found: list[str] = []
        point = self.points.get(name)
        while point is not None and point.parent in by_id:
            above = by_id[point.parent]
            if above in found or above == name:
                break  # no catalogue says so
            found.append(above)
            point = self.points[above]
        return found

    def parents(self, name: str, listed: Mapping[str, int]) -> tuple[str, ...]:
        """Return what a checkpoint may be defined again below, the best first; ``listed`` are the others, with times.

        First those of the points it descends from, the nearest first. Then the newest that is no younger, of whomever:
        libvirt makes each checkpoint the child of the one before. Of the checkpoints of others only the clock tells.
        """
        above = [ancestor for ancestor in self.ancestors(name) if ancestor in listed]
        own, order = self.creation_time(name), self._order()
        others = {other: made for other, made in listed.items() if other not in (name, *above)}
        ours = [other for other in others if other in order and order[other] < order.get(name, -1)]
        foreign = [other for other, made in others.items() if other not in order and made <= own]
        newest = (
            sorted(ours, key=order.__getitem__)[-1:] + sorted(foreign, key=lambda other: (others[other], other))[-1:]
        )
        return (*above, *sorted(newest, key=others.__getitem__)[-1:])

    def in_order(self, names: Collection[str]) -> list[str]:
        """Return names in the order in which their points were made: each comes after those it descends from."""
        order = self._order()
        return sorted(names, key=lambda name: (order.get(name, len(order)), self.creation_time(name), name))

    def _order(self) -> dict[str, int]:
        """Return the place of each point of ours, by the name of its checkpoint."""
        name_of = {point.point_id: name for name, point in self.points.items()}
        made = reversed(newest_first(self.points.values()))
        return {name_of[point.point_id]: place for place, point in enumerate(made)}
