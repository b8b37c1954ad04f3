"""Rows of tombstones: what must still be deleted on hosts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from vmkeep.catalog import models
from vmkeep.custody.tombstones import (
    UNSETTLED,
    Ending,
    Protection,
    Tombstone,
    TombstoneFile,
    TombstoneKind,
    TombstoneState,
)
from vmkeep.errors import CatalogError

_tombstones = models.tombstones


def add(connection: Connection, tombstones: Sequence[Tombstone]) -> None:
    """Add those that are not known."""
    for each in tombstones:
        if connection.execute(select(_tombstones.c.id).where(_tombstones.c.id == each.id)).first() is None:
            connection.execute(insert(_tombstones).values(id=each.id, **_row(each)))


def withdraw(connection: Connection, origin: str) -> None:
    """Remove those of an operation, which was undone."""
    connection.execute(delete(_tombstones).where(_tombstones.c.origin == origin))


def every(connection: Connection, vm_uuid: str | None) -> tuple[Tombstone, ...]:
    """Return those of a VM or of all, the oldest first."""
    chosen = select(_tombstones).order_by(_tombstones.c.since, _tombstones.c.id)
    if vm_uuid is not None:
        chosen = chosen.where(_tombstones.c.vm_uuid == vm_uuid)
    return _read(connection.execute(chosen))


def unsettled(connection: Connection) -> tuple[Tombstone, ...]:
    """Return those on which something is to be done, the oldest first."""
    chosen = select(_tombstones).where(_tombstones.c.state.in_(sorted(state.value for state in UNSETTLED)))
    return _read(connection.execute(chosen.order_by(_tombstones.c.since, _tombstones.c.id)))


def move(connection: Connection, known: Tombstone, to: Tombstone) -> None:
    """Change one by compare-and-set. Raises CatalogError when it is another by now, or may not become that."""
    mine = (
        _tombstones.c.id == known.id,
        _tombstones.c.state == known.state.value,
        _tombstones.c.tries == known.tries,
    )
    if not to.follows(known) or connection.execute(update(_tombstones).where(*mine).values(_row(to))).rowcount != 1:
        raise CatalogError(
            f"Tombstone {known.id} cannot become {to.state}: another command has changed it meanwhile",
            vm=known.vm_name,
            hint="`vmkeep tombstones list --all` shows what became of it.",
        )


def _row(each: Tombstone) -> dict[str, Any]:
    files = [{name: getattr(file, name) for name in file.__slots__} for file in each.files]
    plain = {name: getattr(each, name) for name in _PLAIN}
    words = {name: getattr(each, name).value for name in ("kind", "protection", "state", "ending")}
    return {**plain, **words, "files": json.dumps(files, ensure_ascii=False, sort_keys=True, separators=(",", ":"))}


_PLAIN = (
    *("origin", "host_uuid", "host_name", "vm_uuid", "vm_name", "place", "since", "secret", "tries", "last_at"),
    *("last_error", "ended", "who", "why"),
)


def _read(rows: Iterable[Row[Any]]) -> tuple[Tombstone, ...]:
    return tuple(
        Tombstone(
            id=row.id,
            kind=TombstoneKind(row.kind),
            protection=Protection(row.protection),
            state=TombstoneState(row.state),
            ending=Ending(row.ending),
            files=tuple(TombstoneFile(**file) for file in json.loads(row.files)),
            **{name: getattr(row, name) for name in _PLAIN},
        )
        for row in rows
    )
