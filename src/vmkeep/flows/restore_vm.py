"""Restore a point as a VM that starts: disks, NVRAM and TPM in place first, the definition last."""

from __future__ import annotations

from vmkeep.custody.standing import NOTHING
from vmkeep.flows.gate import place_states
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.requests import RestoreVm, VmRestored
from vmkeep.flows.restore_files import discard_replaced, publish, withdraw
from vmkeep.flows.trust import is_trusted
from vmkeep.flows.vm_states import states_in
from vmkeep.host.tasks.restores import (
    DefineVm,
    DeliverItems,
    HostParts,
    ItemsDelivered,
    PrepareVm,
    UndefineVm,
    VmPrepared,
)
from vmkeep.host.tasks.survey import Identify


@flow("restore.vm", after_crash=AfterCrash.FINISH)
def restore_vm(plan: Plan, request: RestoreVm) -> VmRestored:
    """Make a VM of a point. When any part fails, nothing is defined and no file of it stays."""
    prepared = plan.step(prepare, plan, request)
    items = prepared.items
    delivered = plan.step(deliver, plan, request, prepared, undo=lambda _: withdraw(plan, items))
    plan.step(publish, plan, items, request.force)
    plan.step(define, plan, request, prepared, undo=lambda _: undefine(plan, request, prepared))
    plan.step(note_vm, plan, request, prepared)
    left = plan.step(discard_replaced, plan, items)
    return VmRestored(
        point=request.point,
        name=prepared.name,
        uuid=prepared.uuid,
        identity=prepared.identity,
        tpm=prepared.tpm,
        files=tuple(item.final for item in items),
        bytes_written=delivered.bytes_written,
        warnings=(*prepared.warnings, *left),
        changes=tuple({"change": change, "guest": guest} for change, guest in prepared.changes),
    )


def prepare(plan: Plan, request: RestoreVm) -> VmPrepared:
    """Decide identity and paths; asks for a choice where two outcomes are possible."""
    services = plan.services
    point = services.catalog.find_point(request.point)
    known = services.catalog.vm(point.vm_uuid)
    here = services.host.ask(Identify()).uuid
    elsewhere = known is not None and not known.adopted and known.host_uuid not in (None, here)
    task = PrepareVm(
        operation=plan.operation,
        point_id=point.id,
        name=request.name,
        tpm=str(request.tpm) if request.tpm is not None else None,
        disks_dir=request.disks_dir,
        force=request.force,
        elsewhere=elsewhere,
        adapt=request.adapt,
        machine=request.machine,
        cpu=request.cpu,
        firmware=request.firmware,
        host_parts=host_parts(plan, request),
    )
    return services.on_host(plan.operation, task)


def host_parts(plan: Plan, request: RestoreVm) -> HostParts:
    """Return what becomes of parts of the definition that reach into the host."""
    if is_trusted(plan.services.catalog, plan.services.catalog.find_point(request.point)):
        return HostParts.TRUSTED
    if request.trust_definition:
        return HostParts.DEFINED
    return HostParts.STRIPPED if request.strip_host_parts else HostParts.REFUSED


def deliver(plan: Plan, request: RestoreVm, prepared: VmPrepared) -> ItemsDelivered:
    """Write disks, NVRAM and TPM beside their places, owned as the hypervisor expects."""
    task = DeliverItems(request.point, prepared.items, for_hypervisor=True)
    return plan.services.on_host(plan.operation, task)


def define(plan: Plan, request: RestoreVm, prepared: VmPrepared) -> None:
    """Define the VM, and before it the secrets that it needs and libvirt lacks."""
    task = DefineVm(
        request.point,
        prepared.name,
        prepared.uuid,
        prepared.identity,
        prepared.items,
        prepared.secrets,
        adapt=request.adapt,
        machine=request.machine,
        cpu=request.cpu,
        firmware=request.firmware,
        host_parts=host_parts(plan, request),
    )
    plan.services.on_host(plan.operation, task)


def undefine(plan: Plan, request: RestoreVm, prepared: VmPrepared) -> None:
    """Undo ``define``."""
    plan.services.on_host(plan.operation, UndefineVm(prepared.uuid, request.point, prepared.secrets))


def note_vm(plan: Plan, request: RestoreVm, prepared: VmPrepared) -> None:
    """Let the catalogue know the VM, where it lives, and to which point it went back."""
    services = plan.services
    host = services.host.ask(Identify())
    services.catalog.see_host(host.uuid, host.name)
    services.catalog.see_vm(prepared.uuid, prepared.name, host.uuid)
    if prepared.identity == "same":
        point = services.catalog.find_point(request.point)
        services.catalog.return_to(prepared.uuid, point.id)
        place_states(plan, prepared.uuid, {**states_in(point), **({"tpm": NOTHING} if prepared.tpm == "new" else {})})
