"""Take a VM back to a snapshot of libvirt: disks, memory, UEFI variables and TPM together, or not at all."""

from __future__ import annotations

from datetime import datetime

from vmkeep.catalog import Catalog, CatalogSnapshot
from vmkeep.custody.states import KnownState
from vmkeep.flows.gate import place_states
from vmkeep.flows.parked import may_take_back, unplace_states
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.requests import RevertSnapshot, SnapshotReverted
from vmkeep.flows.services import Services
from vmkeep.host.tasks.reverts import (
    ApplyRevert,
    Descent,
    KnownSnapshot,
    ParkForRevert,
    PutBackRevert,
    ReleaseReverted,
    RevertChoice,
    RevertParked,
    RevertReleased,
    StageRevert,
)


@flow("snapshot.revert", after_crash=AfterCrash.FINISH, undos_alone=True)
def revert_snapshot(plan: Plan, request: RevertSnapshot) -> SnapshotReverted:
    """Make a VM what it was at a snapshot of libvirt. See docs/internals/revert.md.

    What a repeated step does is decided by the journal on the host, not by the steps that DBOS recorded.
    """
    parked = plan.step(park, plan, request, undo=lambda parked: put_back(plan, parked))
    plan.step(stage, plan)
    # Before the memory is started: the gate is asked.
    placed = _states_placed(plan, request, parked)
    plan.step(
        place_states,
        plan,
        parked.vm_uuid,
        placed,
        undo=lambda before: unplace_states(plan, parked.vm_uuid, before),
    )
    plan.step(apply, plan)
    plan.step(note_descent, plan, request, parked, undo=lambda before: take_descent_back(plan, parked, before))
    released = plan.step(release, plan, parked)
    return SnapshotReverted(
        snapshot=request.snapshot,
        name=parked.vm_name,
        uuid=parked.vm_uuid,
        safety=request.safety,
        disks=parked.disks,
        states=parked.states,
        memory=parked.memory,
        images=parked.images,
        left=parked.left,
        discarded=released.discarded,
        state=released.state,
        not_started=released.not_started,
        warnings=(*parked.warnings, *released.warnings),
    )


def _states_placed(plan: Plan, request: RevertSnapshot, parked: RevertParked) -> dict[str, str]:
    known = known_snapshot(plan.services.catalog, parked.vm_uuid, request.snapshot)
    held = {} if known is None else {state.kind: state.sha256 for state in known.states}
    return {kind: held[kind] for kind in parked.states if kind in held}


def choice_of(request: RevertSnapshot) -> RevertChoice:
    """Return what a host must know of the request."""
    return RevertChoice(
        snapshot=request.snapshot,
        only=request.only,
        tpm=str(request.tpm),
        memory=request.memory,
        force=request.force,
        drop_checkpoints=request.drop_checkpoints,
        reset_nvram=request.reset_nvram,
    )


def known_snapshot(catalog: Catalog, vm_uuid: str, name: str) -> KnownSnapshot | None:
    """Return what was kept with a snapshot; None for one that vmkeep did not make."""
    kept = catalog.snapshot(vm_uuid, name)
    if kept is None:
        return None
    states = tuple(
        KnownState(state.kind, state.id, state.generation, state.sha256, state.size_bytes, "") for state in kept.states
    )
    return KnownSnapshot(kept.creation_time, states)


def park(plan: Plan, request: RevertSnapshot) -> RevertParked:
    """Keep the VM from starting; from here on the journal on the host knows what to do."""
    services, uuid = plan.services, request.vm_uuid
    task = ParkForRevert(
        operation=plan.operation,
        vm_uuid=uuid,
        choice=choice_of(request),
        known=known_snapshot(services.catalog, uuid, request.snapshot),
        run=str(request.run),
        discard=request.discard,
        aim=_descent_then(services, request),
        origin=_descent(services, uuid),
        safety=request.safety or "",
    )
    return services.on_host(plan.operation, task)


def put_back(plan: Plan, parked: RevertParked) -> None:
    """Undo everything: the VM is what it was before."""
    plan.services.on_host(plan.operation, PutBackRevert(plan.operation, parked.vm_uuid))


def stage(plan: Plan) -> None:
    """Make the overlays, and write the state files beside their places."""
    plan.services.on_host(plan.operation, StageRevert(plan.operation))


def apply(plan: Plan) -> None:
    """State files, libvirt's current snapshot, the memory."""
    plan.services.on_host(plan.operation, ApplyRevert(plan.operation))


def note_descent(plan: Plan, request: RevertSnapshot, parked: RevertParked) -> Descent:
    """Let the next point descend from the one that the snapshot descends from, if all disks go back.

    Returns what was so before.
    """
    before = _descent(plan.services, parked.vm_uuid)
    if parked.whole:
        _note(plan.services, parked.vm_uuid, _descent_then(plan.services, request))
    return before


def take_descent_back(plan: Plan, parked: RevertParked, before: Descent) -> None:
    """Undo ``note_descent``."""
    if may_take_back(plan):
        _note(plan.services, parked.vm_uuid, before)


def release(plan: Plan, parked: RevertParked) -> RevertReleased:
    """Let the VM start on its new images, and start it where that was asked for."""
    return plan.services.on_host(plan.operation, ReleaseReverted(plan.operation, parked.vm_uuid))


def _note(services: Services, vm_uuid: str, descent: Descent) -> None:
    if descent.known:
        services.catalog.return_to(vm_uuid, descent.point)
    else:
        services.catalog.lose_track(vm_uuid)


def _descent(services: Services, vm_uuid: str) -> Descent:
    """Return which point the VM descends from now, as far as that was recorded."""
    vm = services.catalog.vm(vm_uuid)
    if vm is None or (vm.current_point is None and not vm.before_first):
        return Descent(None, known=False)
    return Descent(vm.current_point)


def _descent_then(services: Services, request: RevertSnapshot) -> Descent:
    """Return which point the snapshot descends from: what was recorded with it, else the last one before it.

    Of a snapshot that others made only the clock tells: it is the last point in their order whose clock says the time
    of the snapshot or an earlier one. libvirt keeps whole seconds. A point of the same second counts as older: a
    snapshot is quicker than a point.
    """
    kept: CatalogSnapshot | None = services.catalog.snapshot(request.vm_uuid, request.snapshot)
    if kept is not None and kept.creation_time == request.creation_time:
        return Descent(kept.current_point)
    older = [
        point.id
        for point in services.catalog.outlines_of_vm(request.vm_uuid)
        if _seconds(point.created) <= request.creation_time
    ]
    return Descent(older[0] if older else None)


def _seconds(created: str) -> int:
    return int(datetime.fromisoformat(created).timestamp())
