"""The rule of a policy for points: what fills a slot, what stays whatever it says, and what makes somebody look."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.errors import InvalidRequest
from vmkeep.planning.model import KnownDisk, KnownPoint
from vmkeep.planning.point_retention import (
    SAFETY_RULE,
    JudgedPoint,
    PointRule,
    Verdict,
    bases_in_use,
    judge,
    newest_sound,
    parse_within,
    reasons_to_ask,
    rule_of,
    within_text,
)
from vmkeep.planning.retention import KeepRule

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
SAFETY = "vmkeep.safety"


def point(days_ago: float, **facts: object) -> JudgedPoint:
    made = NOW - timedelta(days=days_ago)
    return replace(JudgedPoint(f"{days_ago:g}", made, made, rule="vm"), **facts)  # type: ignore[arg-type]


def told(points: list[JudgedPoint], rule: PointRule) -> dict[str, str]:
    rules = {"vm": rule, SAFETY: SAFETY_RULE}
    verdicts = judge(points, rules, NOW, zones=dict.fromkeys(rules, UTC))
    return {verdict.point.id: str(verdict.why) for verdict in verdicts}


def test_harmed_point_fills_no_slot_and_stays_as_long_as_if_it_did() -> None:
    points = [point(0), point(1, sound=False), point(2), point(3), point(4, sound=False)]
    rule = PointRule(KeepRule(last=3))
    assert told(points, rule) == {"0": "last", "1": "last", "2": "last", "3": "last", "4": ""}


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"protected": True}, "protected"),
        ({"proved": False}, "unproved"),
        ({"stored": NOW - timedelta(days=6.5)}, "clock"),
        ({"base": True}, "base"),
        ({"rule": ""}, "no policy"),
    ],
)
def test_point_that_no_rule_keeps_stays_for_another_reason(facts: dict[str, object], why: str) -> None:
    points = [point(0), point(1), point(9, **facts)]
    assert told(points, PointRule(KeepRule(last=2)))["9"] == why


def test_forged_later_points_push_out_nothing() -> None:
    good = [point(1), point(2)]
    rule = PointRule(KeepRule(last=2))
    to_come = [point(-days) for days in (1, 2, 3)]
    assert set(told([*to_come, *good], rule).values()) == {"clock", "last"}
    unknown = [point(each / 10, proved=False) for each in range(5)]
    assert told([*unknown, *good], rule) | {"1": "last", "2": "last"} == told([*unknown, *good], rule)


def test_newest_sound_point_stays_though_later_ones_are_harmed() -> None:
    points = [point(1, sound=False), point(2, sound=False), point(3), point(4)]
    assert told(points, PointRule(KeepRule(last=1)))["3"] == "last"
    assert newest_sound(points, NOW) == "3"
    safety = [point(0.5, safety=True, rule=SAFETY), *points]
    assert newest_sound(safety, NOW) == "3"
    assert newest_sound([safety[0], point(1, sound=False)], NOW) == "0.5"


def test_safety_points_have_a_rule_of_their_own() -> None:
    points = [point(0), *(point(days, safety=True, rule=SAFETY) for days in (1, 29, 45, 60)), point(61)]
    assert told(points, PointRule(KeepRule(last=2))) == {
        "0": "last",
        "1": "last",
        "29": "within",
        "45": "",
        "60": "",
        "61": "last",
    }


def test_much_at_once_and_a_vm_without_a_new_point_need_a_yes() -> None:
    verdicts = [Verdict(point(0), "last"), Verdict(point(1), "last"), Verdict(point(2), "")]
    assert reasons_to_ask(verdicts, NOW, None) == ()
    assert "more than a third" in reasons_to_ask(verdicts[1:], NOW, None)[0]
    assert "no point was made" in reasons_to_ask(verdicts, NOW, NOW)[0]
    assert reasons_to_ask(verdicts, NOW, NOW - timedelta(hours=5)) == ()
    assert reasons_to_ask(verdicts[:2], NOW, NOW) == (), "nothing goes"


def test_base_is_of_each_disk_the_newest_with_a_bitmap() -> None:
    def known(name: str, *disks: str, scanned: bool = False) -> KnownPoint:
        each = tuple(KnownDisk(disk, "/x", 512, "qcow2", bitmap=not scanned) for disk in disks)
        return KnownPoint(name, each, "2026-01-01T00:00:00.000000+00:00", None, None)

    assert bases_in_use([known("3", "vda"), known("2", "vda", "vdb"), known("1", "vda", "vdb")]) == {"3", "2"}
    assert bases_in_use([known("3", "vda", scanned=True), known("2", "vda")]) == {"2"}


@pytest.mark.parametrize(
    ("labels", "policies", "rule"),
    [
        ({}, {"vm:u", "all"}, "vm:u"),
        ({}, {"all"}, "all"),
        ({}, {"vm:other"}, ""),
        ({"why": "update"}, {"vm:u", "label:why"}, "label:why"),
        ({"why": "update"}, {"label:why", "label:why=update"}, "label:why=update"),
        ({"why": "update"}, {"label:why=other", "vm:u"}, "vm:u"),
        ({SAFETY: "x"}, {"vm:u"}, f"label:{SAFETY}"),
        ({SAFETY: "x"}, {"label:why"}, ""),
    ],
)
def test_policy_of_a_label_goes_before_that_of_the_vm(labels: dict[str, str], policies: set[str], rule: str) -> None:
    assert rule_of(labels, policies, "u", safety=SAFETY) == rule


@pytest.mark.parametrize("text", ["36h", "1d", "8w", "2y", "90d"])
def test_duration_is_read_as_it_is_written(text: str) -> None:
    assert parse_within(text) == parse_within(within_text(parse_within(text)))


@pytest.mark.parametrize("text", ["", "0", "0d", "-1d", "5", "5m", "1.5d", "٣d", "999999d", "1d "])
def test_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no duration"):
        parse_within(text)
