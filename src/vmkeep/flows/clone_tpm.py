"""Give a VM the TPM of another one on its host: a copy of its state, or a blank one of its kind."""

from __future__ import annotations

import dataclasses

from vmkeep.custody.identity import told_of_one_identity, told_of_one_value
from vmkeep.custody.standing import NOTHING
from vmkeep.flows.add_tpm import FILES, element_of, examine, let_go, note_returned
from vmkeep.flows.clone_requests import CloneTpm, TpmCloned
from vmkeep.flows.clone_vm import keep_versions
from vmkeep.flows.gate import place_states, take_states_back
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.removals import store_proofs
from vmkeep.flows.requests import AddTpm
from vmkeep.host.tasks.tpms import (
    ForgetOwnTpmSecret,
    GiveOwnTpmSecret,
    GiveTpmSecret,
    InstallTpmState,
    PutTpmIn,
    TakeTpmOut,
    TpmFound,
    WithdrawTpmState,
)


@flow("tpm.clone", after_crash=AfterCrash.FINISH)
def clone_tpm(plan: Plan, request: CloneTpm) -> TpmCloned:
    """Give the VM its TPM; its state lies there, and counts, before it can start. See docs/internals/flows.md."""
    found = plan.step(look, plan, request, undo=lambda found: let_go(plan, found))
    # The undo stands before what it undoes: a step of that may fail when its work is done.
    plan.step(begin, undo=lambda _: withdraw(plan, request, found))
    plan.step(install_state, plan, request, found)
    plan.step(give_secret, plan, request, found)
    plan.step(note, plan, request, found, undo=lambda before: take_states_back(plan, found.vm_uuid, before))
    plan.step(put_in, plan, request, found)
    plan.step(let_go, plan, found, heeds_stop=False)
    plan.step(note_returned, plan, _addition(request), found, heeds_stop=False)
    plan.step(store_proofs, plan, heeds_stop=False)
    unkept = plan.step(keep_version, plan, request, found, heeds_stop=False)
    told: tuple[str, ...] = ()
    if request.version is not None:
        told = (told_of_one_identity(found.vm_name, request.source_name),)
        told += (told_of_one_value(request.secret, found.vm_name),) if request.secret else ()
    return TpmCloned(
        source=request.source_name,
        source_uuid=request.source,
        name=found.vm_name,
        uuid=found.vm_uuid,
        model=request.model,
        version=request.tpm_version,
        sha256="" if request.version is None else request.version.sha256,
        secret=request.secret,
        warnings=(*told, *unkept),
    )


def look(plan: Plan, request: CloneTpm) -> TpmFound:
    """Hold the VM, and refuse what cannot be done. When this raises, the VM is not held."""
    return examine(plan, dataclasses.replace(_addition(request), secret=""))  # libvirt does not have it yet


def begin() -> None:
    """From here on something may lie on the host."""


def install_state(plan: Plan, request: CloneTpm, found: TpmFound) -> None:
    """Put the copy in place, whole or not at all."""
    if request.version is not None:
        file = FILES[request.tpm_version]
        task = InstallTpmState(
            plan.operation, found.vm_uuid, found.directory, file, request.version, of_vm=request.source
        )
        plan.services.on_host(plan.operation, task)


def give_secret(plan: Plan, request: CloneTpm, found: TpmFound) -> None:
    """Define the secret that is the new TPM's own."""
    if request.secret_pin:
        task = GiveTpmSecret(plan.operation, "", request.secret, request.secret_pin)
        plan.services.on_host(plan.operation, task)
    elif request.secret:
        plan.services.on_host(plan.operation, GiveOwnTpmSecret(request.secret, found.vm_name, request.value_of))


def withdraw(plan: Plan, request: CloneTpm, found: TpmFound) -> None:
    """Undo ``put_in``, ``give_secret`` and ``install_state``, as far as they were done."""
    plan.services.on_host(plan.operation, TakeTpmOut(plan.operation, found.vm_uuid, _element(request)))
    if request.secret:
        plan.services.on_host(plan.operation, ForgetOwnTpmSecret(request.secret))
    if request.version is not None:
        plan.services.on_host(plan.operation, WithdrawTpmState(plan.operation, found.directory))


def note(plan: Plan, request: CloneTpm, found: TpmFound) -> dict[str, str | None]:
    """Let what lies there count as meant, a blank TPM as well; return what counted before."""
    plan.services.catalog.see_vm(found.vm_uuid, found.vm_name)
    placed = NOTHING if request.version is None else request.version.sha256
    return place_states(plan, found.vm_uuid, {"tpm": placed})


def put_in(plan: Plan, request: CloneTpm, found: TpmFound) -> None:
    """Define the VM with the device."""
    plan.services.on_host(plan.operation, PutTpmIn(plan.operation, found.vm_uuid, _element(request)))


def keep_version(plan: Plan, request: CloneTpm, found: TpmFound) -> tuple[str, ...]:
    """Keep the copy as a version of the VM's own. The TPM is there: trouble is a warning."""
    return keep_versions(plan, found.vm_uuid, found.vm_name) if request.version is not None else ()


def _addition(request: CloneTpm) -> AddTpm:
    return AddTpm(
        request.vm,
        request.vm,
        request.model,
        request.tpm_version,
        request.version,
        secret=request.secret,
        like=request.like,
    )


def _element(request: CloneTpm) -> str:
    return element_of(_addition(request))
