"""The order of points in a catalogue that an older release has written."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

from alembic import command
from sqlalchemy import create_engine

from tests.integration.catalog.examples import WIN11, example_point, number
from vmkeep.catalog import CatalogPoint, SqlCatalog
from vmkeep.catalog.migrations.upgrade import _config


def test_catalogue_of_an_older_release_gets_its_order(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    engine.dispose()
    made = [
        example_point("o1", minute=10),
        example_point("o2", minute=50, parent=number("o1")),
        example_point("o3", minute=20, parent=number("o2")),
        # What a newer release wrote and the older one adopted.
        example_point("n5", minute=1, parent=number("o3"), sequence=5),
    ]
    _write_as_0002(path, made)
    with SqlCatalog.open(path) as catalog:
        assert [point.id for point in catalog.points("win11")] == [point.id for point in made]
        # It was known before points were signed.
        assert catalog.points() == tuple(replace(point, signed_by="") for point in made)
        assert [summary["sequence"] for summary in catalog.summaries()] == [None, None, None, 5]
        assert catalog.next_sequence(WIN11) == 6
        late = next(state for state in catalog.states_of_vm(WIN11))
        assert (late.conflict, catalog.pins(late.id)) == (False, (number("o1"),))


def _write_as_0002(path: Path, made: list[CatalogPoint]) -> None:

    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO vms VALUES (?, 'win11', NULL, '2026', 0, NULL)", (WIN11,))
    for point in made:
        summary = {name: value for name, value in point.summary().items() if name != "sequence" or value}
        row = (
            point.id, point.vm_uuid, point.vm_name, point.kind, point.parent, point.created, point.host,
            point.checkpoint, point.pause_ms, "{}", json.dumps(summary), json.dumps(point.document),
        )  # fmt: skip
        connection.execute("INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.execute("INSERT INTO state_versions VALUES ('v', ?, 'tpm', 1, 's', 1, '2026')", (WIN11,))
    connection.execute("INSERT INTO pins VALUES ('v', 'point', ?)", (number("o1"),))
    connection.commit()
    connection.close()
