"""Give a VM a TPM: a blank one, or the state of a version that is kept, with the secret that opens it."""

from __future__ import annotations

from vmkeep.catalog.texts import now
from vmkeep.commandline import command_line
from vmkeep.custody.orphans import Orphan
from vmkeep.custody.standing import NOTHING
from vmkeep.definition.tpmdevice import tpm_element
from vmkeep.errors import InvalidRequest, TargetExists, VmkeepError
from vmkeep.flows.gate import place_states, take_states_back
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.removals import fact_of_return, last_removal, store_proofs
from vmkeep.flows.requests import AddTpm, TpmAdded
from vmkeep.flows.settle_pins import settle_pins_of_vm
from vmkeep.flows.tombstones import supersede_tombstones
from vmkeep.host.tasks.tpms import (
    GiveTpmSecret,
    HoldForTpm,
    InstallTpmState,
    LetTpmGo,
    PlanTpmSecret,
    PutTpmIn,
    RequireTpmFits,
    TakeTpmOut,
    TakeTpmSecretBack,
    TpmFound,
    TpmRemains,
    WithdrawTpmState,
)

FILES = {"1.2": "tpm1.2/tpm-00.permall", "2.0": "tpm2/tpm2-00.permall"}


@flow("tpm.add", after_crash=AfterCrash.FINISH)
def add_tpm(plan: Plan, request: AddTpm) -> TpmAdded:
    """Give a VM a TPM; its state lies there, and counts, before it can start. See docs/internals/flows.md."""
    found = plan.step(examine, plan, request, undo=lambda found: let_go(plan, found))
    lacking = plan.step(plan_secret, plan, request)
    # The undo stands before what it undoes: a step of that may fail when its work is done.
    plan.step(begin, undo=lambda _: withdraw(plan, request, found, lacking=lacking))
    plan.step(install_state, plan, request, found)
    plan.step(give_secret, plan, request)
    plan.step(note_added, plan, request, found, undo=lambda before: take_states_back(plan, found.vm_uuid, before))
    plan.step(put_in, plan, request, found)
    plan.step(let_go, plan, found, heeds_stop=False)
    plan.step(note_returned, plan, request, found, heeds_stop=False)
    plan.step(store_proofs, plan, heeds_stop=False)
    return TpmAdded(
        name=found.vm_name,
        uuid=found.vm_uuid,
        model=request.model,
        version=request.tpm_version,
        sha256="" if request.version is None else request.version.sha256,
        secret=request.secret,
    )


def examine(plan: Plan, request: AddTpm) -> TpmFound:
    """Hold the VM, and refuse what cannot be done. When this raises, the VM is not held."""
    services, operation = plan.services, plan.operation
    found = services.on_host(operation, HoldForTpm(operation, request.vm_uuid))
    try:
        if found.element:
            raise InvalidRequest(
                f"VM {found.vm_name!r} has a TPM already",
                vm=found.vm_name,
                hint=f"`{command_line('vmkeep tpm restore', found.vm_name)}` puts kept state into it; "
                f"`{command_line('vmkeep tpm remove', found.vm_name)}` takes it out.",
            )
        secret = "" if request.brings_secret else request.secret
        services.on_host(operation, RequireTpmFits(found.vm_uuid, request.model, request.tpm_version, secret))
        lying = services.on_host(operation, TpmRemains(operation, found.vm_uuid, found.directory)).found
        if lying is not None and not _is_that(lying, request):
            raise TargetExists(
                f"{found.directory} lies there, of an earlier TPM of VM {found.vm_name!r}: libvirt would use it",
                vm=found.vm_name,
                path=found.directory,
                hint=f"`{command_line('vmkeep tpm remove', found.vm_name)}` deletes what of it is kept as a version, "
                "and says what is not; move that away. Then run the command again.",
            )
    except BaseException:
        let_go(plan, found)
        raise
    return found


def _is_that(lying: Orphan, request: AddTpm) -> bool:
    """Return whether the state that lies there is the one that the TPM is to have."""
    file = FILES[request.tpm_version]
    wanted = None if request.version is None else request.version.sha256
    return wanted is not None and any(each.name == file and each.sha256 == wanted for each in lying.files)


def let_go(plan: Plan, found: TpmFound) -> None:
    """Let go of the VM."""
    plan.services.on_host(plan.operation, LetTpmGo(plan.operation, found.directory))


def plan_secret(plan: Plan, request: AddTpm) -> bool:
    """Tell whether libvirt lacks the secret, which is then undefined again by an undo."""
    if not request.brings_secret:
        return False
    task = PlanTpmSecret(plan.operation, request.secret_point, request.secret, request.secret_pin)
    return plan.services.on_host(plan.operation, task)


def begin() -> None:
    """From here on something may lie on the host."""


def install_state(plan: Plan, request: AddTpm, found: TpmFound) -> None:
    """Put the version in place, whole or not at all."""
    if request.version is not None:
        file = FILES[request.tpm_version]
        task = InstallTpmState(plan.operation, found.vm_uuid, found.directory, file, request.version)
        plan.services.on_host(plan.operation, task)


def give_secret(plan: Plan, request: AddTpm) -> None:
    """Give libvirt the secret that opens the state, if it lacks it."""
    if request.brings_secret:
        task = GiveTpmSecret(plan.operation, request.secret_point, request.secret, request.secret_pin)
        plan.services.on_host(plan.operation, task)


def withdraw(plan: Plan, request: AddTpm, found: TpmFound, *, lacking: bool) -> None:
    """Undo ``put_in``, ``give_secret`` and ``install_state``, as far as they were done."""
    plan.services.on_host(plan.operation, TakeTpmOut(plan.operation, found.vm_uuid, element_of(request)))
    if lacking:
        task = TakeTpmSecretBack(plan.operation, request.secret_point, request.secret, request.secret_pin)
        plan.services.on_host(plan.operation, task)
    if request.version is not None:
        plan.services.on_host(plan.operation, WithdrawTpmState(plan.operation, found.directory))


def note_added(plan: Plan, request: AddTpm, found: TpmFound) -> dict[str, str | None]:
    """Let what lies there count as meant, a blank TPM as well; return what counted before."""
    plan.services.catalog.see_vm(found.vm_uuid, found.vm_name)
    placed = NOTHING if request.version is None else request.version.sha256
    return place_states(plan, found.vm_uuid, {"tpm": placed})


def note_returned(plan: Plan, request: AddTpm, found: TpmFound) -> None:
    """End what an earlier removal left to be deleted of what is needed again, and the term of the TPM's versions.

    The VM has its TPM: what keeps this from being noted is told, and takes nothing back.
    """
    services, vm_uuid = plan.services, found.vm_uuid
    catalog = services.catalog
    try:
        supersede_tombstones(catalog, services.host, vm_uuid, {found.directory, request.secret} - {""})
        removal = last_removal(catalog, vm_uuid)
        if removal is not None:
            catalog.record_deletion(fact_of_return(services.host, removal, found.vm_name, now()))
            settle_pins_of_vm(services, vm_uuid)
    except VmkeepError as error:
        services.warn(f"that VM {found.vm_name!r} has a TPM again could not be noted: {error.message}")


def put_in(plan: Plan, request: AddTpm, found: TpmFound) -> None:
    """Define the VM with the device."""
    plan.services.on_host(plan.operation, PutTpmIn(plan.operation, found.vm_uuid, element_of(request)))


def element_of(request: AddTpm) -> str:
    """Return the device that a VM is given."""
    return tpm_element(request.model, request.tpm_version, request.secret, like=request.like)
