"""A point whose process was killed between repository and catalogue is recorded, whatever was captured since."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.catalog.examples import example_state
from tests.integration.repository.samples import VM, record_of
from vmkeep.catalog import CatalogPin, CatalogState, FoundPin, MemoryCatalog
from vmkeep.errors import CatalogError
from vmkeep.flows.take_point import record_committed_point
from vmkeep.repository import PointRecord, StateRef

POINT = "ab" * 16


class Dead:
    """The services of whoever settles it: a catalogue, a repository that holds the point, and a host without a gate."""

    def __init__(self, catalog: MemoryCatalog, record: PointRecord) -> None:
        self.catalog = catalog
        self.record = record
        self.host = self

    def with_repository(self, call: Callable[[Any], Any]) -> Any:
        return call(self)

    def writers(self) -> tuple[()]:
        return ()

    def point(self, _point_id: str) -> PointRecord:
        return self.record

    def ask(self, _task: object) -> bool:
        return False


def _record(state: CatalogState) -> PointRecord:
    ref = StateRef("tpm", state.id, state.generation, state.sha256, state.size_bytes, "tpm2/tpm2-00.permall")
    return replace(record_of((), states=[ref]), id=POINT, sequence=2)


def _state(name: str, generation: int) -> CatalogState:
    return example_state(name, generation, vm=VM)


def _captured(catalog: MemoryCatalog, state: CatalogState) -> None:
    catalog.accept_states([state])
    pin = CatalogPin(state.id[::-1], VM, "demo", "host", "2026", "kept", (state.id,))
    catalog.adopt_pins([FoundPin(pin, (state,))])


@pytest.mark.parametrize("captured", [False, True])
def test_point_is_recorded_and_the_captured_version_stays_the_newest(captured: bool) -> None:
    catalog = MemoryCatalog()
    catalog.see_vm(VM, "demo")
    own, since = _state("in the point", 1), _state("captured since", 1)
    if captured:
        _captured(catalog, since)
    assert record_committed_point(Dead(catalog, _record(own)), POINT)  # type: ignore[arg-type]
    assert catalog.point_ids() == (POINT,)
    assert catalog.pins(own.id) == (POINT,)
    newest = catalog.newest_state(VM, "tpm")
    assert newest is not None
    assert newest.id == (since.id if captured else own.id)
    vm = catalog.vm(VM)
    assert vm is not None
    assert vm.current_point == POINT


def test_another_point_of_its_id_is_not_taken_for_it() -> None:
    catalog = MemoryCatalog()
    record = _record(_state("v", 1))
    assert record_committed_point(Dead(catalog, record), POINT)  # type: ignore[arg-type]
    with pytest.raises(CatalogError):
        record_committed_point(Dead(catalog, replace(record, host="another")), POINT)  # type: ignore[arg-type]
