"""Laws of a rate, with a clock that is made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.rates import Rate

_SLACK = 1e-6
_CREDIT_SECONDS = 0.1
pieces = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 10_000)), min_size=1, max_size=60)


@given(pieces=pieces, rate=st.integers(1, 5000))
def test_in_any_time_no_more_passes_than_the_rate_allows_and_one_piece(
    pieces: list[tuple[float, int]], rate: int
) -> None:
    now = [100.0]
    bucket = Rate(rate, clock=lambda: now[0])
    passed: list[tuple[float, int]] = []
    for pause, amount in pieces:
        now[0] += pause
        now[0] += bucket.take(amount)
        passed.append((now[0], amount))
    for first, (begin, _) in enumerate(passed):
        total = 0
        for end, amount in passed[first:]:
            # The last piece itself may be under way.
            assert total <= rate * (end - begin + _CREDIT_SECONDS) * (1 + _SLACK) + _SLACK
            total += amount


@given(amounts=st.lists(st.integers(1, 10_000), min_size=2, max_size=60), rate=st.integers(1, 5000))
def test_who_asks_all_the_time_gets_the_whole_rate(amounts: list[int], rate: int) -> None:
    now = [0.0]
    bucket = Rate(rate, clock=lambda: now[0])
    for amount in amounts:
        now[0] += bucket.take(amount)
    assert now[0] <= sum(amounts[:-1]) / rate * (1 + _SLACK) + _SLACK


@given(before=st.integers(1, 10_000), after=st.integers(1, 10_000), rate=st.integers(1, 5000))
def test_what_does_not_wait_is_paid_for_by_what_comes_next(before: int, after: int, rate: int) -> None:
    bucket = Rate(rate, clock=lambda: 0.0)
    bucket.take(before)
    assert bucket.take(after) * rate >= before * (1 - _SLACK)
