"""Rows of points, and how a person names a point."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, insert, select

from vmkeep.catalog import models, texts
from vmkeep.catalog.records import SAFETY_LABEL, CatalogPoint
from vmkeep.catalog.times import TIME_FORMS, end_of_named_time
from vmkeep.catalog.vm_queries import uuids_named
from vmkeep.commandline import shell_word
from vmkeep.errors import PointNotFound

SHORTEST_PREFIX = 4
ID_LENGTH = 32
LATEST = "@latest"
_LISTED_CANDIDATES = 8

points = models.points
_OLDEST_FIRST = (points.c.created, points.c.id)
_NEWEST_FIRST = (points.c.created.desc(), points.c.id.desc())


def add(connection: Connection, point: CatalogPoint) -> None:
    """Insert the row. The VM's row must be there."""
    row = {
        "id": point.id,
        "vm_uuid": point.vm_uuid,
        "vm_name": point.vm_name,
        "kind": point.kind,
        "parent": point.parent,
        "created": point.created,
        "host": point.host,
        "checkpoint": point.checkpoint,
        "pause_ms": point.pause_ms,
        "labels": texts.dump(point.labels),
        "summary": texts.dump(point.summary()),
        "document": texts.dump(point.document),
    }
    connection.execute(insert(points).values(row))


def get(connection: Connection, point_id: str) -> CatalogPoint | None:
    row = connection.execute(select(points).where(points.c.id == point_id)).first()
    return None if row is None else _point(row)


def remove(connection: Connection, point_id: str) -> bool:
    return connection.execute(delete(points).where(points.c.id == point_id)).rowcount == 1


def oldest_first(connection: Connection, uuids: Sequence[str] | None) -> tuple[CatalogPoint, ...]:
    return _points(connection, _of(select(points), uuids).order_by(*_OLDEST_FIRST))


def newest_first(connection: Connection, uuids: Sequence[str]) -> tuple[CatalogPoint, ...]:
    return _points(connection, _of(select(points), uuids).order_by(*_NEWEST_FIRST))


def summaries(connection: Connection, uuids: Sequence[str] | None) -> tuple[dict[str, Any], ...]:
    chosen = _of(select(points.c.summary), uuids).order_by(*_OLDEST_FIRST)
    return tuple(texts.load(text) for text in connection.execute(chosen).scalars())


def all_ids(connection: Connection) -> tuple[str, ...]:
    return tuple(connection.execute(select(points.c.id).order_by(points.c.id)).scalars())


def newest_made(connection: Connection, vm_uuid: str, until: datetime | None = None) -> CatalogPoint | None:
    """Return the newest point that is no safety point, of those at or before a time where one is given."""
    for row in connection.execute(_outlines(vm_uuid)):
        if _is_made(row) and (until is None or datetime.fromisoformat(row.created) <= until):
            return get(connection, row.id)
    return None


def newer_safety_points(connection: Connection, point: CatalogPoint) -> tuple[str, ...]:
    found = connection.execute(_outlines(point.vm_uuid).where(points.c.created > point.created))
    return tuple(row.id for row in found if not _is_made(row))


def find(connection: Connection, text: str) -> CatalogPoint:
    """Return the point that a full id, a unique beginning of one (4 characters or more), VM@latest or VM@TIME means.

    Raises PointNotFound, with the candidates when there are several.
    """
    exact = get(connection, text.lower())
    if exact is not None:
        return exact
    if text.endswith(LATEST):
        return _newest(connection, text.removesuffix(LATEST), None)
    name, at, time = text.rpartition("@")
    if at:
        return _at_time(connection, name, time)
    wanted = text.lower()
    hint = _hint_of_vm(connection, text)
    if len(wanted) < SHORTEST_PREFIX:
        raise PointNotFound(
            f"{text!r} is too short for the id of a point",
            hint=hint or f"Give {SHORTEST_PREFIX} characters of it or more.",
        )
    # Not LIKE: a user's "%" or "_" must not match anything.
    fits = select(points).where(points.c.id >= wanted, points.c.id < wanted + "\U0010ffff").order_by(*_OLDEST_FIRST)
    found = _points(connection, fits.limit(_LISTED_CANDIDATES + 1))
    if not found:
        raise PointNotFound(f"No point has an id that begins with {text!r}", hint=hint)
    if len(found) > 1:
        shown = [f"{point.id} ({point.vm_name}, {point.created})" for point in found[:_LISTED_CANDIDATES]]
        more = " and more" if len(found) > _LISTED_CANDIDATES else ""
        raise PointNotFound(
            f"{text!r} fits several points: {', '.join(shown)}{more}", hint="Give more characters of the id."
        )
    return found[0]


