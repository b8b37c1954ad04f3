"""Rows of points, and how a person names a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, insert, select

from vmkeep.catalog import models, texts
from vmkeep.catalog.records import CatalogPoint
from vmkeep.catalog.vm_queries import uuids_named
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


def find(connection: Connection, text: str) -> CatalogPoint:
    """Return the point that a full id, a unique beginning of one (4 characters or more) or VM@latest means.

    Raises PointNotFound, with the candidates when there are several.
    """
    exact = get(connection, text.lower())
    if exact is not None:
        return exact
    if text.endswith(LATEST):
        return _latest(connection, text.removesuffix(LATEST))
    wanted = text.lower()
    if len(wanted) < SHORTEST_PREFIX:
        raise PointNotFound(
            f"{text!r} is too short for the id of a point", hint=f"Give {SHORTEST_PREFIX} characters of it or more."
        )
    # Not LIKE: a user's "%" or "_" must not match anything.
    fits = select(points).where(points.c.id >= wanted, points.c.id < wanted + "\U0010ffff").order_by(*_OLDEST_FIRST)
    found = _points(connection, fits.limit(_LISTED_CANDIDATES + 1))
    if not found:
        raise PointNotFound(f"No point has an id that begins with {text!r}")
    if len(found) > 1:
        shown = [f"{point.id} ({point.vm_name}, {point.created})" for point in found[:_LISTED_CANDIDATES]]
        more = " and more" if len(found) > _LISTED_CANDIDATES else ""
        raise PointNotFound(
            f"{text!r} fits several points: {', '.join(shown)}{more}", hint="Give more characters of the id."
        )
    return found[0]


def _latest(connection: Connection, name: str) -> CatalogPoint:
    uuids = uuids_named(connection, name)
    newest = [point for uuid in uuids for point in _points(connection, _newest_of(uuid))]
    if not newest:
        raise PointNotFound(f"There is no point of a VM {name!r}", vm=name)
    if len(newest) > 1:
        shown = ", ".join(f"{point.id} (VM {point.vm_uuid}, {point.created})" for point in newest)
        raise PointNotFound(
            f"Several VMs are called {name!r}; their latest points: {shown}",
            vm=name,
            hint="Name the point by its id, or the VM by its UUID.",
        )
    return newest[0]


def _newest_of(uuid: str) -> Select[tuple[Any, ...]]:
    return _of(select(points), (uuid,)).order_by(*_NEWEST_FIRST).limit(1)


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
