"""Rows of snapshots: what is kept beside libvirt's own record of one."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from vmkeep.catalog import models, state_queries
from vmkeep.catalog.records import CatalogSnapshot

snapshots = models.snapshots
# By number, as they were recorded; those of an older release have none and come first.
_OLDEST_FIRST = (snapshots.c.sequence, snapshots.c.created, snapshots.c.name)


def get(connection: Connection, vm_uuid: str, name: str) -> CatalogSnapshot | None:
    chosen = select(snapshots).where(snapshots.c.vm_uuid == vm_uuid, snapshots.c.name == name)
    row = connection.execute(chosen).first()
    return None if row is None else _snapshot(connection, row)


def by_id(connection: Connection, snapshot_id: str) -> CatalogSnapshot | None:
    row = connection.execute(select(snapshots).where(snapshots.c.id == snapshot_id)).first()
    return None if row is None else _snapshot(connection, row)


def of_vm(connection: Connection, vm_uuid: str) -> tuple[CatalogSnapshot, ...]:
    chosen = select(snapshots).where(snapshots.c.vm_uuid == vm_uuid).order_by(*_OLDEST_FIRST)
    return tuple(_snapshot(connection, row) for row in connection.execute(chosen).all())


def add(connection: Connection, snapshot: CatalogSnapshot, sequence: int) -> None:
    row = {
        "id": snapshot.id,
        "vm_uuid": snapshot.vm_uuid,
        "name": snapshot.name,
        "creation_time": snapshot.creation_time,
        "current_point": snapshot.current_point,
        "created": snapshot.created,
        "sequence": sequence,
    }
    connection.execute(insert(snapshots).values(row))


def rename(connection: Connection, vm_uuid: str, name: str, new_name: str) -> bool:
    """Change a name; one of the new name, which libvirt cannot list any more, is removed."""
    snapshot = get(connection, vm_uuid, name)
    if snapshot is None:
        return False
    taken = get(connection, vm_uuid, new_name)
    if taken is not None and taken.id != snapshot.id:
        remove(connection, taken.id)
    connection.execute(update(snapshots).where(snapshots.c.id == snapshot.id).values(name=new_name))
    return True


def remove(connection: Connection, snapshot_id: str) -> bool:
    """Remove a snapshot and what it holds; False when it was not known. It is not taken over from its pin again."""
    state_queries.unpin(connection, snapshot_id, "snapshot")
    its_pins = models.pin_objects.c.snapshot_id == snapshot_id
    connection.execute(update(models.pin_objects).where(its_pins).values(snapshot_name=None))
    return connection.execute(delete(snapshots).where(snapshots.c.id == snapshot_id)).rowcount > 0


def _snapshot(connection: Connection, row: Row[Any]) -> CatalogSnapshot:
    return CatalogSnapshot(
        row.id,
        row.vm_uuid,
        row.name,
        row.creation_time,
        row.current_point,
        row.created,
        state_queries.held(connection, row.id, "snapshot"),
    )
