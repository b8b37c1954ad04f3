"""Rows of state versions and pins: a version is accepted once, and generations only rise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, insert, literal, select, update

from vmkeep.catalog import models
from vmkeep.catalog.records import HIGHEST_GENERATION, CatalogState, Trust
from vmkeep.catalog.rows import add_absent
from vmkeep.custody.states import Because

versions = models.state_versions
pins = models.pins
placed_rows = models.placed_states
PinReason = Literal["point", "snapshot", "pin"]
"""What holds a version: a point, a snapshot, or a pin of the repository."""


def accept(connection: Connection, state: CatalogState) -> None:
    """Accept a state version, or find that exactly it was accepted already.

    Raises CatalogError when its generation is not above the newest one accepted for that VM and kind: another
    writer was first, and a late capture must never become the current one. One that was read under an epoch of the
    VM's lease that is over is kept as a conflict, whatever its generation.
    """
    if state.is_known_as(_by_id(connection, state.id)):
        return
    if _epoch(connection, state.vm_uuid) not in (None, state.epoch):
        _add(connection, replace(state, conflict=True))
        return
    state.refuse_late(newest_state(connection, state.vm_uuid, state.kind))
    _add(connection, state)


def keep_late(connection: Connection, state: CatalogState) -> None:
    """Add a state version that never becomes the current one, unless it is known. Raises CatalogError."""
    if not state.is_known_as(_by_id(connection, state.id)):
        _add(connection, replace(state, conflict=True))


def adopt(connection: Connection, state: CatalogState, holder: str, reason: PinReason = "point") -> str | None:
    """Add a state version found in a repository, of whatever generation, which a point or pin that is known holds.

    Returns the id of the version that claimed its generation first, if there is one: then this one is a late capture,
    which is kept and never becomes the current one. A version that nothing holds any more gives way: its point was
    deleted, maybe before the installation that made this one ever saw it. So does one that only hosts hold that nobody
    trusts, to one of this installation's or of a host that is trusted. One that claims what no VM comes to is kept
    for its point and never the current one either: the next version would find no number above it. Raises CatalogError
    for one that is known with other content.
    """
    made_here = _is_own(connection, reason, holder)
    if state.is_known_as(_by_id(connection, state.id)):
        if made_here:
            connection.execute(update(versions).where(versions.c.id == state.id).values(made_here=True))
        return None
    taken = select(versions.c.id).where(
        versions.c.vm_uuid == state.vm_uuid,
        versions.c.kind == state.kind,
        versions.c.generation == state.generation,
        versions.c.conflict.is_(False),
    )
    first: str | None = connection.execute(taken).scalar()
    if first is not None and _gives_way(connection, first, to=(reason, holder)):
        connection.execute(update(versions).where(versions.c.id == first).values(conflict=True))
        first = None
    late = first is not None or state.generation > HIGHEST_GENERATION
    _add(connection, replace(state, conflict=late, made_here=made_here))
    return first


def _gives_way(connection: Connection, version_id: str, *, to: tuple[PinReason, str]) -> bool:
    rows = connection.execute(select(pins.c.reason, pins.c.holder).where(pins.c.version_id == version_id)).all()
    if any(_is_vouched_for(connection, row.reason, row.holder) for row in rows):
        return False
    # Nothing may hold it because a kill came before its pin: what nobody vouches for takes no place then either.
    return _is_vouched_for(connection, *to)


def _is_vouched_for(connection: Connection, reason: PinReason, holder: str) -> bool:
    """Return whether what holds a version is this installation's, or of one that is trusted."""
    return _is_signed_by(connection, reason, holder, Trust.OWN, Trust.TRUSTED)


def _is_own(connection: Connection, reason: PinReason, holder: str) -> bool:
    return _is_signed_by(connection, reason, holder, Trust.OWN)


def _is_signed_by(connection: Connection, reason: PinReason, holder: str, *trusts: Trust) -> bool:
    if reason == "snapshot":
        return True
    table, keys = models.points if reason == "point" else models.pin_objects, models.host_keys
    proved = select(keys.c.fingerprint).where(keys.c.trust.in_([str(trust) for trust in trusts]))
    signed = select(table.c.id).where(table.c.id == holder, table.c.signed_by.in_(proved))
    # A point of which that is empty was known here before points were signed.
    known = select(table.c.id).where(table.c.id == holder, table.c.signed_by == "", literal(reason == "point"))
    return connection.execute(signed.union(known)).first() is not None


def newest_state(connection: Connection, vm_uuid: str, kind: str) -> CatalogState | None:
    """Return the accepted version of the highest generation. One that came late claims no higher one."""
    chosen = select(versions).where(
        versions.c.vm_uuid == vm_uuid, versions.c.kind == kind, versions.c.conflict.is_(False)
    )
    row = connection.execute(chosen.order_by(versions.c.generation.desc()).limit(1)).first()
    return None if row is None else _state(row)


def of_vm(connection: Connection, vm_uuid: str) -> tuple[CatalogState, ...]:
    newest_first = (versions.c.generation.desc(), versions.c.conflict, versions.c.id)
    chosen = select(versions).where(versions.c.vm_uuid == vm_uuid).order_by(*newest_first)
    return tuple(_state(row) for row in connection.execute(chosen))


