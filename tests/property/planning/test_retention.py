"""A rule of retention keeps the same again of what it has kept, and never more than it says."""

from __future__ import annotations

from dataclasses import astuple
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.planning.retention import KeepRule, kept_by

START = datetime(2026, 12, 1, tzinfo=UTC)
rules = st.builds(KeepRule, *(st.integers(0, 4) for _ in range(6)))
moments = st.lists(st.integers(0, 3 * 365 * 24 * 60), max_size=40).map(
    lambda minutes: [START - timedelta(minutes=each) for each in sorted(minutes)]
)


@given(rules, moments)
def test_what_is_kept_is_kept_again_and_is_no_more_than_the_rule_says(rule: KeepRule, found: list[datetime]) -> None:
    kept = kept_by(rule, found)
    assert len(kept) <= sum(astuple(rule))
    left = [found[place] for place in sorted(kept)]
    again = kept_by(rule, left)
    assert [left[place] for place in sorted(again)] == left
    assert not found or not any(astuple(rule)) or 0 in kept, "the newest stands for each of its periods"


@given(rules, moments, st.integers(1, 500_000))
def test_newer_moment_takes_none_from_a_rule_that_has_room(rule: KeepRule, found: list[datetime], later: int) -> None:
    """One more at the front pushes out at most one of each rule's."""
    before = {found[place] for place in kept_by(rule, found)}
    newer = [START + timedelta(minutes=later), *found]
    after = {newer[place] for place in kept_by(rule, newer)}
    assert len(before - after) <= sum(1 for number in astuple(rule) if number)
