"""The order number in a point's record."""

from __future__ import annotations

from typing import Any

import pytest

from vmkeep.errors import ObjectDamaged
from vmkeep.repository import PointRecord

WITHOUT: dict[str, Any] = {
    "id": "a" * 32,
    "vm_uuid": "4dea22b3-1d52-d8f3-2516-782e98ab3fa0",
    "vm_name": "win11",
    "kind": "full",
    "parent": None,
    "created": "2026-03-01T10:00:00.000000+00:00",
    "host": "alpha",
    "checkpoint": None,
    "pause_ms": 0,
    "labels": {},
    "definition": "<domain/>",
    "warnings": [],
    "excluded": [],
    "states": [],
    "disks": [],
}


@pytest.mark.parametrize("value", [WITHOUT, {**WITHOUT, "sequence": 7}, {**WITHOUT, "sequence": 1, "later": "kept"}])
def test_record_is_written_as_it_was_read(value: dict[str, Any]) -> None:
    record = PointRecord.from_json(value, "point")
    assert record.sequence == value.get("sequence")
    assert "sequence" not in record.extra
    assert record.as_json() == value


@pytest.mark.parametrize("wrong", [0, -1, True, None, "7", 1.0])
def test_number_that_no_writer_draws_is_damage(wrong: object) -> None:
    with pytest.raises(ObjectDamaged):
        PointRecord.from_json({**WITHOUT, "sequence": wrong}, "point")
