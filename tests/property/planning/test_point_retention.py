"""Which points stay: the rule is Proxmox Backup Server's, and no point that nobody vouches for lets another one go."""

from __future__ import annotations

from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from tests.property.planning.test_retention import moments, rules
from vmkeep.planning.point_retention import JudgedPoint, PointRule, Verdict, judge, newest_sound, reasons_to_ask
from vmkeep.planning.retention import KeepRule, kept_by

NOW = datetime(2026, 12, 1, tzinfo=UTC)
zones = st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("Pacific/Auckland")])
durations = st.integers(0, 800).map(lambda hours: timedelta(hours=hours))


def as_proxmox(rule: KeepRule, newest_first: list[datetime], zone: tzinfo) -> set[int]:
    """Return what its documentation and its source (prune.rs) say is kept, written down plainly."""
    mark: dict[int, bool] = {}
    local = [moment.astimezone(zone) for moment in newest_first]
    for number, pattern in zip(astuple(rule), (None, "%Y/%m/%d/%H", "%Y/%m/%d", "%G/%V", "%Y/%m", "%Y"), strict=True):
        ids = [str(place) if pattern is None else moment.strftime(pattern) for place, moment in enumerate(local)]
        included = {ids[place] for place, kept in mark.items() if kept}
        found: set[str] = set()
        for place, period in enumerate(ids):
            if place in mark or period in included:
                continue
            if period in found:
                mark[place] = False
            elif len(found) < number:
                found.add(period)
                mark[place] = True
            else:
                break
    return {place for place, kept in mark.items() if kept}


@given(rules, moments, zones)
def test_rule_is_that_of_proxmox(rule: KeepRule, found: list[datetime], zone: tzinfo) -> None:
    assert kept_by(rule, found, zone=zone).keys() == as_proxmox(rule, found, zone)


@given(rules, moments, durations)
def test_all_within_the_duration_stay_and_others_lose_nothing_by_it(
    rule: KeepRule, found: list[datetime], within: timedelta
) -> None:
    kept = kept_by(rule, found, within=within)
    assert {place for place, moment in enumerate(found) if within and found[0] - moment < within} <= kept.keys()
    assert not found or 0 in kept or not (within or any(astuple(rule)))
    left = [found[place] for place in sorted(kept)]
    assert len(kept_by(rule, left, within=within)) == len(left)


@st.composite
def points(draw: st.DrawFn) -> list[JudgedPoint]:
    """Return points of one VM, the last made first; some are not what they should be."""
    minutes = draw(st.lists(st.integers(0, 200 * 24 * 60), max_size=25))
    found = []
    for number, each in enumerate(sorted(minutes)):
        made = NOW - timedelta(minutes=each)
        off = draw(st.sampled_from([0, 0, 0, 0, 2, 48, -48]))
        found.append(
            JudgedPoint(
                f"{number:032x}",
                made,
                made + timedelta(hours=off),
                proved=draw(st.integers(0, 5)) > 0,
                sound=draw(st.integers(0, 4)) > 0,
                protected=draw(st.integers(0, 9)) == 0,
                rule="r",
            )
        )
    return found


def judged(found: list[JudgedPoint], rule: PointRule) -> tuple[Verdict, ...]:
    return judge(found, {"r": rule}, NOW, zones={"r": UTC})


def going(found: list[JudgedPoint], rule: PointRule) -> set[str]:
    return {verdict.point.id for verdict in judged(found, rule) if not verdict.stays}


@given(points(), rules, durations)
def test_what_goes_is_proved_with_a_clock_to_be_believed_and_is_never_the_newest_sound_one(
    found: list[JudgedPoint], keep: KeepRule, within: timedelta
) -> None:
    rule = PointRule(keep, within)
    gone = going(found, rule)
    for point in found:
        if point.id in gone:
            assert point.proved
            assert not point.protected
            assert not point.is_suspect(NOW)
            assert point.id != newest_sound(found, NOW)
    left = [point for point in found if point.id not in gone]
    assert going(left, rule) == set(), "a second run lets nothing more go"
    assert newest_sound(left, NOW) == newest_sound(found, NOW)


@given(points(), rules, durations, st.data())
def test_points_that_fill_no_slot_change_nothing_for_those_that_do(
    found: list[JudgedPoint], keep: KeepRule, within: timedelta, data: st.DataObject
) -> None:
    """Whatever is harmed, not proved or of a wrong clock: with it or without it the sound ones stay."""
    rule = PointRule(keep, within)
    fit = [point for point in found if point.proved and point.sound and not point.is_suspect(NOW)]
    assert going(found, rule) & {point.id for point in fit} == going(fit, rule)
    if fit:
        harmed = data.draw(st.sampled_from(fit)).id
        now = [replace(point, sound=point.sound and point.id != harmed) for point in found]
        # One that turns out to be harmed stays at least as long as before, and frees its slot.
        assert harmed in going(found, rule) or harmed not in going(now, rule) or newest_sound(found, NOW) == harmed


@given(points(), rules, st.integers(1, 4))
def test_more_room_lets_nothing_more_go(found: list[JudgedPoint], keep: KeepRule, more: int) -> None:
    longer = PointRule(replace(keep, last=keep.last + more))
    assert len(going(found, longer)) <= len(going(found, PointRule(keep)))


@given(points(), rules)
def test_no_third_goes_without_a_question(found: list[JudgedPoint], keep: KeepRule) -> None:
    verdicts = judged(found, PointRule(keep))
    gone = sum(not verdict.stays for verdict in verdicts)
    assert bool(reasons_to_ask(verdicts, NOW, None)) is (gone * 3 > len(found))
    assert not gone or reasons_to_ask(verdicts, NOW, NOW + timedelta(days=1))
