"""Rows of the pins of the repository, and of the snapshots that some of them belong to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Join, Row, delete, insert, select

from vmkeep.catalog import models, snapshot_queries, state_queries, vm_queries
from vmkeep.catalog.records import CatalogPin, CatalogSnapshot, FoundPin, HeldSecret, trust_of
from vmkeep.errors import CatalogError

_objects = models.pin_objects
_passed = models.passed_pins
_keys = models.host_keys


def adopt(connection: Connection, found: Sequence[FoundPin]) -> tuple[str, ...]:
    """Add pins that are not known, with the versions that they name; return what a person must hear of conflicts.

    What is kept with a snapshot is taken over from its newest pin, when who signed that one is trusted.
    """
    conflicts: list[str] = []
    for each in sorted(found, key=lambda each: (each.pin.created, each.pin.id)):
        pin = each.pin
        connection.execute(delete(_passed).where(_passed.c.id == pin.id))
        if _by_id(connection, pin.id) is not None:
            continue
        vm_queries.see_vm(connection, pin.vm_uuid, pin.vm_name, None, adopted=True)
        connection.execute(insert(_objects).values(_row(pin, each.snapshot)))
        for state in each.states:
            try:
                first = state_queries.adopt(connection, state, pin.id, "pin")
            except CatalogError as error:
                conflicts.append(f"pin {pin.id}: {error.message}")
                continue
            state_queries.pin(connection, state.id, pin.id, "pin")
            if first is not None:
                conflicts.append(_told(pin, state.kind, state.generation))
    recover_snapshots(connection, {each.pin.vm_uuid for each in found})
    return tuple(conflicts)


def recover_snapshots(connection: Connection, vm_uuids: Iterable[str]) -> None:
    """Record what is kept with snapshots of VMs that is known from pins alone, as far as those are proved."""
    for vm_uuid in sorted(vm_uuids):
        newest: dict[str, Row[Any]] = {}
        for row in connection.execute(_judged(vm_uuid).where(_objects.c.snapshot_name.is_not(None))):
            if trust_of(row.signed_by, row.found).is_proved:
                newest[row.snapshot_id] = row  # the last one: after a snapshot was renamed there may be two
        for row in newest.values():
            known = snapshot_queries.by_id(connection, row.snapshot_id)
            if known is not None or snapshot_queries.get(connection, vm_uuid, row.snapshot_name) is not None:
                continue
            number = vm_queries.next_sequence(connection, vm_uuid)
            snapshot = CatalogSnapshot(
                row.snapshot_id, vm_uuid, row.snapshot_name, row.snapshot_time, row.snapshot_point, row.created
            )
            snapshot_queries.add(connection, snapshot, number)
            vm_queries.raise_sequence(connection, vm_uuid, number)
            for state in state_queries.held(connection, row.id, "pin"):
                state_queries.pin(connection, state.id, row.snapshot_id, "snapshot")


def of_vm(connection: Connection, vm_uuid: str) -> tuple[CatalogPin, ...]:
    """Return the pins of a VM, the oldest first."""
    pinned: dict[str, list[str]] = {}
    pins = models.pins
    mine = select(_objects.c.id).where(_objects.c.vm_uuid == vm_uuid)
    chosen = select(pins.c.holder, pins.c.version_id).where(pins.c.reason == "pin", pins.c.holder.in_(mine))
    for row in connection.execute(chosen.order_by(pins.c.version_id)):
        pinned.setdefault(row.holder, []).append(row.version_id)
    return tuple(_pin(row, tuple(pinned.get(row.id, ()))) for row in connection.execute(_judged(vm_uuid)).all())


def all_ids(connection: Connection) -> frozenset[str]:
    return frozenset(connection.execute(select(_objects.c.id)).scalars())


def forget(connection: Connection, pin_id: str) -> bool:
    """Remove a pin; False when it was not known. State versions stay known."""
    chosen = (
        select(_objects.c.signed_by, _keys.c.trust.label("found")).select_from(_signed()).where(_objects.c.id == pin_id)
    )
    row = connection.execute(chosen).first()
    held = state_queries.held(connection, pin_id, "pin")
    state_queries.unpin(connection, pin_id, "pin")
    if row is not None and not trust_of(row.signed_by, row.found).is_proved:
        state_queries.disown(connection, held)
    return connection.execute(delete(_objects).where(_objects.c.id == pin_id)).rowcount > 0


def passed(connection: Connection) -> dict[str, str]:
    """Return the pins of VMs that nobody asked for here: the UUID of its VM for each id."""
    return {row.id: row.vm_uuid for row in connection.execute(select(_passed).order_by(_passed.c.id))}


def pass_by(connection: Connection, found: dict[str, str]) -> None:
    known = passed(connection)
    rows = [{"id": pin_id, "vm_uuid": vm_uuid} for pin_id, vm_uuid in sorted(found.items()) if pin_id not in known]
    if rows:
        connection.execute(insert(_passed), rows)


def _judged(vm_uuid: str) -> Any:
    """Return the query for the pins of a VM with what is thought of who signed them, the oldest first."""
    chosen = select(_objects, _keys.c.trust.label("found")).select_from(_signed()).where(_objects.c.vm_uuid == vm_uuid)
    return chosen.order_by(_objects.c.created, _objects.c.id)


def _signed() -> Join:
    return _objects.outerjoin(_keys, _keys.c.fingerprint == _objects.c.signed_by)


def _by_id(connection: Connection, pin_id: str) -> str | None:
    return connection.execute(select(_objects.c.id).where(_objects.c.id == pin_id)).scalar()


def _row(pin: CatalogPin, snapshot: CatalogSnapshot | None) -> dict[str, Any]:
    return {
        "id": pin.id,
        "vm_uuid": pin.vm_uuid,
        "vm_name": pin.vm_name,
        "host": pin.host,
        "created": pin.created,
        "why": pin.why,
        "until": pin.until,
        "signed_by": pin.signed_by,
        "snapshot_id": None if snapshot is None else snapshot.id,
        "snapshot_name": None if snapshot is None else snapshot.name,
        "snapshot_time": None if snapshot is None else snapshot.creation_time,
        "snapshot_point": None if snapshot is None else snapshot.current_point,
        "secrets": json.dumps([[secret.usage, secret.uuid] for secret in pin.secrets]),
    }


def _pin(row: Row[Any], versions: tuple[str, ...]) -> CatalogPin:
    return CatalogPin(
        id=row.id,
        vm_uuid=row.vm_uuid,
        vm_name=row.vm_name,
        host=row.host,
        created=row.created,
        why=row.why,
        versions=versions,
        until=row.until,
        signed_by=row.signed_by,
        snapshot_id=row.snapshot_id,
        snapshot_name=row.snapshot_name,
        secrets=tuple(HeldSecret(usage, uuid) for usage, uuid in json.loads(row.secrets)),
        trust=trust_of(row.signed_by, row.found),
    )


def _told(pin: CatalogPin, kind: str, generation: int) -> str:
    return (
        f"the {kind} state of VM {pin.vm_name!r} that host {pin.host} kept at {pin.created} claims generation "
        f"{generation} as well as another version, which was first and counts; it is kept, and never counts as the "
        "newest"
    )
