"""What a catalogue that several hosts share promises of leases: who is second is told, what is late never counts."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from tests.integration.catalog.examples import WIN11, example_point, example_state
from vmkeep.catalog import Catalog, CatalogSnapshot
from vmkeep.custody.leases import LeaseState, first_lease
from vmkeep.errors import CatalogError

ALPHA, BETA = ("00000000-0000-4000-8000-00000000000" + digit for digit in "ab")


@pytest.fixture
def shared(catalog: Catalog) -> Catalog:
    """The catalogue, with two hosts and a VM whose TPM state has one version."""
    for uuid, name in ((ALPHA, "alpha"), (BETA, "beta")):
        catalog.see_host(uuid, name)
    catalog.see_vm(WIN11, "win11")
    catalog.accept_states([example_state("first", 1)])
    return catalog


def test_lease_is_read_as_it_was_written_and_moved_by_whoever_knows_how_it_stands(shared: Catalog) -> None:
    assert shared.lease(WIN11) is None
    first = first_lease(WIN11, ALPHA, shared.clock())
    shared.move_lease(None, first)
    assert shared.lease(WIN11.upper()) == first
    fenced = first.fenced("root on beta", "switched off")
    shared.move_lease(first, fenced)
    taken = fenced.taken(BETA, shared.clock())
    shared.move_lease(fenced, taken)
    assert shared.lease(WIN11) == taken
    for known, to in ((None, first), (first, first.taken(ALPHA, shared.clock())), (fenced, taken)):
        with pytest.raises(CatalogError):
            shared.move_lease(known, to)
    with pytest.raises(CatalogError):
        shared.move_lease(taken, replace(taken, serial=taken.serial + 1, epoch=taken.epoch + 1))
    assert shared.lease(WIN11) == taken


def test_lease_of_a_vm_or_a_host_that_nobody_knows_is_refused(shared: Catalog) -> None:
    for lease in (first_lease(WIN11, BETA[:-1] + "c", shared.clock()), first_lease(ALPHA, ALPHA, shared.clock())):
        with pytest.raises(CatalogError):
            shared.move_lease(None, lease)


def test_catalogue_tells_the_time_by_a_clock_that_goes_on(shared: Catalog) -> None:
    first, second = shared.clock(), shared.clock()
    assert first <= second
    assert datetime.fromisoformat(first).utcoffset() is not None


def test_what_a_former_owner_captured_is_a_conflict_and_never_the_newest(shared: Catalog) -> None:
    held = first_lease(WIN11, ALPHA, shared.clock())
    shared.move_lease(None, held)
    mine = replace(example_state("mine", 2), epoch=1)
    shared.accept_states([mine])
    fenced = held.fenced("root", "")
    shared.move_lease(held, fenced)
    taken = fenced.taken(BETA, shared.clock())
    shared.move_lease(fenced, taken)
    assert taken.state is LeaseState.HELD
    theirs = replace(example_state("theirs", 3), epoch=2)

    late, without = (replace(example_state(name, 3), epoch=epoch) for name, epoch in (("late", 1), ("without", None)))
    shared.accept_states([late])
    shared.record_point(example_point("p", states=(without,)), [without])
    newest = shared.newest_state(WIN11, "tpm")
    assert newest == mine
    shared.accept_states([theirs])
    created = "2026-03-01T10:00:00.000000+00:00"
    much_later = replace(example_state("much later", 9), epoch=1)
    shared.record_snapshot(CatalogSnapshot("e" * 32, WIN11, "s", 1, None, created, (much_later,)))
    assert shared.newest_state(WIN11, "tpm") == theirs
    assert {each.id for each in shared.states_of_vm(WIN11) if each.conflict} == {late.id, without.id, much_later.id}
    assert shared.pins(without.id)
    assert shared.pins(much_later.id)
    with pytest.raises(CatalogError, match="came late"):
        shared.accept_states([replace(example_state("again", 3), epoch=2)])
