"""A mark of a point that others wrote: what comes out is data that can be kept and shown, or an error with a hint."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given

from tests.integration.repository.test_marks import GOING, KEPT
from tests.property.foreign import anything, damaged, forged, outcome, written
from tests.property.repository.test_foreign_bytes import SEALER, Memory, store_of
from vmkeep.catalog import MemoryCatalog
from vmkeep.cli.point_marks import described
from vmkeep.flows.catch_up_on_marks import catch_up_on_marks
from vmkeep.repository.layout import canonical
from vmkeep.repository.marks import PROTECTION, REMOVAL, Mark, MarkKind, Marks

_NOW = datetime(2026, 11, 30, tzinfo=UTC)
_FIELDS = ("id", "host", "created", "why", "vm_uuid", "vm_name", "taken")


def plain(mark: Mark, kind: MarkKind) -> dict[str, Any]:
    return {name: getattr(mark, name) for name in (*_FIELDS, kind.own)}


class Held(Marks):
    """Marks whose store cannot list."""

    def stored(self) -> dict[str, datetime]:
        return {GOING.id: _NOW} if self.kind is REMOVAL else {KEPT.id: _NOW}


class Repository:
    """A repository that has what somebody put under the name of a point."""

    def __init__(self, kind: MarkKind, name: str, data: bytes) -> None:
        store = store_of(Memory({kind.prefix + name: data}))
        self.removals = Held(REMOVAL, store, SEALER, "ab" * 16, None)
        self.protections = Held(PROTECTION, store, SEALER, "ab" * 16, None)


def meet(kind: MarkKind, name: str, data: bytes) -> None:
    """Take it over as an installation does; none of it may fail, and it hides nothing."""
    catalog = MemoryCatalog()
    for sentence in catch_up_on_marks(catalog, Repository(kind, name, data)):
        assert sentence
    for removal in catalog.removals():
        assert not removal.hides
        json.dumps(described(removal, _NOW))


@given(forged(plain(GOING, REMOVAL)))
def test_removal_with_other_fields(value: Any) -> None:
    data = written(value)
    if data is not None:
        meet(REMOVAL, GOING.id, SEALER.seal_alone(REMOVAL.frame, GOING.id, data))


@given(forged(plain(KEPT, PROTECTION)))
def test_protection_with_other_fields(value: Any) -> None:
    data = written(value)
    if data is not None:
        meet(PROTECTION, KEPT.id, SEALER.seal_alone(PROTECTION.frame, KEPT.id, data))


@given(anything)
def test_any_json_as_a_mark(value: Any) -> None:
    data = written(value)
    if data is not None:
        meet(REMOVAL, GOING.id, SEALER.seal_alone(REMOVAL.frame, GOING.id, data))


@given(damaged(SEALER.seal_alone(REMOVAL.frame, GOING.id, canonical(plain(GOING, REMOVAL)))))
def test_damaged_object_of_a_mark(data: bytes) -> None:
    store = store_of(Memory({REMOVAL.prefix + GOING.id: data}))
    mark = outcome(lambda: Marks(REMOVAL, store, SEALER, "ab" * 16, None).get(GOING.id))
    assert mark is None or mark == GOING
