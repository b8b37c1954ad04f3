"""Whoever tells how a state file stands goes by the same: a list, `doctor`, the gate, and a restore."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest

from tests.integration.catalog.examples import WIN11, example_point, example_state
from vmkeep.catalog import CatalogState, KnownHostKey, MemoryCatalog, Trust
from vmkeep.custody.standing import FoundState, Standing, judge_state
from vmkeep.flows.check_up import _remembered
from vmkeep.flows.gate import gated_vm
from vmkeep.flows.vm_states import look_at_standings, versions_asked_for, versions_kept
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.survey import HostIdentity, LookAtStates, StatesOfVm

OURS, THEIRS = "a" * 32, "f" * 32
OLD, NEW = example_state("old", 1), example_state("new", 2)
FOREIGN = example_state("theirs", 3)


def _catalog(trust: Trust, *foreign: CatalogState) -> MemoryCatalog:
    """A catalogue with two versions of its own, and a point of another host that claims newer ones."""
    catalog = MemoryCatalog()
    catalog.see_host_key(KnownHostKey(OURS, "00", "i1", "alpha", Trust.OWN))
    catalog.see_host_key(KnownHostKey(THEIRS, "01", "i2", "beta", trust))
    for name, state in (("p1", OLD), ("p2", NEW)):
        catalog.record_point(dataclasses.replace(example_point(name, states=(state,)), signed_by=OURS), [state])
    theirs = dataclasses.replace(example_point("p3", states=foreign), signed_by=THEIRS)
    catalog.adopt([(theirs, foreign)])
    return catalog


class _Lies:
    """A host on which a TPM state of some content lies."""

    def __init__(self, sha256: str) -> None:
        self.sha256 = sha256

    def ask(self, task: Any) -> Any:
        if isinstance(task, LookAtStates):
            return (StatesOfVm("win11", WIN11, "off", (FoundState("tpm", "/tpm", self.sha256, 3),)),)
        return HostIdentity("11111111-0000-4000-8000-000000000000", "alpha")


@pytest.mark.parametrize("trust", [Trust.UNKNOWN, Trust.DISTRUSTED, Trust.TRUSTED])
@pytest.mark.parametrize("lies_there", [OLD, NEW, FOREIGN])
def test_list_and_doctor_call_dangerous_what_the_gate_refuses(trust: Trust, lies_there: CatalogState) -> None:
    catalog = _catalog(trust, FOREIGN)
    newest = FOREIGN if trust is Trust.TRUSTED else NEW
    (listed,) = look_at_standings(catalog, cast("Host", _Lies(lies_there.sha256))).states
    (gated,) = gated_vm(catalog, WIN11).states
    doctor = judge_state(FoundState("tpm", "/tpm", lies_there.sha256, 3), _remembered(catalog, WIN11).grounds)
    assert listed.judged == doctor
    assert listed.in_danger == (lies_there.sha256 in gated.superseded)
    assert (listed.judged.standing is Standing.CURRENT) == (lies_there == newest)
    assert listed.newest == newest
    assert [each.version for each in versions_kept(catalog, WIN11) if each.current] == [newest]
    assert [each.version for each in versions_asked_for(catalog, WIN11, None, None)] == [newest]


def test_version_that_nobody_vouches_for_does_not_end_what_was_put_in_place() -> None:
    catalog = _catalog(Trust.UNKNOWN)
    catalog.place_states(WIN11, {"tpm": OLD.sha256})
    late = dataclasses.replace(example_point("p4", states=(FOREIGN,)), signed_by=THEIRS)
    catalog.adopt([(late, [FOREIGN])])
    (gated,) = gated_vm(catalog, WIN11).states
    assert OLD.sha256 in gated.allowed


def test_doctor_knows_of_a_vm_that_was_only_captured_that_an_older_file_is_older() -> None:
    catalog = MemoryCatalog()
    catalog.see_vm(WIN11, "win11")
    for state in (OLD, NEW):
        catalog.accept_states([state])
    judged = judge_state(FoundState("tpm", "/tpm", OLD.sha256, 3), _remembered(catalog, WIN11).grounds)
    assert judged.standing is Standing.SUPERSEDED
