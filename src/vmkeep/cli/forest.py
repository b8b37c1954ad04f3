"""The points of VMs drawn as a forest, like a history: a chain stays in its column, a branch moves to the right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Point = Mapping[str, Any]


def draw_forest(points: Sequence[Point], describe: Callable[[Point], str]) -> Iterator[str]:
    """Yield the lines. Points come oldest first; one whose parent is not among those before it is a root.

    So every point is drawn once, also of a circle of parents, which no vmkeep makes.

    The newest child goes on in its parent's column, so that the depth grows with branches and not with age. An empty
    line stands before each further root, as what follows it does not descend from what is above it.
    """
    before_it: set[str] = set()
    children: dict[str | None, list[Point]] = {}
    for point in points:
        children.setdefault(point["parent"] if point["parent"] in before_it else None, []).append(point)
        before_it.add(point["id"])
    # A stack and not recursion: a chain may have thousands of points. Pushed last is drawn first.
    waiting: list[tuple[Point, str, str]] = [(root, "", "") for root in reversed(children.get(None, []))]
    roots = {root["id"] for root in children.get(None, [])[1:]}
    while waiting:
        point, before, rails = waiting.pop()
        if point["id"] in roots:
            yield ""
        yield f"{before}● {describe(point)}"
        following = children.get(point["id"], [])
        if following:
            waiting.append((following[-1], rails, rails))
        waiting.extend((branch, f"{rails}├─", f"{rails}│ ") for branch in reversed(following[:-1]))
