"""Rows of VMs and hosts; which VM a name means."""

from __future__ import annotations

from sqlalchemy import Connection, Row, insert, select, update

from vmkeep.catalog import models, texts
from vmkeep.catalog.records import CatalogVm

hosts = models.hosts
vms = models.vms
GREATEST_SEQUENCE = (1 << 63) - 1
BEFORE_FIRST = ""
"""Stands for the current point of a VM that is as it was before its first one; NULL is one that is not known."""


def see_host(connection: Connection, uuid: str, name: str) -> None:
    row = {"name": name, "seen_at": texts.now()}
    if connection.execute(update(hosts).where(hosts.c.uuid == uuid).values(row)).rowcount == 0:
        connection.execute(insert(hosts).values(uuid=uuid, **row))


def host_names(connection: Connection) -> dict[str, str]:
    """Return the names of the hosts that were seen, by UUID."""
    return {row.uuid: row.name for row in connection.execute(select(models.hosts).order_by(models.hosts.c.uuid))}


def see_vm(connection: Connection, uuid: str, name: str, host_uuid: str | None, *, adopted: bool) -> bool:
    """Record that a VM was seen, or (adopted) heard of; return True when it is new.

    A VM that was seen on this host never becomes an adopted one again. A host that is not given stays as known.
    """
    known = vm(connection, uuid)
    if known is None:
        row = {"uuid": uuid, "name": name, "host_uuid": host_uuid, "seen_at": texts.now(), "adopted": adopted}
        connection.execute(insert(vms).values(row))
        return True
    if not adopted:
        host = host_uuid or known.host_uuid
        values = {"name": name, "host_uuid": host, "seen_at": texts.now(), "adopted": False, "forgotten_until": None}
        connection.execute(update(vms).where(vms.c.uuid == uuid).values(values))
    return False


def set_current_point(connection: Connection, uuid: str, point_id: str | None) -> None:
    connection.execute(update(vms).where(vms.c.uuid == uuid).values(current_point=point_id))


def forget(connection: Connection, uuid: str, until: str) -> bool:
    """Note that a VM is gone for good; False for one that is not known."""
    return connection.execute(update(vms).where(vms.c.uuid == uuid).values(forgotten_until=until)).rowcount > 0


def sequence(connection: Connection, uuid: str) -> int:
    """Return the greatest order number that was ever seen of a VM's points and snapshots; 0 for none."""
    found: int | None = connection.execute(select(vms.c.sequence).where(vms.c.uuid == uuid)).scalar()
    return found or 0


def next_sequence(connection: Connection, uuid: str) -> int:
    """Return the order number of a VM's next point or snapshot.

    Whoever writes to the repository can claim the greatest number that there is. It is given again then, and points of
    one number are told apart by lineage and clock.
    """
    return min(sequence(connection, uuid) + 1, GREATEST_SEQUENCE)


def raise_sequence(connection: Connection, uuid: str, number: int) -> None:
    """Note that an order number of a VM is taken. The VM's row must be there."""
    connection.execute(update(vms).where(vms.c.uuid == uuid, vms.c.sequence < number).values(sequence=number))


def set_name(connection: Connection, uuid: str, name: str) -> None:
    connection.execute(update(vms).where(vms.c.uuid == uuid).values(name=name))


def vm(connection: Connection, uuid: str) -> CatalogVm | None:
    row = connection.execute(select(vms).where(vms.c.uuid == uuid)).first()
    return None if row is None else _vm(row)


def all_vms(connection: Connection) -> tuple[CatalogVm, ...]:
    return tuple(_vm(row) for row in connection.execute(select(vms).order_by(vms.c.name, vms.c.uuid)))


def uuids_named(connection: Connection, text: str) -> tuple[str, ...]:
    """Return the UUIDs of the VMs that a person means: by UUID, by present name, else by a name a point has."""
    if vm(connection, text.lower()) is not None:
        return (text.lower(),)
    present = select(vms.c.uuid).where(vms.c.name == text).order_by(vms.c.uuid)
    found = tuple(connection.execute(present).scalars())
    if found:
        return found
    points = models.points
    former = select(points.c.vm_uuid).where(points.c.vm_name == text).distinct().order_by(points.c.vm_uuid)
    return tuple(connection.execute(former).scalars())


def _vm(row: Row[tuple[object, ...]]) -> CatalogVm:
    before_first = row.current_point == BEFORE_FIRST
    current = None if before_first else row.current_point
    return CatalogVm(
        row.uuid,
        row.name,
        row.host_uuid,
        row.seen_at,
        bool(row.adopted),
        current,
        before_first,
        row.forgotten_until,
    )
