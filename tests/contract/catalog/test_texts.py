"""Names come back as they were written, sort by code points, and what no database can hold is refused before."""

from __future__ import annotations

import pytest

from tests.integration.catalog.examples import WIN11, example_point, example_state
from vmkeep.catalog import Catalog, CatalogSnapshot, PassedPoint
from vmkeep.errors import InvalidRequest

NUL, HALF = "win\0eleven", "win\ud800"
# A locale's order has "a" before "B", "é" before "f", and does not look at "-" first.
SORTED = [
    "",
    "-b",
    "B",
    "Z",
    "_",
    "a",
    "a b",
    "f",
    "é",
    "\u00ff",
    "\u0430",
    "\u2028",
    "\ufb01",
    "\U0001f600",
    "\U0010ffff",
]


def test_names_sort_by_code_points_and_come_back_whole(catalog: Catalog) -> None:
    for number, name in enumerate(reversed(SORTED)):
        catalog.see_vm(f"00000000-0000-0000-0000-{number:012}", name)
    assert [vm.name for vm in catalog.vms()] == SORTED
    assert all(len(catalog.vms_named(name)) == 1 for name in SORTED)


def test_ids_sort_by_code_points(catalog: Catalog) -> None:
    catalog.pass_points([PassedPoint(name, WIN11, "x") for name in reversed(SORTED)])
    assert [point.id for point in catalog.passed_points()] == SORTED
    catalog.record_point(example_point("p1"), [example_state("v", 1)])
    for name in reversed(SORTED[1:]):
        catalog.record_snapshot(CatalogSnapshot(name, WIN11, name, 1, None, "2026", (example_state("v", 1),)))
    assert catalog.pins(example_state("v", 1).id) == tuple(sorted([*SORTED[1:], example_point("p1").id]))


def test_name_that_is_like_another_is_another(catalog: Catalog) -> None:
    """No locale's equality: of a letter and its mark apart, of upper and lower case, of spaces at the end."""
    names = ["é", "e\u0301", "É", "e", "e ", "\ufb01", "fi"]
    for number, name in enumerate(names):
        catalog.see_vm(f"00000000-0000-0000-0000-{number:012}", name)
    assert [len(catalog.vms_named(name)) for name in names] == [1] * len(names)


@pytest.mark.parametrize("name", [NUL, HALF])
def test_text_that_no_database_holds_is_refused_and_nothing_of_its_transaction_is_kept(
    catalog: Catalog, name: str
) -> None:
    with pytest.raises(InvalidRequest):
        catalog.see_vm(WIN11, name)
    with pytest.raises(InvalidRequest):
        catalog.record_point(example_point("p1", vm_name=name), [example_state("v", 1)])
    with pytest.raises(InvalidRequest):
        catalog.adopt([(example_point("p1", vm_name=name), [])])
    with pytest.raises(InvalidRequest):
        catalog.begin_operation("op", "take", name, "me", {})
    assert (catalog.vms(), catalog.points(), catalog.operations()) == ((), (), ())


@pytest.mark.parametrize("name", [NUL, HALF])
def test_text_that_no_database_holds_names_nothing(catalog: Catalog, name: str) -> None:
    for ask in (catalog.vms_named, catalog.points, catalog.summaries, catalog.find_point, catalog.point):
        with pytest.raises(InvalidRequest):
            ask(name)
    with pytest.raises(InvalidRequest):
        catalog.find_point(f"{name}@latest")


def test_nul_inside_of_json_is_kept(catalog: Catalog) -> None:
    catalog.record_point(example_point("p1", labels={"a\0b": "c\0d"}))
    assert catalog.points()[0].labels == {"a\0b": "c\0d"}
    catalog.begin_operation("op", "take", None, "me", {"name": NUL})
    assert catalog.operation("op").request == {"name": NUL}


def test_numbers_of_64_bits_are_kept_and_greater_ones_refused(catalog: Catalog) -> None:
    greatest = (1 << 63) - 1
    catalog.record_point(example_point("p1", sequence=greatest))
    assert catalog.points()[0].sequence == greatest
    catalog.begin_operation("op", "take", None, "me", {})
    catalog.report_progress("op", "copy", 5 << 40, greatest)
    assert catalog.operation("op").total_bytes == greatest
    with pytest.raises(InvalidRequest):
        catalog.report_progress("op", "copy", 0, greatest + 1)
    assert catalog.operation("op").total_bytes == greatest
