"""What the order of points promises, whatever clocks and numbers they have."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.planning.order import Made, places

IDS = "abcdefgh"
clocks = st.sampled_from(["2020", "2026", "2030"])


@st.composite
def histories(draw: st.DrawFn, *, numbered: bool = False) -> list[Made]:
    """Return points in the order of their making: each descends from one before it or from none."""
    points: list[Made] = []
    for place, point_id in enumerate(draw(st.permutations(IDS))):
        parent = draw(st.none() | st.sampled_from([point.id for point in points])) if points else None
        sequence = place + 1 if numbered else draw(st.none() | st.integers(1, 3))
        points.append(Made(point_id, parent, draw(clocks), sequence))
    return points


def ordered(points: Sequence[Made]) -> list[str]:
    found = places(points)
    return sorted(found, key=found.__getitem__)


@given(histories(numbered=True), st.randoms(use_true_random=False))
def test_numbers_alone_tell_the_order_of_events(points: list[Made], chance: random.Random) -> None:
    shuffled = chance.sample(points, len(points))
    assert ordered(shuffled) == [point.id for point in points]


@given(histories(), st.randoms(use_true_random=False))
def test_a_point_comes_after_the_one_it_descends_from_and_the_order_is_the_same_however_they_are_met(
    points: list[Made], chance: random.Random
) -> None:
    order = ordered(points)
    assert ordered(chance.sample(points, len(points))) == order
    for point in points:
        assert point.parent is None or order.index(point.parent) < order.index(point.id)


@given(histories())
def test_those_without_a_number_come_before_all_that_have_one_unless_they_descend_from_one(points: list[Made]) -> None:
    found, by_id = places(points), {point.id: point for point in points}

    def line(point: Made | None) -> list[Made]:
        return [] if point is None else [point, *line(by_id.get(point.parent or ""))]

    for point in points:
        assert found[point.id].number == max(above.sequence or 0 for above in line(point))


@given(st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from(IDS), clocks), unique_by=lambda each: each[0]))
def test_a_circle_that_only_a_broken_writer_makes_is_ordered_all_the_same(
    made: list[tuple[str, str, str]],
) -> None:
    points = [Made(point_id, parent, clock) for point_id, parent, clock in made]
    assert sorted(ordered(points)) == sorted(point.id for point in points)
    assert ordered(points[::-1]) == ordered(points)


@given(histories())
def test_order_is_the_one_that_the_format_specifies(points: list[Made]) -> None:
    """Section 8a of docs/internals/repository-format.md, written down once more."""
    by_id = {point.id: point for point in points}

    def key(point: Made) -> tuple[int, str, int, str]:
        number, parent = point.sequence or 0, by_id.get(point.parent or "")
        above = None if parent is None else key(parent)
        if above is None or number > above[0]:
            return number, point.created, 0, point.id
        return above[0], max(point.created, above[1]), above[2] + 1, point.id

    assert ordered(points) == [point.id for point in sorted(points, key=key)]
