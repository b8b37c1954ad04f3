"""The list of points, read by SQLite alone: `vmkeep points` is asked often, and must not wait for SQLAlchemy to load.

What it says is what ``Catalog.summaries`` and ``Catalog.point_ids`` say of the same file (a test compares them). It
reads a catalogue that is there, sound, and of this release's schema. Anything else is left to ``SqlCatalog``, with its
errors.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from vmkeep.catalog import texts
from vmkeep.catalog.records import made_by, trust_of
from vmkeep.catalog.revision import BUSY_TIMEOUT_MS, HEAD_REVISION

# Of several VMs: by clock, as far as no point comes before one of its VM that was made earlier.
_POINTS: Final = """
SELECT p.summary, p.signed_by, k.trust, k.installation
FROM points AS p LEFT JOIN host_keys AS k ON k.fingerprint = p.signed_by
WHERE :everything OR p.vm_uuid IN (SELECT value FROM json_each(:uuids))
ORDER BY max(p.created) OVER (PARTITION BY p.vm_uuid ORDER BY p.place), p.vm_uuid, p.place
"""
# Those that a person means: by UUID, by present name, else by a name that a point has.
_NAMED: Final = (
    "SELECT uuid FROM vms WHERE uuid = :uuid",
    "SELECT uuid FROM vms WHERE name = :name",
    "SELECT DISTINCT vm_uuid FROM points WHERE vm_name = :name",
)


class Listing(NamedTuple):
    """Summaries of points, oldest first, and the ids of all that there are, sorted."""

    summaries: tuple[dict[str, Any], ...]
    ids: tuple[str, ...]


def read_listing(path: Path, vm: str | None) -> Listing | None:
    """Return the points of a VM, or of all; None when ``Catalog`` must be asked, which knows why."""
    if not path.is_file():
        return None
    try:
        address = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_MS / 1000)) as database:
            return _read(database, vm)
    except (sqlite3.Error, UnicodeError, ValueError):
        return None


def _read(database: sqlite3.Connection, vm: str | None) -> Listing | None:
    database.isolation_level = None
    database.execute("BEGIN")  # one consistent view
    if database.execute("SELECT version_num FROM alembic_version").fetchall() != [(HEAD_REVISION,)]:
        return None
    uuids = None if vm is None else _uuids(database, vm)
    if uuids is not None and not uuids:
        return None
    chosen = {"everything": uuids is None, "uuids": texts.dump_list(uuids or ())}
    rows = database.execute(_POINTS, chosen).fetchall()
    ids = tuple(str(point) for (point,) in database.execute("SELECT id FROM points ORDER BY id"))
    return Listing(tuple(_summary(*row) for row in rows), ids)


def _uuids(database: sqlite3.Connection, name: str) -> Sequence[str]:
    for query in _NAMED:
        if found := [str(uuid) for (uuid,) in database.execute(query, {"name": name, "uuid": name.lower()})]:
            return found
    return ()


def _summary(summary: str, signed_by: str | None, trust: str | None, installation: str | None) -> dict[str, Any]:
    # What an older release has written lacks the number. Who made it may be trusted, or not any more, since then.
    maker = made_by(signed_by, installation, trust_of(signed_by, trust))
    return {"sequence": None, **texts.load(summary), "made_by": maker}
