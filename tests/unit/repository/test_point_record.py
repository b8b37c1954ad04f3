"""The order number in a point's record."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.repository.records import GOOD as WITHOUT
from vmkeep.errors import ObjectDamaged
from vmkeep.repository import PointRecord


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
