"""Rows of state files: where they lie, as they were found last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from vmkeep.catalog import models, texts
from vmkeep.catalog.records import StateFile

_files = models.state_files


def note(connection: Connection, vm_uuid: str, host_uuid: str, found: Sequence[StateFile]) -> None:
    """Put what was found of a VM on a host in place of what was known there."""
    known = {each.kind: each for each in of_vm(connection, vm_uuid) if each.host_uuid == host_uuid}
    connection.execute(delete(_files).where(_files.c.vm_uuid == vm_uuid, _files.c.host_uuid == host_uuid))
    now = texts.now()
    for each in found:
        before = known.get(each.kind)
        since = before.since if before is not None and each.is_as(before) else now
        connection.execute(insert(_files).values(asdict(replace(each, since=since, seen_at=now))))


def of_vm(connection: Connection, vm_uuid: str) -> tuple[StateFile, ...]:
    chosen = select(_files).where(_files.c.vm_uuid == vm_uuid).order_by(_files.c.host_uuid, _files.c.kind)
    return tuple(_file(row) for row in connection.execute(chosen).all())


def _file(row: Row[Any]) -> StateFile:
    return StateFile(
        vm_uuid=row.vm_uuid,
        host_uuid=row.host_uuid,
        kind=row.kind,
        path=row.path,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        standing=row.standing,
        since=row.since,
        seen_at=row.seen_at,
    )
