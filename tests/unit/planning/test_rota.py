"""What a verification with a budget may take, and how far it has come."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.errors import InvalidRequest
from vmkeep.planning.rota import GOAL, Budget, Coverage
from vmkeep.planning.schedule import Job, command_of

_NOW = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("2h", Budget(seconds=7200)),
        ("30m", Budget(seconds=1800)),
        ("500M", Budget(size_bytes=500 << 20)),
        ("50GB", Budget(size_bytes=50 << 30)),
        ("1 TiB", Budget(size_bytes=1 << 40)),
    ],
)
def test_budget_is_a_time_or_a_size(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "0h", "0G", "50", "2 hours", "-1h", "50X"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="budget"):
        Budget.parse(text)


def test_budget_is_used_by_its_own_measure() -> None:
    assert not Budget(seconds=10).is_used(9.9, 1 << 60)
    assert Budget(seconds=10).is_used(10, 0)
    assert not Budget(size_bytes=10).is_used(1e9, 9)
    assert Budget(size_bytes=10).is_used(0, 10)


def _covered(**fields: object) -> Coverage:
    plain = {"at": _NOW, "packs": 2, "size_bytes": 20, "proved": 2, "proved_bytes": 20, "unread": 0, "bad": 0}
    return Coverage(**{**plain, "oldest": _NOW, **fields})  # type: ignore[arg-type]


def test_what_was_not_read_for_too_long_is_late() -> None:
    assert not _covered().is_late(_NOW + GOAL)
    assert _covered(oldest=_NOW - timedelta(1)).is_late(_NOW + GOAL - timedelta(hours=1))
    assert _covered(oldest=None).is_late(_NOW + GOAL + timedelta(1)), "nobody has verified since"
    assert not _covered(oldest=None).is_late(_NOW + timedelta(1)), "new packs wait for the next run"
    assert not _covered(packs=0).is_late(_NOW + 2 * GOAL)


def test_scheduled_verification_keeps_to_its_budget() -> None:
    assert command_of(Job.VERIFY) == ("verify", "--all")
    assert command_of(Job.VERIFY, "2h") == ("verify", "--budget", "2h")
    assert command_of(Job.PRUNE, "2h") == ("prune",)
