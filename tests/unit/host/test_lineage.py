"""Where checkpoints belong when clocks were wrong."""

from __future__ import annotations

from vmkeep.moments import Checkpoint
from vmkeep.planning.checkpoint_health import by_age
from vmkeep.planning.lineage import Lineage, newest_first
from vmkeep.planning.model import KnownPoint


def point(name: str, clock: str, sequence: int | None, parent: str | None = None) -> KnownPoint:
    return KnownPoint(name, (), f"2026-01-01T10:{clock}:00.000000+00:00", parent, sequence)


FIRST, AHEAD, LAST = point("a", "00", 1), point("b", "30", 2, "a"), point("c", "05", 3, "b")
LINEAGE = Lineage.of("p-", [LAST, AHEAD, FIRST])


def test_the_last_made_is_the_newest_though_its_clock_was_set_back() -> None:
    assert newest_first([FIRST, LAST, AHEAD]) == (LAST, AHEAD, FIRST)
    assert LINEAGE.in_order(["p-c", "p-a", "p-b"]) == ["p-a", "p-b", "p-c"]


def test_a_lost_checkpoint_is_listed_again_below_the_one_that_was_made_before_it() -> None:
    others = {name: LINEAGE.creation_time(name) for name in ("p-a", "p-b")}
    loose = Lineage.of("p-", [FIRST, AHEAD, point("c", "05", 3)])
    assert loose.parents("p-c", others) == ("p-b",)
    # Of somebody else's only the clock tells.
    assert loose.parents("p-c", {"mine": loose.creation_time("p-c") + 1}) == ()
    assert loose.parents("p-c", {"mine": loose.creation_time("p-c")}) == ("mine",)


def test_moments_are_listed_parents_first_whatever_their_clocks_say() -> None:
    root = Checkpoint(name="root", creation_time=100)
    child = Checkpoint(name="child", parent_name="root", creation_time=90)
    other = Checkpoint(name="other", creation_time=95)
    assert [moment.name for moment in by_age([child, other, root])] == ["other", "root", "child"]
