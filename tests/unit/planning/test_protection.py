"""Which point counts, and when a VM is protected."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vmkeep.planning.protection import Protection, newest_sound, protection_of

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOUR = 3600


def point(name: str, *, trust: str = "own", safety: bool = False) -> dict[str, Any]:
    return {"id": name, "labels": {"safety": "x"} if safety else {}, "made_by": {"trust": trust}}


@pytest.mark.parametrize(
    ("age_hours", "objective", "skip", "protection"),
    [
        (1, 26 * HOUR, False, Protection.GOOD),
        (26, 26 * HOUR, False, Protection.GOOD),
        (27, 26 * HOUR, False, Protection.LATE),
        (1, None, False, Protection.UNKNOWN),
        (-5, 26 * HOUR, False, Protection.UNKNOWN),
        (None, 26 * HOUR, False, Protection.NONE),
        (None, None, False, Protection.NONE),
        (99, 26 * HOUR, True, Protection.SKIPPED),
    ],
)
def test_vm_is_protected_as_far_as_somebody_can_tell(
    age_hours: float | None, objective: int | None, skip: bool, protection: Protection
) -> None:
    created = None if age_hours is None else (NOW - timedelta(hours=age_hours)).isoformat()
    assert protection_of(created, objective, NOW, skip=skip) is protection


def test_damaged_points_and_those_of_others_are_passed_over_and_told() -> None:
    points = [
        point("old"),
        point("newest that counts", trust="trusted"),
        point("damaged"),
        point("of nobody known", trust="unknown"),
        point("shut out", trust="distrusted"),
        point("without a signature", trust="unsigned"),
        point("what a restore left", safety=True),
    ]
    found, passed = newest_sound(points, {"damaged"}, "safety")
    assert found is not None
    assert found["id"] == "newest that counts"
    assert passed == ("without a signature", "shut out", "of nobody known", "damaged")


def test_vm_without_a_point_that_counts_has_none() -> None:
    assert newest_sound([], (), "safety") == (None, ())
    assert newest_sound([point("a", safety=True), point("b")], {"b"}, "safety") == (None, ("b",))
