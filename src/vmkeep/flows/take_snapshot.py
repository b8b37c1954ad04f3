"""Make a snapshot of a whole VM: libvirt's, with TPM state and UEFI variables of its instant, kept with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmkeep.catalog import CatalogSnapshot, CatalogState
from vmkeep.errors import VmkeepError
from vmkeep.flows.catch_up import catch_up_on_vm
from vmkeep.flows.gate import renew_gate
from vmkeep.flows.plan import AfterCrash, Plan, Settled, flow
from vmkeep.flows.requests import SnapshotTaken, TakeSnapshot
from vmkeep.flows.secret_holders import kept_secrets
from vmkeep.flows.services import Services
from vmkeep.flows.settle_pins import settle_pins_of_vm
from vmkeep.flows.take_point import descent
from vmkeep.flows.vm_states import known_states
from vmkeep.host.tasks.snapshots import (
    CloseSnapshot,
    LeaveSnapshot,
    MakeSnapshot,
    SettleSnapshot,
    SnapshotMade,
    SnapshotStored,
    StoreSnapshot,
)
from vmkeep.host.tasks.survey import FindVm


def settle_snapshot(services: Services, operation: str) -> Settled:
    """Record a snapshot that was made and not recorded; nothing is taken back, because the guest may have written."""
    recorded = services.catalog.snapshot_by_id(operation)
    if recorded is not None:
        close_snapshot(services, operation)
        return Settled(f"snapshot {recorded.name} was complete when its process was killed", whole=True)
    settled = services.on_host(operation, SettleSnapshot(operation))
    try:
        if settled.made is not None:
            record_snapshot(services, settled.made, store_snapshot(services, settled.made))
            close_snapshot(services, operation)
    finally:
        leave_snapshot(services, operation)
    return Settled(settled.told, settled.made is not None)


@flow("snapshot.take", after_crash=AfterCrash.UNDO, settle=settle_snapshot)
def take_snapshot(plan: Plan, request: TakeSnapshot) -> SnapshotTaken:
    """Make a snapshot of a VM, running, paused or off. The operation's id is the snapshot's in the catalogue.

    After a crash it is neither undone nor made anew, but settled (``settle_snapshot``). See docs/internals/flows.md.
    """
    made = plan.step(make_snapshot, plan, request, undo=lambda _: leave_snapshot(plan.services, plan.operation))
    try:
        stored = plan.step(store_snapshot, plan.services, made, heeds_stop=False)
        plan.step(record_snapshot, plan.services, made, stored, heeds_stop=False)
    except VmkeepError as error:
        error.add_note(
            f"snapshot {made.name} was made, and its state is kept on this host: the next command records it"
        )
        raise
    plan.step(close_snapshot, plan.services, plan.operation, heeds_stop=False)
    kept = plan.services.catalog.snapshot(made.vm_uuid, made.name)
    point = None if kept is None else kept.current_point
    return SnapshotTaken(snapshot_summary(made, stored.states, point), made.warnings)


def make_snapshot(plan: Plan, request: TakeSnapshot) -> SnapshotMade:
    """Suspend, let libvirt make it, read the state files, resume. When this raises there is none, or it says so."""
    services = plan.services
    task = MakeSnapshot(
        operation=plan.operation,
        vm_uuid=services.host.ask(FindVm(request.vm)),
        xml=request.xml,
        disk_only=request.disk_only,
        internal=request.internal,
        with_bitmaps=request.with_bitmaps,
        quiesce=request.quiesce,
        halt=request.halt,
        reuse_external=request.reuse_external,
        validate=request.validate,
    )
    return services.on_host(plan.operation, task)


def store_snapshot(services: Services, made: SnapshotMade) -> SnapshotStored:
    """Put the state files into the repository; those that equal the newest versions are there already.

    What others made of the VM is taken over before: their versions and points count as well.
    """
    catch_up_on_vm(services, made.vm_uuid)
    catalog = services.catalog
    known = known_states(catalog, made.vm_uuid, catalog.points_of_vm(made.vm_uuid))
    return services.on_host(made.operation, StoreSnapshot(made.operation, known, kept_secrets(catalog, made.vm_uuid)))


def record_snapshot(services: Services, made: SnapshotMade, stored: SnapshotStored) -> None:
    """Make the snapshot, its state versions and its pins known, in one transaction."""
    catalog = services.catalog
    catalog.see_vm(made.vm_uuid, made.vm_name)
    catalog.record_snapshot(
        CatalogSnapshot(
            id=made.operation,
            vm_uuid=made.vm_uuid,
            name=made.name,
            creation_time=made.creation_time,
            current_point=descent(catalog, made.vm_uuid),
            created=made.created,
            states=tuple(CatalogState(**state) for state in stored.states),
        )
    )
    settle_pins_of_vm(services, made.vm_uuid, stored.sealed)
    renew_gate(services, made.vm_uuid)


def close_snapshot(services: Services, operation: str) -> None:
    """Nothing of it needs to be kept on the host any more."""
    services.on_host(operation, CloseSnapshot(operation))


def leave_snapshot(services: Services, operation: str) -> None:
    """Undo ``make_snapshot`` as far as that is safe: the snapshot stays, and the next command records it."""
    services.on_host(operation, LeaveSnapshot(operation))


def snapshot_summary(
    made: SnapshotMade, states: tuple[Mapping[str, Any], ...], current_point: str | None
) -> dict[str, Any]:
    """Return what `vmkeep snapshot create --json` prints."""
    held = {state["kind"]: state for state in states}
    return {
        "id": made.operation,
        "name": made.name,
        "vm": made.vm_name,
        "vm_uuid": made.vm_uuid,
        "description": made.description,
        "kind": made.kind,
        "was": made.was,
        "created": made.created,
        "creation_time": made.creation_time,
        "pause_ms": made.pause_ms,
        "disks": [{"target": target, "overlay": overlay or None} for target, overlay in made.disks.items()],
        "left_out": list(made.left_out),
        "memory": made.memory_file or None,
        "current_point": current_point,
        "state": {
            kind: {
                "present": kind in held,
                "version": held[kind]["id"] if kind in held else None,
                "sha256": held[kind]["sha256"] if kind in held else None,
                "bytes": held[kind]["size_bytes"] if kind in held else None,
            }
            for kind in ("tpm", "nvram")
        },
    }
