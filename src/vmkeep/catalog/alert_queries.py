"""Rows of alerts: what keeps state files of VMs from being captured."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from vmkeep.catalog import models, texts
from vmkeep.catalog.records import StateAlert

_alerts = models.state_alerts


def note(connection: Connection, vm_uuid: str, code: str, message: str) -> None:
    """Note a failure; one that was noted before is brought up to date."""
    mine = (_alerts.c.vm_uuid == vm_uuid, _alerts.c.code == code)
    again = update(_alerts).where(*mine).values(message=message, last_at=texts.now(), times=_alerts.c.times + 1)
    if connection.execute(again).rowcount == 0:
        row = {"vm_uuid": vm_uuid, "code": code, "message": message, "times": 1}
        connection.execute(insert(_alerts).values(**row, first_at=texts.now(), last_at=texts.now()))


def clear(connection: Connection, vm_uuid: str) -> bool:
    """Remove the alerts of a VM; return whether there were any."""
    return connection.execute(delete(_alerts).where(_alerts.c.vm_uuid == vm_uuid)).rowcount > 0


def every(connection: Connection) -> tuple[StateAlert, ...]:
    """Return all alerts by VM and code."""
    rows = connection.execute(select(_alerts).order_by(_alerts.c.vm_uuid, _alerts.c.code))
    return tuple(_alert(row) for row in rows)


def _alert(row: Row[Any]) -> StateAlert:
    return StateAlert(row.vm_uuid, row.code, row.message, row.first_at, row.last_at, row.times)
