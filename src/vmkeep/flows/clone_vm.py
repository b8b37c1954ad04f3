"""Make a second VM of one that is off: disks, UEFI variables and TPM, under an identity of its own.

The original keeps still as long as it is copied, and nothing of it is changed. What is copied when the process dies is
of an instant that has passed, so a clone is taken back then; one that was copied whole is finished.
"""

from __future__ import annotations

from typing import Final

from vmkeep.custody.standing import NOTHING
from vmkeep.errors import Interrupted, VmkeepError
from vmkeep.flows.clone_requests import CloneVm, VmCloned
from vmkeep.flows.gate import place_states, renew_gate
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.secret_holders import kept_secrets
from vmkeep.flows.services import held_vm
from vmkeep.flows.settle_pins import settle_pins_of_vm
from vmkeep.flows.tpm_renewal import drop_key, required_key, seal_key
from vmkeep.flows.vm_states import known_states, new_state
from vmkeep.host.tasks.clones import (
    CloneCopied,
    ClonePrepared,
    CloseClone,
    CopyForClone,
    DefineClone,
    PrepareClone,
    WithdrawClone,
)
from vmkeep.host.tasks.locks import CAPTURE
from vmkeep.host.tasks.restores import PublishItems
from vmkeep.host.tasks.states import CaptureStates
from vmkeep.host.tasks.survey import Identify

_begun_here: Final[set[str]] = set()
"""The operations that were begun by this process, and not taken up after the death of another."""


@flow("vm.clone", after_crash=AfterCrash.FINISH)
def clone_vm(plan: Plan, request: CloneVm) -> VmCloned:
    """Make the clone; when any part fails nothing of it stays. See docs/internals/flows.md."""
    plan.step(begin, plan)
    prepared = plan.step(prepare, plan, request, undo=lambda prepared: withdraw(plan, prepared))
    # Before the copy, whose undo needs the process that began: the key of a blank TPM is kept before the VM can start.
    plan.step(new_key, plan, prepared, undo=lambda _: drop_key(plan, prepared.uuid, key_of(prepared)))
    copied = plan.step(copy, plan, prepared)
    plan.step(publish, plan, prepared)
    plan.step(define, plan, prepared)
    plan.step(note, plan, prepared, copied)
    left = plan.step(close, plan, prepared, heeds_stop=False)
    unkept = plan.step(keep_states, plan, prepared, heeds_stop=False)
    return VmCloned(
        source=prepared.source,
        source_uuid=prepared.source_uuid,
        name=prepared.name,
        uuid=prepared.uuid,
        tpm=prepared.tpm,
        nvram=prepared.nvram,
        secret=prepared.secret,
        disks=tuple(
            {"target": disk.target, "path": disk.path, "shared": disk.shared, "bytes_written": disk.bytes_written}
            for disk in copied.disks
        ),
        files=tuple(item.final for item in prepared.items),
        warnings=(*prepared.warnings, *left, *unkept),
    )


def begin(plan: Plan) -> None:
    """Remember that it was this process which began."""
    _begun_here.add(plan.operation)


def prepare(plan: Plan, request: CloneVm) -> ClonePrepared:
    """Hold the original and decide what the clone will be. When this raises, nothing is held."""
    task = PrepareClone(
        plan.operation,
        request.source,
        request.name,
        None if request.tpm is None else str(request.tpm),
        str(request.nvram),
        request.disks_dir,
    )
    return plan.services.on_host(plan.operation, task)


def withdraw(plan: Plan, prepared: ClonePrepared) -> None:
    """Undo all of it."""
    plan.services.on_host(plan.operation, WithdrawClone(plan.operation, prepared))


def key_of(prepared: ClonePrepared) -> str:
    """Return the UUID of the new secret of a blank TPM; empty where there is none, and of a copy."""
    return prepared.secret if prepared.tpm == "new" else ""


def new_key(plan: Plan, prepared: ClonePrepared) -> None:
    """Make the key of a blank TPM, in an envelope that is kept, if the original's is encrypted."""
    if key_of(prepared):
        seal_key(plan, prepared.uuid, prepared.secret, prepared.name)


def copy(plan: Plan, prepared: ClonePrepared) -> CloneCopied:
    """Copy what the clone is made of, in the process that has held the original since it was looked at."""
    if plan.operation not in _begun_here:
        raise Interrupted(
            f"the process that copied VM {prepared.source!r} was killed, and nothing has watched that VM since",
            vm=prepared.source,
        )
    return plan.services.on_host(plan.operation, CopyForClone(plan.operation, prepared))


def publish(plan: Plan, prepared: ClonePrepared) -> None:
    """Rename everything into place."""
    plan.services.on_host(plan.operation, PublishItems(prepared.items, force=False))


def define(plan: Plan, prepared: ClonePrepared) -> None:
    """Define the clone, and before it the secret of its TPM."""
    key = key_of(prepared)
    pin = required_key(plan, prepared.uuid, prepared.name, key).pin if key else ""
    plan.services.on_host(plan.operation, DefineClone(plan.operation, prepared, pin))


def note(plan: Plan, prepared: ClonePrepared, copied: CloneCopied) -> None:
    """Let catalogue and gate know the clone, whose it is a clone of, and what was meant to lie there."""
    services = plan.services
    host = services.host.ask(Identify())
    services.catalog.see_host(host.uuid, host.name)
    services.catalog.see_vm(prepared.uuid, prepared.name, host.uuid)
    placed = {state.kind: state.sha256 for state in copied.states}
    placed |= {kind: NOTHING for kind in ("tpm", "nvram") if getattr(prepared, kind) == "new"}
    place_states(plan, prepared.uuid, placed)


def close(plan: Plan, prepared: ClonePrepared) -> tuple[str, ...]:
    """Let the original go."""
    return plan.services.on_host(plan.operation, CloseClone(plan.operation, prepared))


def keep_states(plan: Plan, prepared: ClonePrepared) -> tuple[str, ...]:
    """Keep the clone's state files as its own first versions. The clone stands: trouble is a warning."""
    if "copy" not in (prepared.tpm, prepared.nvram):
        return ()
    return keep_versions(plan, prepared.uuid, prepared.name)


def keep_versions(plan: Plan, vm_uuid: str, vm: str) -> tuple[str, ...]:
    """Keep the state files of a VM as they are now; return a sentence about what keeps that from being done."""
    services = plan.services
    try:
        with held_vm(services.host, vm_uuid, vm, CAPTURE):
            known = known_states(services.catalog, vm_uuid, services.catalog.points_of_vm(vm_uuid))
            task = CaptureStates(plan.operation, vm_uuid, known, secrets=kept_secrets(services.catalog, vm_uuid))
            captured = services.on_host(plan.operation, task)
            if captured.new:
                services.catalog.accept_states(tuple(new_state(vm_uuid, each) for each in captured.new))
                renew_gate(services, vm_uuid)
            settle_pins_of_vm(services, vm_uuid, captured.sealed)
    except VmkeepError as error:
        return (f"The state files of {vm} are not kept yet: {error}",)
    return captured.warnings
