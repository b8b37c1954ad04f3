"""Rows of points, and their order.

What comes before what is told by ``place``, a number that ``vmkeep.planning.order`` decides. Clocks are shown, and
between points of different VMs, which have no order, they say what is listed first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, ScalarSelect, Select, delete, func, insert, select, update

from vmkeep.catalog import models, texts
from vmkeep.catalog.host_queries import all_keys
from vmkeep.catalog.records import SAFETY_LABEL, CatalogPoint, PointOutline, Trust, made_by, trust_of
from vmkeep.catalog.vm_queries import uuids_named
from vmkeep.planning.order import Made, places

if TYPE_CHECKING:
    from vmkeep.catalog.naming import Candidate  # a point is taken without a name

points = models.points
_SIGNED = points.outerjoin(models.host_keys, points.c.signed_by == models.host_keys.c.fingerprint)
_WHOLE = select(points, models.host_keys.c.trust, models.host_keys.c.installation).select_from(_SIGNED)
# Of several VMs: by clock, as far as no point comes before one of its VM that was made earlier.
_CLOCK_SO_FAR = func.max(points.c.created).over(partition_by=points.c.vm_uuid, order_by=points.c.place)
_OLDEST_FIRST = (_CLOCK_SO_FAR, points.c.vm_uuid, points.c.place)
_NEWEST_FIRST = (points.c.place.desc(),)


def add(connection: Connection, point: CatalogPoint) -> None:
    """Insert the row, without a place; ``put_in_order`` is owed. The VM's row must be there."""
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
        # Without what may change: whether its maker is trusted.
        "summary": texts.dump({name: told for name, told in point.summary().items() if name != "made_by"}),
        "document": texts.dump(point.document),
        "sequence": point.sequence,
        "digest": point.digest,
        "signed_by": point.signed_by,
    }
    connection.execute(insert(points).values(row))


def put_in_order(connection: Connection, vm_uuids: Iterable[str]) -> None:
    """Give each point of the VMs its place."""
    for vm_uuid in vm_uuids:
        chosen = select(points.c.id, points.c.parent, points.c.created, points.c.sequence, points.c.place)
        rows = connection.execute(chosen.where(points.c.vm_uuid == vm_uuid)).all()
        found = places(Made(row.id, row.parent, row.created, row.sequence) for row in rows)
        had = {row.id: row.place for row in rows}
        for place, point_id in enumerate(sorted(found, key=found.__getitem__), start=1):
            if had[point_id] != place:
                connection.execute(update(points).where(points.c.id == point_id).values(place=place))


def put_last(connection: Connection, point: CatalogPoint) -> None:
    """Give one point that was just added its place; it is the last one when its number is the greatest."""
    others = select(func.max(points.c.place), func.max(points.c.sequence))
    place, sequence = connection.execute(others.where(points.c.vm_uuid == point.vm_uuid, points.c.id != point.id)).one()
    if point.sequence is None or (sequence is not None and point.sequence <= sequence):
        put_in_order(connection, [point.vm_uuid])
    else:
        connection.execute(update(points).where(points.c.id == point.id).values(place=(place or 0) + 1))


def get(connection: Connection, point_id: str) -> CatalogPoint | None:
    row = connection.execute(_WHOLE.where(points.c.id == point_id)).first()
    return None if row is None else _point(row)


def digest(connection: Connection, point_id: str) -> str | None:
    """Return the digest of a point's record, empty as long as it is not known; None when the point is not."""
    row = connection.execute(select(points.c.digest).where(points.c.id == point_id)).first()
    return None if row is None else row.digest or ""


def set_digest(connection: Connection, point_id: str, digest: str) -> None:
    """Note the digest of a point that has none yet."""
    unset = update(points).where(points.c.id == point_id, points.c.digest.is_(None))
    connection.execute(unset.values(digest=digest))


def remove(connection: Connection, point_id: str) -> bool:
    return connection.execute(delete(points).where(points.c.id == point_id)).rowcount == 1


def oldest_first(connection: Connection, uuids: Sequence[str] | None) -> tuple[CatalogPoint, ...]:
    return _points(connection, _of(_WHOLE, uuids).order_by(*_OLDEST_FIRST))


def newest_first(connection: Connection, uuids: Sequence[str]) -> tuple[CatalogPoint, ...]:
    return _points(connection, _of(_WHOLE, uuids).order_by(*_NEWEST_FIRST))


def outlines(connection: Connection, vm_uuid: str) -> tuple[PointOutline, ...]:
    return tuple(PointOutline(row.id, row.created) for row in connection.execute(_outlines(vm_uuid)))


