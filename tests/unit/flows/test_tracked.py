"""Whether a file that returned is an older one, or what counts: it is known of a VM of which all was kept here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.integration.catalog.examples import WIN11, example_point, example_state
from tests.unit.repository.signed import ROGUE, SIGNER
from vmkeep.catalog import CatalogPin, FoundPin, KnownHostKey, MemoryCatalog, Trust
from vmkeep.custody.states import next_generation, vouched_states
from vmkeep.flows.vm_states import is_tracked, known_states

OLD, NEW = example_state("old", 1), example_state("new", 2)


def _catalog() -> MemoryCatalog:
    """Return a catalogue that knows its own key, and another's."""
    catalog = MemoryCatalog()
    for key, trust in ((SIGNER, Trust.OWN), (ROGUE, Trust.UNKNOWN)):
        catalog.see_host_key(
            KnownHostKey(key.fingerprint, key.public_key.hex(), key.installation, key.host, trust, machine=key.machine)
        )
    return catalog


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
    catalog = _catalog()
    catalog.adopt([(replace(example_point("p", states=(OLD,)), signed_by=SIGNER.fingerprint), [OLD])])
    catalog.see_vm(WIN11, "win11")
    assert not is_tracked(catalog, WIN11)


@pytest.mark.parametrize("signed_by", [None, ROGUE.fingerprint])
@pytest.mark.parametrize("trust", [Trust.UNKNOWN, Trust.TRUSTED])
def test_points_of_others_change_nothing_for_a_vm_that_was_only_captured(signed_by: str | None, trust: Trust) -> None:
    """Else whoever can write to the repository lets an older file start, and become the newest version."""
    catalog = _catalog()
    catalog.see_vm(WIN11, "win11")
    catalog.accept_states([OLD])
    catalog.accept_states([NEW])
    other = example_state("other", 3)
    catalog.adopt([(replace(example_point("p", states=(other,)), signed_by=signed_by), [other])])
    catalog.trust_host(ROGUE.fingerprint, trust)
    assert is_tracked(catalog, WIN11)
    assert OLD.id in _known(catalog)


def test_version_that_nobody_vouches_for_has_a_number_and_no_content() -> None:
    """Else a version of another host that repeats an older content lets that content count again."""
    catalog = _catalog()
    catalog.see_vm(WIN11, "win11")
    catalog.accept_states([OLD])
    catalog.accept_states([NEW])
    again = replace(example_state("again", 3), sha256=OLD.sha256)
    catalog.adopt([(replace(example_point("p", states=(again,)), signed_by=ROGUE.fingerprint), [again])])
    known = known_states(catalog, WIN11, catalog.points_of_vm(WIN11))
    assert [state.version_id for state in vouched_states(known, "tpm")] == [NEW.id, OLD.id]
    assert next_generation(known, "tpm") == 4
    assert next_generation(known, "nvram") == 1
    catalog.trust_host(ROGUE.fingerprint, Trust.TRUSTED)
    assert _known(catalog) == [again.id, NEW.id, OLD.id]
