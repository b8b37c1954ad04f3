"""What is said of clocks that cannot be right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.planning import clocks

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def stamp(seconds: float, point: str = "p") -> clocks.Stamp:
    return clocks.Stamp(point, NOON + timedelta(seconds=seconds))


def test_only_what_is_still_to_come_is_ahead() -> None:
    assert clocks.ahead([stamp(-9), stamp(0), stamp(1.9), stamp(10, "far")], NOON) == (stamp(10, "far"),)


def test_each_step_back_is_found_and_clocks_that_are_kept_in_time_are_not_told() -> None:
    first, second, third, fourth = stamp(0, "a"), stamp(10, "b"), stamp(5, "c"), stamp(4, "d")
    assert clocks.went_back([first, second, third, fourth]) == ((second, third),)


@pytest.mark.parametrize(("before", "told"), [(10, True), (2.5, True), (1.5, False), (-3600, False)])
def test_a_backup_warns_when_the_point_before_it_says_a_later_time(before: float, told: bool) -> None:
    warning = clocks.warning(stamp(before, "earlier"), stamp(0, "now"))
    assert (warning is not None) == told
    if warning is not None:
        assert "earlier" in warning
        assert "timedatectl" in warning
