"""What the gate is told of a VM, out of the catalogue: nothing that nobody vouches for."""

from __future__ import annotations

import dataclasses

import pytest

from tests.integration.catalog.examples import WIN11, example_point, example_state
from vmkeep.catalog import CatalogPoint, CatalogState, KnownHostKey, MemoryCatalog, Trust
from vmkeep.custody.gate import GatedState
from vmkeep.flows.gate import gated_vm

OURS, THEIRS = "a" * 32, "f" * 32


def _catalog(trust: Trust) -> MemoryCatalog:
    """A catalogue that knows a key of its own, and one of another host."""
    catalog = MemoryCatalog()
    catalog.see_host_key(KnownHostKey(OURS, "00", "i1", "alpha", Trust.OWN))
    catalog.see_host_key(KnownHostKey(THEIRS, "01", "i2", "beta", trust))
    return catalog


def _signed(name: str, state: CatalogState, key: str) -> CatalogPoint:
    return dataclasses.replace(example_point(name, states=(state,)), signed_by=key)


@pytest.mark.parametrize("trust", [Trust.UNKNOWN, Trust.DISTRUSTED, Trust.TRUSTED])
def test_newer_version_of_a_host_that_nobody_trusts_keeps_no_vm_from_starting(trust: Trust) -> None:
    catalog = _catalog(trust)
    ours, theirs = example_state("ours", 1), example_state("theirs", 2)
    catalog.record_point(_signed("p1", ours, OURS), [ours])
    catalog.adopt([(_signed("p2", theirs, THEIRS), [theirs])])
    (gated,) = gated_vm(catalog, WIN11).states
    if trust is Trust.TRUSTED:
        assert gated == GatedState("tpm", (theirs.sha256,), (ours.sha256,))
    else:
        assert gated == GatedState("tpm", (ours.sha256,), ())


def test_what_was_put_in_place_may_start() -> None:
    catalog = _catalog(Trust.UNKNOWN)
    old, new = example_state("old", 1), example_state("new", 2)
    catalog.record_point(_signed("p1", old, OURS), [old])
    catalog.record_point(_signed("p2", new, OURS), [new])
    assert gated_vm(catalog, WIN11).states == (GatedState("tpm", (new.sha256,), (old.sha256,)),)
    catalog.place_states(WIN11, {"tpm": old.sha256})
    assert gated_vm(catalog, WIN11).states == (GatedState("tpm", (new.sha256, old.sha256), ()),)
    assert gated_vm(catalog, "00000000-0000-4000-8000-000000000000").states == ()
