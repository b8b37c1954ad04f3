"""Let a VM that is gone for good go: its state versions are kept for a term, and then no longer.

Its points stay, with what they hold. No flow of DBOS: done again it is the same as once.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from vmkeep.catalog import Catalog
from vmkeep.commandline import command_line
from vmkeep.errors import TargetExists, VmNotFound
from vmkeep.flows.installation import Premises
from vmkeep.flows.settle_pins import settle_pins
from vmkeep.flows.vm_states import the_vm_named
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.gate import GatedVm, HasGate, RenewGate
from vmkeep.host.tasks.survey import FindVm
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class VmForgotten:
    """What stays of a VM: ``points`` for good, ``versions`` of its state that nothing else holds ``until`` a time."""

    vm: str
    vm_uuid: str
    until: str
    points: int
    versions: int


def forget_vm(premises: Premises, host: Host, vm: str, days: int) -> VmForgotten:
    """Keep what only custody has of a VM for so many days more; ``vm`` is a name that it had, or its UUID.

    Raises VmNotFound for a VM that was never seen, InvalidRequest for a name that several had, and TargetExists for one
    that the host has.
    """
    catalog = premises.catalog
    uuid = the_vm_named(catalog, vm)
    _require_gone(host, uuid, vm)
    until = (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="microseconds")
    for snapshot in catalog.snapshots_of_vm(uuid):
        catalog.forget_snapshot(snapshot.id)  # libvirt's own record of it went with the VM
    catalog.forget_vm(uuid, until)
    catalog.clear_alerts(uuid)
    settle_pins(catalog, premises.repository, uuid, premises.keep_state_versions)
    if host.ask(HasGate()):
        host.ask(RenewGate(GatedVm(uuid, ())))
    known = catalog.vm(uuid)
    kept = {version for pin in catalog.pins_of_vm(uuid) if pin.until == until for version in pin.versions}
    name = vm if known is None else known.name
    return VmForgotten(name, uuid, until, len(catalog.outlines_of_vm(uuid)), len(kept))


def settle_forgotten(premises: Premises) -> None:
    """Let the state versions go whose term is over: of VMs that were forgotten, and of TPMs that were removed."""
    now = datetime.now(UTC)
    catalog = premises.catalog
    terms = {vm.uuid: vm.forgotten_until for vm in catalog.vms() if vm.forgotten_until is not None}
    ended = [(each.vm_uuid, each.kept_until) for each in catalog.deletions() if each.kept_until is not None]
    for vm_uuid in {uuid for uuid, until in (*terms.items(), *ended) if datetime.fromisoformat(until) < now}:
        if _has_lapsed(catalog, vm_uuid, now):
            settle_pins(catalog, premises.repository, vm_uuid, premises.keep_state_versions)


def _has_lapsed(catalog: Catalog, vm_uuid: str, now: datetime) -> bool:
    terms = (pin.until for pin in catalog.pins_of_vm(vm_uuid))
    return any(until is not None and datetime.fromisoformat(until) < now for until in terms)


def _require_gone(host: Host, uuid: str, vm: str) -> None:
    try:
        host.ask(FindVm(uuid))
    except VmNotFound:
        return
    raise TargetExists(
        f"VM {vm!r} is there: the host has it",
        vm=vm,
        hint=f"`{command_line('virsh undefine', vm, options='--nvram --tpm')}` removes it; what vmkeep keeps stays.",
    )
