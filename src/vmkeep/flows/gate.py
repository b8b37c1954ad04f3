"""What the host's gate goes by, kept in step with the catalogue; and state that is put in place on purpose."""

from __future__ import annotations

from collections.abc import Mapping

from vmkeep.catalog import Catalog
from vmkeep.commandline import command_line
from vmkeep.custody.gate import GatePolicy, gated_state
from vmkeep.custody.standing import NOTHING
from vmkeep.errors import InvalidRequest, VmkeepError
from vmkeep.flows.plan import Plan
from vmkeep.flows.services import Services
from vmkeep.flows.vm_states import KINDS, StandingState, grounds_of, look_at_standings
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.gate import (
    GatedVm,
    GateStatus,
    HasGate,
    HookInstalled,
    InstallHook,
    LetStart,
    LookAtGate,
    RemoveHook,
    RenewGate,
    SetGatePolicy,
)
from vmkeep.host.tasks.survey import FindVm, Progress

_PASS_SECONDS = 600.0


def install_hook(catalog: Catalog, host: Host, *, refuse_unsure: bool | None) -> HookInstalled:
    """Make the gate of a host, for all VMs that the catalogue knows."""
    return host.ask(
        InstallHook(
            tuple(gated_vm(catalog, vm.uuid) for vm in catalog.vms() if vm.forgotten_until is None), refuse_unsure
        )
    )


def remove_hook(host: Host) -> bool:
    """Take the gate of a host away; return whether there was one."""
    return host.ask(RemoveHook())


def look_at_gate(host: Host) -> GateStatus:
    """Return how the gate of a host stands."""
    return host.ask(LookAtGate())


def set_gate_policy(host: Host, vm: str, policy: GatePolicy) -> None:
    """Say what the gate does about a VM, given by name or UUID. Raises VmNotFound; HostFileMissing without a gate."""
    host.ask(SetGatePolicy(host.ask(FindVm(vm)), policy))


def let_start(host: Host, vm: str) -> float:
    """Let a VM start once as it is; return for how many seconds. Raises as ``set_gate_policy``."""
    host.ask(LetStart(host.ask(FindVm(vm)), _PASS_SECONDS))
    return _PASS_SECONDS


def gated_vm(catalog: Catalog, vm_uuid: str) -> GatedVm:
    """Return what the gate goes by for a VM."""
    grounds = grounds_of(catalog, vm_uuid)
    states = (gated_state(kind, grounds) for kind in KINDS)
    return GatedVm(vm_uuid, tuple(state for state in states if state is not None))


def accept_states(catalog: Catalog, host: Host, vm: str, kind: str | None = None) -> tuple[StandingState, ...]:
    """Let what lies on the host now count as put there on purpose; return what was in danger and does so now.

    ``kind`` limits it to one. Nothing that is current or has changed needs it. Raises VmNotFound.
    """
    standings = look_at_standings(catalog, host, (vm,)).states
    accepted = tuple(state for state in standings if state.in_danger and kind in (None, state.found.kind))
    for state in accepted:
        if state.judged.from_backup:
            raise InvalidRequest(
                f"the TPM state of VM {state.vm!r} is gone, and swtpm would put the one before the last write in place",
                vm=state.vm,
                path=state.found.path,
                hint=f"Put a kept one back: `{command_line('vmkeep state restore', state.vm)}`; or move the .bak away.",
            )
    if accepted:
        uuid = accepted[0].vm_uuid
        catalog.place_states(uuid, {state.found.kind: state.found.sha256 or NOTHING for state in accepted})
        tell_gate(catalog, host, uuid)
    return accepted


def tell_gate(catalog: Catalog, host: Host, vm_uuid: str) -> None:
    """Let the gate go by what the catalogue says now of a VM, if there is one. Raises what keeps it from that."""
    if host.ask(HasGate()):
        host.ask(RenewGate(gated_vm(catalog, vm_uuid)))


def renew_gate(services: Services, vm_uuid: str) -> None:
    """Let the gate go by what the catalogue says now of a VM. What keeps it from that is told and fails nothing.

    A gate that is behind takes a version for a change that nobody has kept yet, and lets the VM start.
    """
    try:
        tell_gate(services.catalog, services.host, vm_uuid)
    except VmkeepError as error:
        told = f"warning: what the gate goes by for VM {vm_uuid} could not be written: {error.message}"
        services.watch(Progress("gate", note=told))


def place_states(plan: Plan, vm_uuid: str, states: Mapping[str, str]) -> dict[str, str | None]:
    """Record which state is put in place of a VM on purpose, by kind; return what was recorded before.

    The gate hears of it before the VM can be started.
    """
    before = plan.services.catalog.placed_states(vm_uuid)
    _place(plan, vm_uuid, states)
    return {kind: before.get(kind) for kind in states}


def take_states_back(plan: Plan, vm_uuid: str, before: Mapping[str, str | None]) -> None:
    """Undo ``place_states``."""
    _place(plan, vm_uuid, before)


def _place(plan: Plan, vm_uuid: str, states: Mapping[str, str | None]) -> None:
    plan.services.catalog.place_states(vm_uuid, states)
    renew_gate(plan.services, vm_uuid)
