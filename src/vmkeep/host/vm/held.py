"""A VM that an operation holds from one task to the next."""

from __future__ import annotations

from vmkeep.errors import VmNotFound
from vmkeep.host.operation import Operation
from vmkeep.host.records.desk import HeldVm
from vmkeep.host.records.lock import lock_vm
from vmkeep.host.records.unended import refuse_while_pending
from vmkeep.host.vm.fitness import require_off
from vmkeep.hypervisor import Domain, Hypervisor


def domain_of(hypervisor: Hypervisor, vm_uuid: str) -> Domain:
    """Return the VM. Raises VmNotFound for one that is gone."""
    domain = hypervisor.find_uuid(vm_uuid)
    if domain is None:
        raise VmNotFound(f"there is no VM {vm_uuid} any more", vm=vm_uuid)
    return domain


def hold(operation: Operation, domain: Domain, doing: str) -> None:
    """Take the VM's lock unless the operation has it: a flow that goes on in another process takes it again.

    ``doing`` is what others are told who meet the lock.
    """
    if operation.holder is None:
        lock = lock_vm(
            operation.settings.locks_dir, domain.uuid, domain.name, f"{doing} {operation.id}", operation.stop
        )
        operation.holder = HeldVm(lock)


def hold_off(operation: Operation, domain: Domain, doing: str) -> None:
    """Hold a VM that is off and has no restore that is not over; when this raises it is not held."""
    hold(operation, domain, doing)
    try:
        refuse_while_pending(operation.settings, domain.name, domain.uuid)
        require_off(domain)
    except BaseException:
        let_go(operation)
        raise


def let_go(operation: Operation) -> None:
    """Let go of the VM that the operation holds, if it does."""
    if operation.holder is not None:
        operation.holder.release()
        operation.holder = None
