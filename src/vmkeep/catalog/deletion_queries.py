"""Rows of proofs of deletion, of later facts about them, and of tombstones: what must still be deleted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, Select, delete, insert, select, update

from vmkeep.catalog import models, texts
from vmkeep.catalog.records import CatalogDeletion, trust_of
from vmkeep.errors import CatalogError

if TYPE_CHECKING:
    from vmkeep.custody.tombstones import Tombstone

_deletions = models.deletions
_tombstones = models.tombstones
_keys = models.host_keys


def add(connection: Connection, deletion: CatalogDeletion) -> None:
    """Add one; one that is known stays as it is."""
    if connection.execute(select(_deletions.c.id).where(_deletions.c.id == deletion.id)).first() is not None:
        return
    plain = {name: getattr(deletion, name) for name in _PLAIN}
    connection.execute(insert(_deletions).values(**plain, document=texts.dump(deletion.document)))


_PLAIN = ("id", "of", "event", "vm_uuid", "created", "kept_until", "stored", "signed_by")


def withdraw(connection: Connection, deletion_id: str) -> None:
    """Remove one that the repository does not have."""
    connection.execute(delete(_deletions).where(_deletions.c.id == deletion_id, ~_deletions.c.stored))


def note_stored(connection: Connection, deletion_id: str, signed_by: str | None) -> None:
    """Note that the repository has one."""
    mine = update(_deletions).where(_deletions.c.id == deletion_id)
    connection.execute(mine.values(stored=True, signed_by=signed_by))


def every(connection: Connection, vm_uuid: str | None) -> tuple[CatalogDeletion, ...]:
    """Return those of a VM or of all, the oldest first, with what is thought of who signed them."""
    chosen = _judged()
    return _read(connection, chosen if vm_uuid is None else chosen.where(_deletions.c.vm_uuid == vm_uuid))


def unstored(connection: Connection) -> tuple[CatalogDeletion, ...]:
    """Return those that the repository does not have."""
    return _read(connection, _judged().where(~_deletions.c.stored))


def _judged() -> Select[Any]:
    joined = _deletions.outerjoin(_keys, _keys.c.fingerprint == _deletions.c.signed_by)
    chosen = select(_deletions, _keys.c.trust.label("found")).select_from(joined)
    return chosen.order_by(_deletions.c.created, _deletions.c.id)


def _read(connection: Connection, chosen: Select[Any]) -> tuple[CatalogDeletion, ...]:
    return tuple(
        CatalogDeletion(
            id=row.id,
            of=row.of,
            event=row.event,
            vm_uuid=row.vm_uuid,
            created=row.created,
            document=texts.load(row.document),
            kept_until=row.kept_until,
            stored=bool(row.stored),
            signed_by=row.signed_by,
            trust=trust_of(row.signed_by, row.found),
        )
        for row in connection.execute(chosen)
    )


# -- tombstones --------------------------------------------------------------------------------------------------


def add_tombstones(connection: Connection, tombstones: Sequence[Tombstone]) -> None:
    """Add those that are not known."""
    for each in tombstones:
        if connection.execute(select(_tombstones.c.id).where(_tombstones.c.id == each.id)).first() is None:
            connection.execute(insert(_tombstones).values(id=each.id, **_row_of_tombstone(each)))


def withdraw_tombstones(connection: Connection, origin: str) -> None:
    """Remove those of an operation, which was undone."""
    connection.execute(delete(_tombstones).where(_tombstones.c.origin == origin))


def all_tombstones(connection: Connection, vm_uuid: str | None) -> tuple[Tombstone, ...]:
    """Return those of a VM or of all, the oldest first."""
    chosen = select(_tombstones).order_by(_tombstones.c.since, _tombstones.c.id)
    if vm_uuid is not None:
        chosen = chosen.where(_tombstones.c.vm_uuid == vm_uuid)
    return _read_tombstones(connection.execute(chosen))


def open_tombstones(connection: Connection) -> tuple[Tombstone, ...]:
    """Return those on which something is to be done, the oldest first."""
    # What came to its end has a time of that.
    chosen = select(_tombstones).where(_tombstones.c.ended.is_(None))
    return _read_tombstones(connection.execute(chosen.order_by(_tombstones.c.since, _tombstones.c.id)))


def move_tombstone(connection: Connection, known: Tombstone, to: Tombstone) -> None:
    """Change one by compare-and-set. Raises CatalogError when it is another by now, or may not become that."""
    mine = (
        _tombstones.c.id == known.id,
        _tombstones.c.state == known.state.value,
        _tombstones.c.tries == known.tries,
    )
    if (
        not to.follows(known)
        or connection.execute(update(_tombstones).where(*mine).values(_row_of_tombstone(to))).rowcount != 1
    ):
        raise CatalogError(
            f"Tombstone {known.id} cannot become {to.state}: another command has changed it meanwhile",
            vm=known.vm_name,
            hint="`vmkeep tombstones list --all` shows what became of it.",
        )


def _row_of_tombstone(each: Tombstone) -> dict[str, Any]:
    files = [{name: getattr(file, name) for name in file.__slots__} for file in each.files]
    plain = {name: getattr(each, name) for name in _PLAIN_OF_TOMBSTONES}
    words = {name: getattr(each, name).value for name in ("kind", "protection", "state", "ending")}
    return {**plain, **words, "files": json.dumps(files, ensure_ascii=False, sort_keys=True, separators=(",", ":"))}


_PLAIN_OF_TOMBSTONES = (
    *("origin", "host_uuid", "host_name", "vm_uuid", "vm_name", "place", "since", "secret", "tries", "last_at"),
    *("last_error", "ended", "who", "why"),
)


def _read_tombstones(rows: Iterable[Row[Any]]) -> tuple[Tombstone, ...]:
    return tuple(map(_tombstone, rows))


def _tombstone(row: Row[Any]) -> Tombstone:
    # Nearly always there is none, and every command asks.
    from vmkeep.custody.tombstones import (
        Ending,
        Protection,
        Tombstone,
        TombstoneFile,
        TombstoneKind,
        TombstoneState,
    )

    return Tombstone(
        id=row.id,
        kind=TombstoneKind(row.kind),
        protection=Protection(row.protection),
        state=TombstoneState(row.state),
        ending=Ending(row.ending),
        files=tuple(TombstoneFile(**file) for file in json.loads(row.files)),
        **{name: getattr(row, name) for name in _PLAIN_OF_TOMBSTONES},
    )