def _hint_of_vm(connection: Connection, text: str) -> str | None:
    """Return what to write for a point of the VM that was named in place of one."""
    if not uuids_named(connection, text):
        return None
    return f"That is a VM. Its newest point is {shell_word(text + LATEST)}; `vmkeep points` lists all."


def _at_time(connection: Connection, name: str, time: str) -> CatalogPoint:
    until = end_of_named_time(time)
    if until is None:
        raise PointNotFound(f'{time!r} is neither "latest" nor a time', hint=f"A time is written as {TIME_FORMS}.")
    return _newest(connection, name, until)


def _newest(connection: Connection, name: str, until: datetime | None) -> CatalogPoint:
    uuids = uuids_named(connection, name)
    newest = [point for uuid in uuids if (point := newest_made(connection, uuid, until)) is not None]
    if not newest:
        raise _none_found(connection, name, uuids, until)
    if len(newest) > 1:
        shown = ", ".join(f"{point.id} (VM {point.vm_uuid}, {point.created})" for point in newest)
        raise PointNotFound(
            f"Several VMs are called {name!r}; their latest points: {shown}",
            vm=name,
            hint="Name the point by its id, or the VM by its UUID.",
        )
    return newest[0]


def _none_found(connection: Connection, name: str, uuids: Sequence[str], until: datetime | None) -> PointNotFound:
    rows = [row for uuid in uuids for row in connection.execute(_outlines(uuid))]
    made = [row for row in rows if _is_made(row)]
    if made and until is not None:
        first = min(made, key=lambda row: str(row.created))
        words = f"VM {name!r} has no point from {until.isoformat(timespec='seconds')} or before"
        return PointNotFound(words, vm=name, hint=f"Its first one, {first.id}, was taken at {first.created}.")
    if rows and not made:
        words = f"VM {name!r} has safety points only, which restores in place took: {', '.join(row.id for row in rows)}"
        return PointNotFound(words, vm=name, hint="Name one by its id to go back to the state that was left.")
    return PointNotFound(f"There is no point of a VM {name!r}", vm=name)


def _outlines(vm_uuid: str) -> Select[tuple[Any, ...]]:
    """Return what chooses a VM's points, newest first, without their documents."""
    chosen = select(points.c.id, points.c.created, points.c.labels)
    return chosen.where(points.c.vm_uuid == vm_uuid).order_by(*_NEWEST_FIRST)


def _is_made(row: Row[Any]) -> bool:
    return SAFETY_LABEL not in texts.load(row.labels)


def _of(chosen: Select[Any], uuids: Sequence[str] | None) -> Select[Any]:
    return chosen if uuids is None else chosen.where(points.c.vm_uuid.in_(uuids))


def _points(connection: Connection, chosen: Select[Any]) -> tuple[CatalogPoint, ...]:
    return tuple(_point(row) for row in connection.execute(chosen))


def _point(row: Row[Any]) -> CatalogPoint:
    return CatalogPoint(
        id=row.id,
        vm_uuid=row.vm_uuid,
        vm_name=row.vm_name,
        kind=row.kind,
        parent=row.parent,
        created=row.created,
        host=row.host,
        checkpoint=row.checkpoint,
        pause_ms=row.pause_ms,
        labels=texts.load(row.labels),
        document=texts.load(row.document),
    )
