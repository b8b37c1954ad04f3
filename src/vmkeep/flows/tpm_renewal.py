"""The steps that `tpm reset` and `tpm rekey` share: a new key for a VM's TPM, and the old state put away.

The key is in an envelope before libvirt has it, and libvirt has it before the definition names it. Of the state nothing
goes that is not a version with its own key.
"""

from __future__ import annotations

import uuid
from functools import partial

from vmkeep.commandline import command_line
from vmkeep.custody.states import SecretSource
from vmkeep.definition.tpmdevice import with_secret
from vmkeep.errors import InvalidRequest, SecretMissing, TargetExists
from vmkeep.flows.catch_up import catch_up_on_vm
from vmkeep.flows.plan import Plan
from vmkeep.flows.remove_tpm import delete_state
from vmkeep.flows.secret_holders import holder_for, secret_holders
from vmkeep.flows.settle_pins import KEY, settle_pins
from vmkeep.host.tasks.survey import FindVm
from vmkeep.host.tasks.tpms import (
    GiveTpmSecret,
    HoldForTpm,
    LetTpmGo,
    MakeTpmKey,
    PutTpmIn,
    TakeTpmOut,
    TakeTpmSecretBack,
    TpmFound,
    TpmRemainsFound,
    TpmStateDeleted,
    WithdrawTpmState,
)
from vmkeep.repository import Repository


def hold_with_tpm(plan: Plan, vm: str) -> TpmFound:
    """Hold the VM, and tell of its TPM. Raises InvalidRequest for a VM without one; then it is not held."""
    services, operation = plan.services, plan.operation
    found = services.on_host(operation, HoldForTpm(operation, services.host.ask(FindVm(vm))))
    if not found.element:
        services.on_host(operation, LetTpmGo(operation))
        raise InvalidRequest(
            f"VM {found.vm_name!r} has no TPM",
            vm=found.vm_name,
            hint=f"`{command_line('vmkeep tpm add', found.vm_name, options='--encrypt')}` gives it one with a key.",
        )
    return found


def key_of_operation(operation: str) -> str:
    """Return the UUID of the secret that an operation makes: an attempt that was killed may have made it already."""
    return str(uuid.uuid5(uuid.UUID(hex=operation), "the secret of a TPM"))


def make_key(plan: Plan, found: TpmFound, *, wanted: bool) -> str:
    """Make a new secret, in an envelope that is kept and was read back; return its UUID, empty when none is wanted."""
    if not wanted:
        return ""
    key = key_of_operation(plan.operation)
    seal_key(plan, found.vm_uuid, key)
    return key


def seal_key(plan: Plan, vm_uuid: str, key: str, vm: str = "") -> None:
    """Draw a value for a secret of this UUID, and keep it in an envelope, unless that was done.

    ``vm`` is the name of a VM that is to be defined, empty for one that is there.
    """
    services = plan.services
    if vm:
        services.catalog.see_vm(vm_uuid, vm)
    else:
        catch_up_on_vm(services, vm_uuid)
    if key_source(plan, vm_uuid, key) is None:
        sealed = services.on_host(plan.operation, MakeTpmKey(plan.operation, vm_uuid, key, vm))
        rule = services.keep_state_versions()
        services.with_repository(
            lambda repository: settle_pins(services.catalog, repository, vm_uuid, rule, sealed=(sealed,))
        )


def key_source(plan: Plan, vm_uuid: str, key: str) -> SecretSource | None:
    """Return where the value of a secret is; None for nowhere."""
    holder = holder_for(secret_holders(plan.services.catalog, vm_uuid), None, key)
    return None if holder is None else SecretSource(key, holder.point, holder.pin)


def required_key(plan: Plan, vm_uuid: str, vm: str, key: str) -> SecretSource:
    """Return where the value of a secret is. Raises SecretMissing."""
    source = key_source(plan, vm_uuid, key)
    if source is None:
        raise SecretMissing(
            f"the new secret {key} for the TPM of VM {vm!r} is in no envelope any more",
            vm=vm,
            hint="Nothing was lost. Run the command again.",
        )
    return source


def drop_key(plan: Plan, vm_uuid: str, key: str) -> None:
    """Undo ``seal_key`` and ``give_key``: no state was given this secret that is in use."""
    source = key_source(plan, vm_uuid, key) if key else None
    if source is None:
        return
    services = plan.services
    services.on_host(plan.operation, TakeTpmSecretBack(plan.operation, source.point, key, source.pin))
    for pin in services.catalog.pins_of_vm(vm_uuid):
        if pin.why == KEY and not pin.versions and any(secret.uuid == key for secret in pin.secrets):
            services.with_repository(partial(_delete_pin, pin.id))
            services.catalog.forget_pin(pin.id)


def _delete_pin(pin_id: str, repository: Repository) -> None:
    repository.pins.delete(pin_id)


def give_key(plan: Plan, found: TpmFound, key: str) -> None:
    """Give libvirt the new secret."""
    if key:
        source = required_key(plan, found.vm_uuid, found.vm_name, key)
        plan.services.on_host(plan.operation, GiveTpmSecret(plan.operation, source.point, key, source.pin))


def clear_place(plan: Plan, found: TpmFound, remains: TpmRemainsFound) -> TpmStateDeleted:
    """Delete the old state, all of it: what stays would be taken for the new one's. Raises TargetExists."""
    deleted = delete_state(plan, found, remains)
    if deleted.left:
        raise TargetExists(
            f"not all that lies in {found.directory} is kept as a version: {'; '.join(deleted.left)}",
            vm=found.vm_name,
            path=found.directory,
            hint="Move that away: a new TPM would find it there. Then run the command again.",
        )
    return deleted


def begin() -> None:
    """From here on there may be something of the new TPM on the host."""


def withdraw(plan: Plan, found: TpmFound, key: str) -> None:
    """Undo ``put_in`` and ``install_state``."""
    plan.services.on_host(plan.operation, TakeTpmOut(plan.operation, found.vm_uuid, with_secret(found.element, key)))
    plan.services.on_host(plan.operation, WithdrawTpmState(plan.operation, found.directory))


def put_in(plan: Plan, found: TpmFound, key: str) -> None:
    """Define the VM with the same device and the new secret."""
    element = with_secret(found.element, key)
    plan.services.on_host(plan.operation, PutTpmIn(plan.operation, found.vm_uuid, element, found.place))