def summaries(connection: Connection, uuids: Sequence[str] | None) -> tuple[dict[str, Any], ...]:
    chosen = _of(select(points.c.summary, points.c.signed_by), uuids).order_by(*_OLDEST_FIRST)
    told = _Makers(connection)
    return tuple(
        # What an older release has written lacks the number. Who made it may be trusted, or not any more, since then.
        {"sequence": None, **texts.load(row.summary), "made_by": told[row.signed_by]}
        for row in connection.execute(chosen)
    )


def makers(connection: Connection) -> dict[str, dict[str, str | None]]:
    """Return who made each point, as the summaries say it, by its id."""
    told = _Makers(connection)
    return {row.id: told[row.signed_by] for row in connection.execute(select(points.c.id, points.c.signed_by))}


class _Makers(dict[str | None, dict[str, str | None]]):
    """Who made a point, as the summaries say it, by who signed it: made once for each, as a list has many of few."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._keys = {key.fingerprint: key for key in all_keys(connection)}

    def __missing__(self, signed_by: str | None) -> dict[str, str | None]:
        key = self._keys.get(signed_by or "")
        trust = trust_of(signed_by, None if key is None else key.trust)
        self[signed_by] = told = made_by(signed_by, None if key is None else key.installation, trust)
        return told


def all_ids(connection: Connection) -> tuple[str, ...]:
    return tuple(connection.execute(select(points.c.id).order_by(points.c.id)).scalars())


def newest_made(connection: Connection, vm_uuid: str, until: datetime | None = None) -> CatalogPoint | None:
    """Return the newest point that is no safety point, of those whose clock says a time, where one is given, or before.

    The newest is the one that was made last, whatever the clocks say.
    """
    for row in connection.execute(_outlines(vm_uuid)):
        if _is_made(row) and (until is None or datetime.fromisoformat(row.created) <= until):
            return get(connection, row.id)
    return None


def newer_safety_points(connection: Connection, point: CatalogPoint) -> tuple[str, ...]:
    found = connection.execute(_outlines(point.vm_uuid).where(points.c.place > _place_of(point)))
    return tuple(row.id for row in found if not _is_made(row))


def made_earlier_with_later_clocks(connection: Connection, point: CatalogPoint, until: datetime) -> tuple[str, ...]:
    """Return the ids of points that were made before one of their VM, and whose clocks say a time after ``until``."""
    found = connection.execute(_outlines(point.vm_uuid).where(points.c.place < _place_of(point)))
    return tuple(row.id for row in found if datetime.fromisoformat(row.created) > until)


def _place_of(point: CatalogPoint) -> ScalarSelect[int]:
    return select(points.c.place).where(points.c.id == point.id).scalar_subquery()


def newer_distrusted(connection: Connection, point: CatalogPoint) -> tuple[str, ...]:
    """Return the ids of points of distrusted hosts that were made after one of their VM, the last first."""
    found = connection.execute(_outlines(point.vm_uuid).where(points.c.place > _place_of(point)))
    return tuple(row.id for row in found if _is_made(row) and row.trust == Trust.DISTRUSTED)


class Kept:
    """The points as ``vmkeep.catalog.naming`` asks for them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, point_id: str) -> CatalogPoint | None:
        return get(self._connection, point_id)

    def beginning_with(self, text: str, most: int) -> tuple[CatalogPoint, ...]:
        # Not LIKE: a user's "%" or "_" must not match anything.
        fits = _WHOLE.where(points.c.id >= text, points.c.id < text + "\U0010ffff").order_by(*_OLDEST_FIRST)
        return _points(self._connection, fits.limit(most))

    def candidates(self, vm_uuid: str) -> Iterator[Candidate]:
        from vmkeep.catalog.naming import Candidate

        for row in self._connection.execute(_outlines(vm_uuid)):
            trust = trust_of(row.signed_by, row.trust)
            yield Candidate(row.id, row.created, not _is_made(row), row.signed_by, trust)

    def uuids_named(self, text: str) -> tuple[str, ...]:
        return uuids_named(self._connection, text)


def _outlines(vm_uuid: str) -> Select[tuple[Any, ...]]:
    """Return what chooses a VM's points, newest first, without their documents."""
    columns = (points.c.id, points.c.created, points.c.labels, points.c.signed_by, models.host_keys.c.trust)
    chosen = select(*columns).select_from(_SIGNED)
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
        sequence=row.sequence,
        digest=row.digest,
        signed_by=row.signed_by,
        trust=trust_of(row.signed_by, row.trust),
        installation=row.installation,
    )