def place(connection: Connection, vm_uuid: str, states: Mapping[str, str | None]) -> None:
    """Record what was put in place of a VM on purpose, by kind; None forgets it."""
    for kind, sha256 in states.items():
        connection.execute(delete(placed_rows).where(placed_rows.c.vm_uuid == vm_uuid, placed_rows.c.kind == kind))
        if sha256 is not None:
            row = {"vm_uuid": vm_uuid, "kind": kind, "sha256": sha256}
            connection.execute(
                insert(placed_rows).values(**row, generation=_newest_generation(connection, vm_uuid, kind))
            )


def placed(connection: Connection, vm_uuid: str) -> dict[str, str]:
    """Return what still holds of it: no newer version was accepted since that somebody vouches for.

    Nor is one, of another installation, that repeats an older content because that one did not know it.
    """
    chosen = select(placed_rows).where(placed_rows.c.vm_uuid == vm_uuid).order_by(placed_rows.c.kind)
    return {row.kind: row.sha256 for row in connection.execute(chosen).all() if not _is_followed(connection, row)}


def _is_followed(connection: Connection, row: Row[Any]) -> bool:
    mine = (versions.c.vm_uuid == row.vm_uuid, versions.c.kind == row.kind, versions.c.conflict.is_(False))
    later = select(versions).where(*mine, versions.c.generation > row.generation)
    # The newest first, which nearly always is one that counts.
    for each in connection.execute(later.order_by(versions.c.generation.desc())).all():
        if not _may_count(connection, each.id):
            continue
        before = select(versions.c.id).where(*mine, versions.c.generation < each.generation)
        same = connection.execute(before.where(versions.c.sha256 == each.sha256)).scalars().all()
        if (
            each.because != Because.CHANGED
            or each.made_here
            or not any(_may_count(connection, version_id) for version_id in same)
        ):
            return True
    return False


def _may_count(connection: Connection, version_id: str) -> bool:
    """Return whether a version is no such as only hosts hold that nobody trusts."""
    rows = connection.execute(select(pins.c.reason, pins.c.holder).where(pins.c.version_id == version_id)).all()
    return not rows or any(_is_vouched_for(connection, row.reason, row.holder) for row in rows)


def _newest_generation(connection: Connection, vm_uuid: str, kind: str) -> int:
    newest = newest_state(connection, vm_uuid, kind)
    return 0 if newest is None else newest.generation


def pin(connection: Connection, version_id: str, holder: str, reason: PinReason = "point") -> None:
    """Keep a version for a point, a snapshot or a pin, of which ``holder`` is the id."""
    add_absent(connection, pins, {"version_id": version_id, "reason": reason, "holder": holder})


def unpin(connection: Connection, holder: str, reason: PinReason = "point") -> None:
    """Remove what a holder keeps. The versions stay known, so that generations never start again."""
    connection.execute(delete(pins).where(pins.c.reason == reason, pins.c.holder == holder))


def disown(connection: Connection, states: Iterable[CatalogState]) -> None:
    """Let versions never count as the newest that came with what nobody vouches for, and that nothing else holds."""
    for state in states:
        if not pinned(connection, state.id):
            connection.execute(update(versions).where(versions.c.id == state.id).values(conflict=True))


def pinned(connection: Connection, version_id: str) -> tuple[str, ...]:
    chosen = select(pins.c.holder).where(pins.c.version_id == version_id).order_by(pins.c.holder)
    return tuple(connection.execute(chosen).scalars())


def holders(connection: Connection, vm_uuid: str) -> dict[str, tuple[str, ...]]:
    """Return the ids of the points and snapshots that hold versions of a VM, by version."""
    mine = select(versions.c.id).where(versions.c.vm_uuid == vm_uuid)
    chosen = select(pins.c.version_id, pins.c.holder).where(pins.c.version_id.in_(mine), pins.c.reason != "pin")
    found: dict[str, tuple[str, ...]] = {}
    for row in connection.execute(chosen.order_by(pins.c.holder)):
        found[row.version_id] = (*found.get(row.version_id, ()), row.holder)
    return found


def held(connection: Connection, holder: str, reason: PinReason) -> tuple[CatalogState, ...]:
    """Return the versions that a holder keeps, by kind."""
    mine = select(pins.c.version_id).where(pins.c.reason == reason, pins.c.holder == holder)
    chosen = select(versions).where(versions.c.id.in_(mine)).order_by(versions.c.kind, versions.c.generation)
    return tuple(_state(row) for row in connection.execute(chosen))


def _epoch(connection: Connection, vm_uuid: str) -> int | None:
    """Return the present epoch of a VM's lease; None for one that never had a lease."""
    leases = models.leases
    found: int | None = connection.execute(select(leases.c.epoch).where(leases.c.vm_uuid == vm_uuid)).scalar()
    return found


def _add(connection: Connection, state: CatalogState) -> None:
    row = {
        "id": state.id,
        "vm_uuid": state.vm_uuid,
        "kind": state.kind,
        "generation": state.generation,
        "sha256": state.sha256,
        "size_bytes": state.size_bytes,
        "created": state.created,
        "conflict": state.conflict,
        "because": state.because,
        "made_here": state.made_here,
    }
    connection.execute(insert(versions).values(row))


def _by_id(connection: Connection, version_id: str) -> CatalogState | None:
    row = connection.execute(select(versions).where(versions.c.id == version_id)).first()
    return None if row is None else _state(row)


def _state(row: Row[Any]) -> CatalogState:
    return CatalogState(
        row.id,
        row.vm_uuid,
        row.kind,
        row.generation,
        row.sha256,
        row.size_bytes,
        row.created,
        bool(row.conflict),
        row.because,
        bool(row.made_here),
    )
