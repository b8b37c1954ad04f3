"""Whatever is a catalogue: the one in SQL, on SQLite and on PostgreSQL, and its twin in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.catalog.examples import make_tables
from tests.rig.database import Cluster
from vmkeep.catalog import Catalog, MemoryCatalog, SqlCatalog


@pytest.fixture(params=["sqlite", "postgres", "memory"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    with contextlib.ExitStack() as stack:
        opened: Catalog
        if request.param == "memory":
            opened = MemoryCatalog()
        elif request.param == "sqlite":
            opened = SqlCatalog.open(tmp_path / "catalog.sqlite")
        else:
            cluster: Cluster = request.getfixturevalue("cluster")
            opened = SqlCatalog.connect(stack.enter_context(cluster.database(make_tables)))
        yield stack.enter_context(contextlib.closing(opened))
