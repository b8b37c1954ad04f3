"""Take a point: everything a VM is, of one instant, into the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from vmkeep.catalog import Catalog, CatalogVm, PointOutline
from vmkeep.errors import CatalogError, IntegrityError, PointNotFound
from vmkeep.flows.catch_up import catch_up_on_vm
from vmkeep.flows.declared import TAKE_POINT
from vmkeep.flows.gate import renew_gate
from vmkeep.flows.hosts import told_of_base
from vmkeep.flows.installation import catalog_point, catalog_states, known_from_catalogue
from vmkeep.flows.plan import AfterCrash, Plan, Settled, flow
from vmkeep.flows.requests import PointTaken, TakePoint
from vmkeep.flows.services import Services
from vmkeep.flows.vm_states import known_states
from vmkeep.host.tasks.points import (
    AbandonPoint,
    ClosePoint,
    CopyPoint,
    KeepCheckpoint,
    OpenPoint,
    PointClosed,
    PointCopied,
    PointOpened,
)
from vmkeep.host.tasks.survey import FindVm, Progress
from vmkeep.planning import clocks
from vmkeep.repository import PointRecord, Repository


def settle_point(services: Services, operation: str) -> Settled:
    """Remove what a point left in repository and catalogue, or record it; the guest was made safe by its guardian."""
    if operation in services.catalog.point_ids():
        # Everything was recorded; only the end of the job was missing, and the guardian saw to that.
        return Settled(f"point {operation} was complete when its process was killed", whole=True)
    if record_committed_point(services, operation):
        return Settled(f"point {operation} was complete when its process was killed, and is recorded now", whole=True)
    remove_point(services, operation)
    return Settled(f"an interrupted point ({operation}) was removed from the repository", whole=False)


@flow(TAKE_POINT, after_crash=AfterCrash.UNDO, settle=settle_point)
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
    kept = tuple(str(warning) for warning in copied.record["warnings"])
    return PointTaken(point.summary(), warnings=(*kept, *closed.warnings))


def open_point(plan: Plan, request: TakePoint) -> PointOpened:
    """Plan against the VM's earlier points, also those that others made, and fix the instant."""
    services = plan.services
    uuid = services.host.ask(FindVm(request.vm))
    catch_up_on_vm(services, uuid)
    history = services.catalog.points_of_vm(uuid)
    if (told := told_of_base(history)) is not None:
        services.watch(Progress("planning", note=f"warning: {told}"))
    task = OpenPoint(
        point_id=plan.operation,
        vm_uuid=uuid,
        full=request.full,
        exclude=tuple(request.exclude),
        points=tuple(known_from_catalogue(point) for point in history),
        states=known_states(services.catalog, uuid, history),
        quiesce=request.quiesce,
        demanded=tuple(request.demanded),
        doubtful=tuple(point.id for point in history if not point.is_vouched_for),
    )
    return services.on_host(plan.operation, task)


def copy_point(plan: Plan, request: TakePoint, opened: PointOpened) -> PointCopied:
    """Copy the disks; when this returns the point is in the repository.

    Its order number is drawn here: the VM is locked, and the catalogue knows all points that the repository held when
    this began. What a crash leaves of the point has that number for ever, and its undo removes it.
    """
    services = plan.services
    outlines = services.catalog.outlines_of_vm(opened.vm_uuid)
    task = CopyPoint(
        plan.operation,
        parent=_parent(services, opened, outlines),
        labels=dict(request.labels),
        sequence=services.catalog.next_sequence(opened.vm_uuid),
        warnings=_clock_warnings(outlines, opened),
    )
    return plan.services.on_host(plan.operation, task)


def keep_checkpoint(plan: Plan) -> None:
    """From here on the new checkpoint stays, whatever happens."""
    plan.services.on_host(plan.operation, KeepCheckpoint(plan.operation))


def record_point(plan: Plan, copied: PointCopied) -> None:
    """Make the point, its state versions and its pins known, in one transaction."""
    where = f"point {plan.operation}"
    record = PointRecord.from_json({**copied.record, "definition": ""}, where, digest=copied.digest)
    plan.services.catalog.record_point(catalog_point(record), catalog_states(record))
    renew_gate(plan.services, record.vm_uuid)


