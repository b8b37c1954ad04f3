"""Points come in the order in which they were made, whatever the clocks of their hosts said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.integration.catalog.examples import WEB, WIN11, example_point, number
from vmkeep.catalog import SAFETY_LABEL, Catalog, CatalogSnapshot, PassedPoint
from vmkeep.errors import PointNotFound


def record(catalog: Catalog, *minutes: int, vm: str = WIN11, vm_name: str = "win11") -> list[str]:
    """Record points that are made one after the other, with these clocks; return their ids."""
    ids: list[str] = []
    for minute in minutes:
        sequence = catalog.next_sequence(vm)
        point = example_point(
            f"{vm}{sequence}", vm=vm, vm_name=vm_name, minute=minute, sequence=sequence, parent=ids[-1] if ids else None
        )
        catalog.record_point(point)
        ids.append(point.id)
    return ids


def test_the_clock_was_ahead_for_one_point(catalog: Catalog) -> None:
    first, ahead, last = record(catalog, 10, 50, 20)
    assert catalog.find_point("win11@latest").id == last
    assert [point.id for point in catalog.points("win11")] == [first, ahead, last]
    assert [summary["id"] for summary in catalog.summaries()] == [first, ahead, last]
    assert [point.id for point in catalog.points_of_vm(WIN11)] == [last, ahead, first]
    assert [outline.id for outline in catalog.outlines_of_vm(WIN11)] == [last, ahead, first]
    newest = catalog.newest_made(WIN11)
    assert newest is not None
    assert newest.id == last


def test_a_time_means_the_last_point_whose_clock_says_it_or_an_earlier_one(catalog: Catalog) -> None:
    first, ahead, last = record(catalog, 10, 50, 20)
    for minute, meant, earlier in ((15, first, ()), (30, last, (ahead,)), (55, last, ())):
        text = f"win11@2026-03-01T10:{minute}Z"
        found = catalog.find_point(text)
        assert (found.id, catalog.against_the_clock(text, found)) == (meant, earlier)
    assert catalog.against_the_clock("win11@latest", catalog.find_point(last)) == ()
    assert catalog.against_the_clock(last, catalog.find_point(last)) == ()
    with pytest.raises(PointNotFound) as caught:
        catalog.find_point("win11@2026-03-01T10:05Z")
    assert first in caught.value.hint


def test_a_safety_point_is_newer_when_it_was_made_later(catalog: Catalog) -> None:
    (made,) = record(catalog, 50)
    safety = example_point("s", minute=10, labels={SAFETY_LABEL: made}, sequence=2, parent=made)
    catalog.record_point(safety)
    assert catalog.newer_safety_points(catalog.find_point("win11@latest")) == (safety.id,)


def test_points_of_several_vms_are_mixed_by_clock_as_far_as_their_order_allows(catalog: Catalog) -> None:
    win = record(catalog, 10, 50, 20)
    web = record(catalog, 5, 30, 55, vm=WEB, vm_name="web")
    assert [point.id for point in catalog.points()] == [web[0], win[0], web[1], win[1], win[2], web[2]]


def test_numbers_rise_over_all_that_was_seen_also_of_deleted_and_adopted_points_and_snapshots(catalog: Catalog) -> None:
    assert catalog.next_sequence(WIN11) == 1
    _, deleted = record(catalog, 1, 2)
    catalog.forget_point(deleted)
    assert catalog.next_sequence(WIN11) == 3
    catalog.adopt([(example_point("other", minute=0, sequence=7, host="beta"), [])])
    assert catalog.next_sequence(WIN11.upper()) == 8
    snapshot = CatalogSnapshot(number("s"), WIN11, "before", 1, None, "2026-01-01T00:00:00.000000+00:00")
    for _ in range(2):  # as a step of a flow may be repeated
        catalog.record_snapshot(snapshot)
    assert catalog.next_sequence(WIN11) == 9
    assert catalog.next_sequence(WEB) == 1


def test_snapshots_come_in_the_order_in_which_they_were_recorded(catalog: Catalog) -> None:
    record(catalog, 1)
    for name, clock in (("b", "2026"), ("a", "2030"), ("c", "2028")):
        catalog.record_snapshot(CatalogSnapshot(number(name), WIN11, name, 1, None, clock))
    assert [snapshot.name for snapshot in catalog.snapshots_of_vm(WIN11)] == ["b", "a", "c"]


def test_points_of_older_releases_come_first_by_lineage_and_clock(catalog: Catalog) -> None:
    old = [
        example_point("o1", minute=10),
        example_point("o2", minute=50, parent=number("o1")),  # the clock was ahead
        example_point("o3", minute=20, parent=number("o2")),
    ]
    numbered = example_point("n1", minute=5, sequence=1)
    late = example_point("late", minute=6, parent=numbered.id)  # an older release went on with it
    catalog.adopt([(point, []) for point in (late, *old[::-1], numbered)])
    assert [point.id for point in catalog.points(WIN11)] == [*(point.id for point in old), numbered.id, late.id]
    for point in (late, numbered):
        catalog.forget_point(point.id)
    (new,) = record(catalog, 0)
    assert catalog.find_point("win11@latest").id == new


def test_nobody_knows_where_a_vm_is_once_points_of_ours_went_on_from_there_on_its_host(catalog: Catalog) -> None:
    (here,) = record(catalog, 1)
    elsewhere = example_point("elsewhere", minute=2, parent=here, sequence=2, host="beta")
    catalog.adopt([(elsewhere, [])])
    vm = catalog.vm(WIN11)
    assert vm is not None
    assert vm.current_point == here
    mine = replace(example_point("mine", minute=2, parent=here, sequence=2), signed_by="")
    theirs = example_point("theirs", minute=3, parent=mine.id, sequence=3, host="beta")
    catalog.adopt([(theirs, []), (mine, [])])
    vm = catalog.vm(WIN11)
    assert vm is not None
    assert (vm.current_point, vm.before_first) == (None, False)
    catalog.return_to(WIN11, here)
    catalog.adopt([(theirs, []), (mine, [])])  # known already: nothing is changed
    vm = catalog.vm(WIN11)
    assert vm is not None
    assert vm.current_point == here


def test_points_of_other_vms_are_remembered_until_they_are_adopted(catalog: Catalog) -> None:
    passed = [PassedPoint(number("x"), WEB, "web"), PassedPoint(number("y"), WEB, "web")]
    for _ in range(2):
        catalog.pass_points(passed)
    assert {point.id for point in catalog.passed_points()} == {number("x"), number("y")}
    catalog.adopt([(example_point("x", vm=WEB, vm_name="web"), [])])
    assert catalog.passed_points() == (passed[1],)
