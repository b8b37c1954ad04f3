"""Rows of proofs of deletion, and of later facts about them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, delete, insert, select, update

from vmkeep.catalog import models, texts
from vmkeep.catalog.records import CatalogDeletion, trust_of

_deletions = models.deletions
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
