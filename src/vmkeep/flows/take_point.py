"""Take a point: everything a VM is, of one instant, into the repository."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from vmkeep.catalog import Catalog, CatalogPoint
from vmkeep.errors import PointNotFound
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.premises import catalog_point, catalog_states, known_point
from vmkeep.flows.requests import PointTaken, TakePoint
from vmkeep.flows.services import Services
from vmkeep.host.tasks import (
    AbandonPoint,
    ClosePoint,
    CopyPoint,
    KeepCheckpoint,
    KnownState,
    OpenPoint,
    PointClosed,
    PointCopied,
    PointOpened,
)
from vmkeep.repository import PointRecord

FLOW_NAME = "point.take"


@flow(FLOW_NAME, after_crash=AfterCrash.UNDO)
def take_point(plan: Plan, request: TakePoint) -> PointTaken:
    """Take a point of a VM, running or off. The operation's id is the point's. See docs/internals/flows.md."""
    opened = plan.step(open_point, plan, request, undo=lambda _: abandon_point(plan))
    copied = plan.step(copy_point, plan, request, opened, undo=lambda _: remove_point(plan.services, plan.operation))
    # The checkpoint is kept before the catalogue knows the point: killed in between, the checkpoint is a left-over
    # that the next point removes. The other way round the catalogue would build on a checkpoint that is gone.
    plan.step(keep_checkpoint, plan)
    plan.step(record_point, plan, copied)
    closed = plan.step(close_point, plan)
    point = plan.services.catalog.find_point(plan.operation)
    return PointTaken(point.summary(), warnings=(*opened.warnings, *closed.warnings))


def open_point(plan: Plan, request: TakePoint) -> PointOpened:
    """Plan against the VM's earlier points and fix the instant."""
    services = plan.services
    uuid = services.host.vm_uuid(request.vm)
    history = services.catalog.points_of_vm(uuid)
    task = OpenPoint(
        point_id=plan.operation,
        vm_uuid=uuid,
        full=request.full,
        exclude=tuple(request.exclude),
        points=tuple(known_point(point) for point in history),
        states=newest_states(services, uuid, history),
        quiesce=request.quiesce,
        demanded=tuple(request.demanded),
    )
    opened: PointOpened = services.on_host(plan.operation, task)
    return opened


def copy_point(plan: Plan, request: TakePoint, opened: PointOpened) -> PointCopied:
    """Copy the disks; when this returns the point is in the repository."""
    task = CopyPoint(plan.operation, parent=_parent(plan.services, opened), labels=dict(request.labels))
    copied: PointCopied = plan.services.on_host(plan.operation, task)
    return copied


def keep_checkpoint(plan: Plan) -> None:
    """From here on the new checkpoint stays, whatever happens."""
    plan.services.on_host(plan.operation, KeepCheckpoint(plan.operation))


def record_point(plan: Plan, copied: PointCopied) -> None:
    """Make the point, its state versions and its pins known, in one transaction."""
    record = PointRecord.from_json({**copied.record, "definition": ""}, f"point {plan.operation}")
    plan.services.catalog.record_point(catalog_point(record), catalog_states(record))


def close_point(plan: Plan) -> PointClosed:
    """End the job and delete the older checkpoints; the point stands whatever this meets."""
    closed: PointClosed = plan.services.on_host(plan.operation, ClosePoint(plan.operation))
    return closed


def abandon_point(plan: Plan) -> None:
    """Undo ``open_point``."""
    plan.services.on_host(plan.operation, AbandonPoint(plan.operation))


def remove_point(services: Services, point_id: str) -> None:
    """Undo ``copy_point``: the object goes, blocks that no point needs are found by a later prune."""
    services.catalog.forget_point(point_id)
    with suppress(PointNotFound):
        services.with_repository(lambda repository: repository.delete_point(point_id))


def _parent(services: Services, opened: PointOpened) -> str | None:
    """Return the point that the VM's state descends from: where it is now, else the last one taken of it.

    None: it has no point, or is as it was before its first one. A base that this catalogue does not know was made by
    another installation, to which the VM had gone meanwhile.
    """
    known = [point.id for point in services.catalog.points_of_vm(opened.vm_uuid)]
    if opened.base is not None and opened.base not in known:
        return opened.base
    # A VM that went back before its first point may have disks that stayed: those descend from their base.
    return descent(services.catalog, opened.vm_uuid) or opened.base


def descent(catalog: Catalog, vm_uuid: str) -> str | None:
    """Return the point that a VM's state descends from, as far as the catalogue tells; None: from none."""
    known = [point.id for point in catalog.points_of_vm(vm_uuid)]
    vm = catalog.vm(vm_uuid)
    if vm is not None and vm.before_first:
        return None
    if vm is not None and vm.current_point in known:
        return vm.current_point
    return known[0] if known else None


def newest_states(services: Services, vm_uuid: str, history: tuple[CatalogPoint, ...]) -> tuple[KnownState, ...]:
    """Return the newest accepted version of each kind, with its file name where a point still tells it."""
    files: dict[str, str] = {}
    for point in history:
        for state in _states(point.document):
            files.setdefault(state["version_id"], state["file"])
    newest = (services.catalog.newest_state(vm_uuid, kind) for kind in ("tpm", "nvram"))
    return tuple(
        KnownState(state.kind, state.id, state.generation, state.sha256, state.size_bytes, files.get(state.id, ""))
        for state in newest
        if state is not None
    )


def _states(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(document.get("states", ()))
