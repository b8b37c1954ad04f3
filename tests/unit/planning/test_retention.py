"""Which moments are kept: the newest of each period, rule after rule, and what no rule says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from vmkeep.custody.retention import HeldVersion, kept_for_themselves
from vmkeep.errors import InvalidRequest
from vmkeep.planning.retention import KeepRule, kept_by

NOW = datetime(2026, 3, 2, 12, 30, tzinfo=UTC)


def hours(*ago: float) -> list[datetime]:
    return [NOW - timedelta(hours=each) for each in ago]


def test_last_keeps_the_newest_also_of_one_instant() -> None:
    assert kept_by(KeepRule(last=2), hours(0, 0, 1)) == {0: "last", 1: "last"}


def test_newest_of_a_period_stands_for_it() -> None:
    moments = hours(0, 0.2, 1, 1.2, 26, 50)
    assert kept_by(KeepRule(hourly=2), moments) == {0: "hourly", 2: "hourly"}
    assert kept_by(KeepRule(daily=5), moments) == {0: "daily", 4: "daily", 5: "daily"}


def test_period_that_an_earlier_rule_covers_does_not_count_again() -> None:
    moments = hours(0, 1, 2, 30, 54)
    # The first day is covered by what the last ones keep, so that "daily" reaches two days further.
    assert kept_by(KeepRule(last=1, daily=2), moments) == {0: "last", 3: "daily", 4: "daily"}


def test_periods_are_those_of_utc_and_weeks_those_of_iso_8601() -> None:
    berlin = timezone(timedelta(hours=1))
    same_hour = [datetime(2026, 3, 2, 13, 10, tzinfo=berlin), datetime(2026, 3, 2, 12, 5, tzinfo=UTC)]
    assert kept_by(KeepRule(hourly=5), same_hour) == {0: "hourly"}
    # The last days of 2026 and the first of 2027 are one week.
    new_year = [
        datetime(2027, 1, 2, tzinfo=UTC),
        datetime(2026, 12, 29, tzinfo=UTC),
        datetime(2026, 12, 20, tzinfo=UTC),
    ]
    assert kept_by(KeepRule(weekly=5), new_year) == {0: "weekly", 2: "weekly"}
    assert kept_by(KeepRule(yearly=5), new_year) == {0: "yearly", 1: "yearly"}


def test_rule_is_read_as_it_is_written() -> None:
    rule = KeepRule.parse(" last=50,hourly = 48, daily=90")
    assert rule == KeepRule(last=50, hourly=48, daily=90)
    assert KeepRule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    "text", ["", "last", "last=", "last=-1", "last=1,last=2", "minutely=3", "last=1;daily=2", "last=٣"]
)
def test_text_that_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no rule"):
        KeepRule.parse(text)


def test_rule_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="keeps nothing"):
        KeepRule.parse("last=0, daily=0")


def version(name: str, ago: float, *, kind: str = "tpm", conflict: bool = False, held: bool = False) -> HeldVersion:
    return HeldVersion(name, kind, hours(ago)[0].isoformat(), conflict, held)


def test_newest_of_each_kind_conflicts_and_what_was_put_in_place_stay_whatever_the_rule_says() -> None:
    versions = [
        version("t9", 100),
        version("clash", 200, conflict=True),
        version("t8", 300),
        version("t7", 400),
        version("n1", 500, kind="nvram"),
    ]
    kept = kept_for_themselves(versions, KeepRule(yearly=1), meant=["t7"])
    assert kept == {"t9": "newest", "clash": "conflict", "t7": "placed", "n1": "newest"}


def test_what_a_point_holds_needs_nothing_else_and_stands_for_its_period() -> None:
    versions = [version("newest", 0), version("held", 1.9, held=True), version("same hour", 2), version("older", 5)]
    assert kept_for_themselves(versions, KeepRule(hourly=3)) == {"newest": "newest", "older": "hourly"}
