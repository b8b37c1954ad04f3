"""A proof of deletion that others wrote: what comes out is data that can be kept and shown, or an error with a hint."""

from __future__ import annotations

from typing import Any

from hypothesis import given

from tests.integration.repository.test_deletions import REMOVAL
from tests.property.foreign import anything, damaged, forged, outcome, written
from tests.property.repository.test_foreign_bytes import SEALER, Memory, store_of
from vmkeep.catalog import MemoryCatalog, Trust
from vmkeep.cli.removals import proof_parts
from vmkeep.flows.removals import as_row, tpm_kept_until
from vmkeep.flows.show_removals import Proved, RemovalShown, list_removals
from vmkeep.repository import DeletionRecord
from vmkeep.repository.deletions import Deletions
from vmkeep.repository.layout import DELETIONS, FrameKind, canonical, parse_canonical

_GOOD = canonical(REMOVAL.as_json())


def use(record: DeletionRecord) -> None:
    """Do with a record that parses what everybody does with one; none of it may fail, nor decide anything here."""
    assert parse_canonical(canonical(record.as_json()), "x") == record.as_json()
    catalog = MemoryCatalog()
    catalog.record_deletion(as_row(record, stored=True))
    list_removals(catalog, record.vm_uuid)
    assert tpm_kept_until(catalog, record.vm_uuid) is None
    proved = Proved(record, stored=True, signed_by=None, trust=Trust.UNSIGNED)
    for part in proof_parts(RemovalShown(proved, (proved,))):
        for line in [part] if isinstance(part, str) else part.lines(80):
            assert line.isprintable()


@given(forged(REMOVAL.as_json()))
def test_proof_with_other_fields(value: Any) -> None:
    data = written(value)
    if data is not None:
        record = outcome(lambda: DeletionRecord.from_json(parse_canonical(data, "deletions/x"), "deletions/x"))
        if record is not None:
            use(record)


@given(anything)
def test_any_json_as_a_proof(value: Any) -> None:
    data = written(value)
    if data is not None:
        outcome(lambda: DeletionRecord.from_json(parse_canonical(data, "deletions/x"), "deletions/x"))


@given(damaged(SEALER.seal_alone(FrameKind.DELETION, REMOVAL.id, _GOOD)))
def test_damaged_object_of_a_proof(data: bytes) -> None:
    store = store_of(Memory({DELETIONS + REMOVAL.id: data}))
    record = outcome(lambda: Deletions(store, SEALER, "ab" * 16, None).get(REMOVAL.id))
    assert record is None or record == REMOVAL
