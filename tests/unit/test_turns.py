"""What is tried in turn is tried: every place within some days, and within a week."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import turns
from tests.turns import groups_in_turn, sampled


@given(st.integers(1, 40), st.integers(1, 8), st.integers(738_000, 760_000))
def test_every_place_is_drawn_before_any_is_drawn_again(number: int, most: int, day: int) -> None:
    places = list(range(number))
    days = range(day, day + math.ceil(number / most))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "EVERY", False)
        drawn = []
        for each in days:
            patch.setattr(turns, "DAY", each)
            drawn.append(sampled(places, most))
    assert all(len(each) == min(most, number) and each == sorted(each) for each in drawn)
    assert {place for each in drawn for place in each} == set(places)


def test_all_tests_in_turn_run_within_a_week(request: pytest.FixtureRequest) -> None:
    for (path, name), (most, items) in groups_in_turn(request.session.items).items():
        assert len(items) <= 7 * most, f"{path}: {name}"
