"""Whether a file that returned is an older one, or what counts: it is known of a VM of which all was kept here."""

from __future__ import annotations

from tests.integration.catalog.examples import WIN11, example_point, example_state
from vmkeep.catalog import CatalogPin, FoundPin, MemoryCatalog
from vmkeep.flows.vm_states import is_tracked, known_states

OLD, NEW = example_state("old", 1), example_state("new", 2)


def _known(catalog: MemoryCatalog) -> list[str]:
    return [state.version_id for state in known_states(catalog, WIN11, catalog.points_of_vm(WIN11))]


def test_vm_that_was_only_captured_knows_its_older_versions() -> None:
    """Else an older file that somebody put there becomes the newest version with the next capture."""
    catalog = MemoryCatalog()
    catalog.see_vm(WIN11, "win11")
    catalog.accept_states([OLD])
    catalog.accept_states([NEW])
    assert is_tracked(catalog, WIN11)
    assert _known(catalog) == [NEW.id, OLD.id]


def test_vm_whose_versions_are_those_of_a_lost_catalogue_does_not_until_it_is_seen() -> None:
    catalog = MemoryCatalog()
    assert not is_tracked(catalog, WIN11)
    pin = CatalogPin("p", WIN11, "win11", "alpha", "2026", "kept", (OLD.id, NEW.id))
    catalog.adopt_pins([FoundPin(pin, (OLD, NEW))])
    assert not is_tracked(catalog, WIN11)
    assert _known(catalog) == [NEW.id]
    catalog.see_vm(WIN11, "win11")
    assert is_tracked(catalog, WIN11)


def test_vm_with_points_of_a_lost_catalogue_does_not_although_it_is_seen() -> None:
    catalog = MemoryCatalog()
    catalog.adopt([(example_point("p", states=(OLD,)), [OLD])])
    catalog.see_vm(WIN11, "win11")
    assert not is_tracked(catalog, WIN11)
