"""Points of the repository that this catalogue did not record itself: taken over, or noted as those of other VMs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, or_, select

from vmkeep.catalog import models, point_queries, state_queries, vm_queries
from vmkeep.catalog.records import Adopted, CatalogPoint, CatalogState, PassedPoint, Trust
from vmkeep.catalog.rows import add_absent
from vmkeep.errors import CatalogError

Held = tuple[CatalogPoint, Sequence[CatalogState]]
_keys = models.host_keys
_points = models.points
_passed = models.passed_points


def adopt(connection: Connection, found: Sequence[Held]) -> Adopted:
    """Add points and the state versions they hold. What is known stays as it is."""
    new_vms: set[str] = set()
    new_points: set[str] = set()
    for point, _ in found:
        if vm_queries.see_vm(connection, point.vm_uuid, point.vm_name, None, adopted=True):
            new_vms.add(point.vm_uuid)
        if point_queries.get(connection, point.id) is None:
            point_queries.add(connection, point)
            new_points.add(point.id)
        vm_queries.raise_sequence(connection, point.vm_uuid, point.sequence or 0)
    connection.execute(delete(_passed).where(_passed.c.id.in_(select(_points.c.id))))
    vms = dict.fromkeys(point.vm_uuid for point, _ in found)
    point_queries.put_in_order(connection, [uuid for uuid in vms if new_points])
    in_order = {uuid: _in_order(connection, uuid) for uuid in vms}
    for uuid, rows in in_order.items():
        if uuid in new_vms:
            vm_queries.set_name(connection, uuid, rows[-1].vm_name)
        else:
            _lose_track(connection, uuid, rows, new_points)
    place = {row.id: (uuid, row.place) for uuid, rows in in_order.items() for row in rows}
    states, conflicts = 0, []
    # Of two versions that claim one generation, the one of the point that was made first is the current one.
    for point, held in sorted(found, key=lambda pair: place[pair[0].id]):
        for state in held:
            try:
                first = state_queries.adopt(connection, state, point.id)
            except CatalogError as error:
                conflicts.append(f"point {point.id}: {error.message}")
                continue
            states += 1
            state_queries.pin(connection, state.id, point.id)
            if first is not None:
                conflicts.append(_told(connection, point, state, first))
    return Adopted(len(new_points), len(new_vms), states, tuple(conflicts))


def _in_order(connection: Connection, vm_uuid: str) -> list[Row[Any]]:
    mine = select(_keys.c.fingerprint).where(_keys.c.trust == str(Trust.OWN))
    own = (or_(_points.c.signed_by == "", _points.c.signed_by.in_(mine))).label("own")
    columns = (_points.c.id, _points.c.parent, _points.c.host, _points.c.vm_name, _points.c.place, own)
    chosen: Select[Any] = select(*columns)
    return list(connection.execute(chosen.where(_points.c.vm_uuid == vm_uuid).order_by(_points.c.place)))


def _lose_track(connection: Connection, vm_uuid: str, rows: Sequence[Row[Any]], new: set[str]) -> None:
    """Note that nobody knows where a VM is when new points of this installation go on, on one host, from where it was.

    So it is after the home was put back as it was earlier: the VM was at those points, and may have gone back since.
    What another host went on with is no state of this VM's, and what another installation claims of this host does not
    count: whoever can write to the repository would let older state files start.
    """
    vm = vm_queries.vm(connection, vm_uuid)
    by_id: Mapping[str, Row[Any]] = {row.id: row for row in rows}
    if vm is None or vm.current_point is None or vm.current_point not in by_id:
        return
    host = by_id[vm.current_point].host
    line = {vm.current_point}
    for row in rows:
        if row.parent in line and row.host == host and row.own:
            line.add(row.id)
    if line & new:
        vm_queries.set_current_point(connection, vm_uuid, None)


def _told(connection: Connection, point: CatalogPoint, state: CatalogState, first: str) -> str:
    holders = (point_queries.get(connection, holder) for holder in state_queries.pinned(connection, first))
    holder = next((holder for holder in holders if holder is not None), None)
    other = "another version" if holder is None else f"that of point {holder.id}, made on host {holder.host},"
    return (
        f"the {state.kind} state in point {point.id} of VM {point.vm_name!r}, made on host {point.host}, claims "
        f"generation {state.generation} as well as {other} which was first and counts; it is kept for its point, "
        "which is restored with it"
    )


# -- points of others --------------------------------------------------------------------------------------------


def passed(connection: Connection) -> tuple[PassedPoint, ...]:
    rows = connection.execute(select(_passed).order_by(_passed.c.id))
    return tuple(PassedPoint(row.id, row.vm_uuid, row.vm_name) for row in rows)


def pass_by(connection: Connection, points: Sequence[PassedPoint]) -> None:
    for point in points:
        add_absent(connection, _passed, {"id": point.id, "vm_uuid": point.vm_uuid, "vm_name": point.vm_name})
