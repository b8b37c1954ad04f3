"""The list of points that is read without SQLAlchemy says what the catalogue says."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.catalog.examples import WEB, WIN11, example_point
from vmkeep.catalog import KnownHostKey, SqlCatalog, Trust
from vmkeep.catalog.listing import read_listing
from vmkeep.errors import VmNotFound


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a catalogue with points of two VMs, whose clocks are out of order, and of four kinds of makers."""
    path = tmp_path / "catalog.sqlite"
    with SqlCatalog.open(path) as catalog:
        for fingerprint, trust in (("a" * 32, Trust.OWN), ("b" * 32, Trust.UNKNOWN), ("c" * 32, Trust.DISTRUSTED)):
            catalog.see_host_key(KnownHostKey(fingerprint, "0" * 64, "e" * 32, "host1", trust))
        for number, (name, vm, minute) in enumerate(
            [("one", WIN11, 5), ("two", WEB, 4), ("three", WIN11, 1), ("four", WEB, 9), ("five", WIN11, 7)]
        ):
            point = example_point(
                name, vm=vm, vm_name="win11" if vm == WIN11 else "web", minute=minute, sequence=number
            )
            catalog.record_point(point, ())
        catalog.see_vm(WEB, "Web 'x'")
    with closing(sqlite3.connect(path)) as database, database:
        for row, signed_by in enumerate(["a" * 32, "b" * 32, "c" * 32, "d" * 32, ""], start=1):
            database.execute("UPDATE points SET signed_by = ? WHERE rowid = ?", (signed_by, row))
    return path


@pytest.mark.parametrize("vm", [None, WIN11, WIN11.upper(), "win11", "web", "Web 'x'"])
def test_listing_is_that_of_the_catalogue(path: Path, vm: str | None) -> None:
    listing = read_listing(path, vm)
    with SqlCatalog.open(path) as catalog:
        assert listing is not None
        assert listing.summaries == catalog.summaries(vm)
        assert listing.ids == catalog.point_ids()
    assert len(listing.summaries) == {None: 5, "web": 2, "Web 'x'": 2}.get(vm, 3)


def test_makers_of_all_kinds_are_listed(path: Path) -> None:
    listing = read_listing(path, None)
    assert listing is not None
    assert {point["made_by"]["trust"] for point in listing.summaries} == {"own", "unknown", "distrusted", "unsigned"}


def test_name_that_nothing_bears_is_left_to_the_catalogue(path: Path) -> None:
    assert read_listing(path, "Win11") is None
    with SqlCatalog.open(path) as catalog, pytest.raises(VmNotFound):
        catalog.summaries("Win11")


def test_catalogue_that_is_not_as_it_should_be_is_left_to_what_can_tell(path: Path) -> None:
    assert read_listing(path.with_name("none"), None) is None
    assert not path.with_name("none").exists()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0004'")
    assert read_listing(path, None) is None
    path.write_bytes(b"no database" * 100)
    assert read_listing(path, None) is None


def test_listing_sees_what_another_process_has_just_written(path: Path) -> None:
    with SqlCatalog.open(path) as catalog:
        catalog.record_point(example_point("six", minute=50, sequence=6), ())
        listing = read_listing(path, None)  # from the write-ahead log, which is not written back yet
        assert listing is not None
        assert len(listing.ids) == 6
