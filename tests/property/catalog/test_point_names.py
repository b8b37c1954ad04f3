"""The beginning of an id means a point if it fits that one only, whatever ids there are."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.catalog.examples import example_point
from vmkeep.catalog import SqlCatalog
from vmkeep.errors import PointNotFound

# Few digits, so that ids share beginnings.
IDS = st.text("0f", min_size=32, max_size=32)


@functools.cache
def _empty() -> bytes:
    """An empty catalogue: its schema is made once, not for each example."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalog.sqlite"
        SqlCatalog.open(path).close()
        return path.read_bytes()


@settings(max_examples=30, deadline=None)
@given(st.sets(IDS, min_size=1, max_size=6), st.data())
def test_beginning_is_found_exactly_when_it_is_unique(ids: set[str], data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(sorted(ids)))[: data.draw(st.integers(1, 32))]
    fitting = [point_id for point_id in ids if point_id.startswith(text)]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalog.sqlite"
        path.write_bytes(_empty())
        with SqlCatalog.open(path) as catalog:
            catalog.adopt([(example_point("p", point_id=point_id), ()) for point_id in ids])
            assert set(catalog.point_ids()) == ids
            if len(text) >= 4 and len(fitting) == 1:
                assert catalog.find_point(text).id == fitting[0]
                return
            with pytest.raises(PointNotFound) as caught:
                catalog.find_point(text)
            assert len(text) < 4 or all(point_id in caught.value.message for point_id in fitting)