def record_committed_point(services: Services, point_id: str) -> bool:
    """Record a point whose flow is dead if it was committed whole; False when it was not, and must be removed.

    A writer ends its intent when all that it must look at is done. So a point without an intent is as good as any, and
    it may have been recorded: in a home that was put back as it was while the point was made, the flow looks dead.
    """

    def committed(repository: Repository) -> PointRecord | None:
        purposes = {writer.purpose for writer in repository.writers()}
        return None if f"point {point_id}" in purposes else repository.point(point_id)

    try:
        record = services.with_repository(committed)
    except (PointNotFound, IntegrityError):
        return False
    if record is None:
        return False
    record_found(services.catalog, record)
    renew_gate(services, record.vm_uuid)
    return True


def record_found(catalog: Catalog, record: PointRecord) -> None:
    """Record a committed point whose flow is dead.

    Nothing held the VM since, so its state may have been captured meanwhile (`vmkeep watch` does that within seconds),
    as a version of the generation that this point's claims. The captured one counts, and the point is taken over as
    one that is found in the repository, with its version. Raises CatalogError for another point of its id.
    """
    point, states = catalog_point(record), catalog_states(record)
    try:
        catalog.record_point(point, states)
    except CatalogError:
        if catalog.point(record.id) is not None:
            raise
        catalog.adopt([(point, states)])
        catalog.return_to(record.vm_uuid, record.id)


def close_point(plan: Plan) -> PointClosed:
    """End the job and delete the older checkpoints; the point stands whatever this meets."""
    return plan.services.on_host(plan.operation, ClosePoint(plan.operation))


def abandon_point(plan: Plan) -> None:
    """Undo ``open_point``."""
    plan.services.on_host(plan.operation, AbandonPoint(plan.operation))


def remove_point(services: Services, point_id: str) -> None:
    """Undo ``copy_point``: the object goes, blocks that no point needs are found by a later prune."""
    services.catalog.forget_point(point_id)
    with suppress(PointNotFound):
        services.with_repository(lambda repository: repository.delete_point(point_id))


def _parent(services: Services, opened: PointOpened, outlines: Sequence[PointOutline]) -> str | None:
    """Return the point that the VM's state descends from: where it is now, else the last one taken of it.

    None: it has no point, or is as it was before its first one. Bitmaps prove that a disk descends from its base. So a
    base is the parent when nobody knows where the VM is, and when it was made after the point where the VM is by the
    catalogue, or is not known: another installation made it, to which the VM had gone meanwhile, or this home was put
    back as it was earlier. A point that others deleted from the repository is nobody's parent.
    """
    base = opened.base
    known = [point.id for point in outlines]
    vm = services.catalog.vm(opened.vm_uuid)
    here = _descent(vm, known)
    if here is None or vm is None or vm.current_point != here:
        # Also of a VM that went back before its first point: it may have disks that stayed.
        if base is not None or here is None:
            return base
    elif base is not None and base not in known[known.index(here) :]:
        return base
    wanted = dict.fromkeys([here, *([] if base is None else [base]), *known])
    return next((point_id for point_id in wanted if _is_stored(services, point_id)), None)


def _is_stored(services: Services, point_id: str) -> bool:
    try:
        services.with_repository(lambda repository: repository.point(point_id))
    except PointNotFound:
        return False
    except IntegrityError:
        return True
    return True


def _clock_warnings(outlines: Sequence[PointOutline], opened: PointOpened) -> tuple[str, ...]:
    before = next(iter(outlines), None)
    if before is None:
        return ()
    made = clocks.Stamp.of(opened.point_id, opened.created)
    told = clocks.warning(clocks.Stamp.of(before.id, before.created), made)
    return () if told is None else (told,)


def descent(catalog: Catalog, vm_uuid: str) -> str | None:
    """Return the point that a VM's state descends from, as far as the catalogue tells; None: from none."""
    return _descent(catalog.vm(vm_uuid), [point.id for point in catalog.outlines_of_vm(vm_uuid)])


def _descent(vm: CatalogVm | None, known: Sequence[str]) -> str | None:
    if vm is not None and vm.before_first:
        return None
    if vm is not None and vm.current_point in known:
        return vm.current_point
    return known[0] if known else None


def _states(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(document.get("states", ()))
