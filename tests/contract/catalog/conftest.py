"""Whatever is a catalogue: the one in SQL, and its twin in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vmkeep.catalog import Catalog, MemoryCatalog, SqlCatalog


@pytest.fixture(params=["sql", "memory"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    opened: Catalog = MemoryCatalog() if request.param == "memory" else SqlCatalog.open(tmp_path / "catalog.sqlite")
    with closing(opened):
        yield opened
