"""Rows of what says which points are kept and which are to go: policies, marks, and points that were found harmed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select

from vmkeep.catalog import models, texts
from vmkeep.catalog.records import PointProtection, PointRemoval, Policy, trust_of

_removals = models.point_removals
_protections = models.point_protections
_harmed = models.harmed_points
_policies = models.policies
_keys = models.host_keys
_OF_REMOVAL = tuple(name for name in PointRemoval.__slots__ if name != "trust")
_OF_POLICY = tuple(name for name in Policy.__slots__ if name != "changed_at")


def put_removal(connection: Connection, removal: PointRemoval) -> None:
    _replace(connection, _removals, "point_id", {name: getattr(removal, name) for name in _OF_REMOVAL})


def end_removal(connection: Connection, point_id: str) -> None:
    connection.execute(delete(_removals).where(_removals.c.point_id == point_id))


def removals(connection: Connection, vm_uuid: str | None) -> tuple[PointRemoval, ...]:
    """Return them with what is thought of who signed them."""
    joined = _removals.outerjoin(_keys, _keys.c.fingerprint == _removals.c.signed_by)
    chosen = select(_removals, _keys.c.trust.label("found")).select_from(joined)
    if vm_uuid is not None:
        chosen = chosen.where(_removals.c.vm_uuid == vm_uuid)
    rows = connection.execute(chosen.order_by(_removals.c.stored_at, _removals.c.point_id))
    return tuple(
        PointRemoval(**{name: getattr(row, name) for name in _OF_REMOVAL}, trust=trust_of(row.signed_by, row.found))
        for row in rows
    )


def put_protection(connection: Connection, protection: PointProtection) -> None:
    row = {name: getattr(protection, name) for name in PointProtection.__slots__}
    _replace(connection, _protections, "point_id", row)


def end_protection(connection: Connection, point_id: str) -> None:
    connection.execute(delete(_protections).where(_protections.c.point_id == point_id))


def protections(connection: Connection) -> dict[str, PointProtection]:
    rows = connection.execute(select(_protections).order_by(_protections.c.point_id)).mappings()
    return {row["point_id"]: PointProtection(**row) for row in rows}


def note_soundness(connection: Connection, harmed: Collection[str], sound: Collection[str]) -> None:
    known = set(connection.execute(select(_harmed.c.point_id)).scalars())
    for point_id in known.intersection(sound).difference(harmed):
        connection.execute(delete(_harmed).where(_harmed.c.point_id == point_id))
    for point_id in set(harmed) - known:
        connection.execute(insert(_harmed).values(point_id=point_id, found_at=texts.now()))


def harmed_points(connection: Connection) -> dict[str, str]:
    rows = connection.execute(select(_harmed).order_by(_harmed.c.point_id))
    return {row.point_id: row.found_at for row in rows}


def set_policy(connection: Connection, policy: Policy) -> None:
    row = {name: getattr(policy, name) for name in _OF_POLICY}
    _replace(connection, _policies, "subject", {**row, "changed_at": texts.now()})


def drop_policy(connection: Connection, subject: str) -> bool:
    return connection.execute(delete(_policies).where(_policies.c.subject == subject)).rowcount == 1


def policies(connection: Connection) -> dict[str, Policy]:
    rows = connection.execute(select(_policies).order_by(_policies.c.subject)).mappings()
    return {row["subject"]: Policy(**row) for row in rows}


def _replace(connection: Connection, table: Table, key: str, row: dict[str, Any]) -> None:
    connection.execute(delete(table).where(table.c[key] == row[key]))
    connection.execute(insert(table).values(row))
