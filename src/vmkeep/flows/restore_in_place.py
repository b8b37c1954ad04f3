"""Restore a point over its own VM: the disks' difference, UEFI variables and TPM, in place or not at all."""

from __future__ import annotations

from vmkeep.flows.gate import place_states
from vmkeep.flows.parked import may_take_back, unplace_states
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.requests import InPlaceRestored, RestoreInPlace
from vmkeep.flows.vm_states import states_in
from vmkeep.host.tasks.restores import (
    BindRestore,
    DisksWritten,
    ParkVm,
    PublishRestore,
    PutBack,
    ReleaseVm,
    StageRestore,
    VmParked,
    WriteRestore,
)


@flow("restore.in_place", after_crash=AfterCrash.FINISH, undos_alone=True)
def restore_in_place(plan: Plan, request: RestoreInPlace) -> InPlaceRestored:
    """Make a VM what it was at a point. The safety point is there already. See docs/internals/in-place.md.

    What a repeated step does is decided by the journal on the host, not by the steps that DBOS recorded.
    """
    assert request.safety is not None, "a restore in place without a safety point"
    parked = plan.step(park, plan, request, undo=lambda parked: put_back(plan, parked))
    plan.step(stage, plan)
    written = plan.step(write, plan)
    plan.step(publish, plan)
    harmed = plan.step(bind, plan)
    plan.step(note_point, plan, request, parked, undo=lambda _: note_safety(plan, request, parked))
    placed = _states_placed(plan, request, parked)
    plan.step(
        place_states,
        plan,
        parked.vm_uuid,
        placed,
        undo=lambda before: unplace_states(plan, parked.vm_uuid, before),
    )
    left = plan.step(release, plan, parked)
    return InPlaceRestored(
        point=request.point,
        name=parked.vm_name,
        uuid=parked.vm_uuid,
        safety=request.safety,
        disks=parked.disks,
        states=parked.states,
        bytes_written=written.bytes_written,
        bytes_zeroed=written.bytes_zeroed,
        warnings=(*parked.warnings, *harmed, *left),
    )


def _states_placed(plan: Plan, request: RestoreInPlace, parked: VmParked) -> dict[str, str]:
    held = states_in(plan.services.catalog.find_point(request.point))
    return {kind: held[kind] for kind in parked.states}


def park(plan: Plan, request: RestoreInPlace) -> VmParked:
    """Keep the VM from starting; from here on the journal on the host knows what to do."""
    assert request.safety is not None
    task = ParkVm(
        plan.operation,
        request.point,
        request.safety,
        request.only,
        str(request.tpm),
        request.images,
        request.vm_uuid,
    )
    return plan.services.on_host(plan.operation, task)


def put_back(plan: Plan, parked: VmParked) -> None:
    """Undo everything: the VM is what it was at its safety point."""
    plan.services.on_host(plan.operation, PutBack(plan.operation, parked.vm_uuid))


def stage(plan: Plan) -> None:
    """Plan the ranges, and write files beside their places."""
    plan.services.on_host(plan.operation, StageRestore(plan.operation))


def write(plan: Plan) -> DisksWritten:
    """Write the ranges over the disks."""
    return plan.services.on_host(plan.operation, WriteRestore(plan.operation))


def publish(plan: Plan) -> None:
    """Rename UEFI variables, TPM and images made anew into place."""
    plan.services.on_host(plan.operation, PublishRestore(plan.operation))


def bind(plan: Plan) -> tuple[str, ...]:
    """Make the point the base of the disks' next point; return what it harmed of others."""
    return plan.services.on_host(plan.operation, BindRestore(plan.operation))


def note_point(plan: Plan, request: RestoreInPlace, parked: VmParked) -> None:
    """Let the next point descend from this one, if all disks are its."""
    if parked.whole:
        plan.services.catalog.return_to(parked.vm_uuid, request.point)


def note_safety(plan: Plan, request: RestoreInPlace, parked: VmParked) -> None:
    """Undo ``note_point``."""
    assert request.safety is not None
    if may_take_back(plan):
        plan.services.catalog.return_to(parked.vm_uuid, request.safety)


def release(plan: Plan, parked: VmParked) -> tuple[str, ...]:
    """Let the VM start again, and remove what was kept for an undo."""
    return plan.services.on_host(plan.operation, ReleaseVm(plan.operation, parked.vm_uuid))
