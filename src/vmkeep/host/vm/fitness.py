"""What a VM does that forbids an operation: it runs, it has a job, its agent does not answer."""

from __future__ import annotations

from collections.abc import Collection

from vmkeep.commandline import command_line
from vmkeep.errors import AgentUnavailable, VmBusy, VmRunning
from vmkeep.host.vm.astray import refuse_lost
from vmkeep.hypervisor import Domain, RunState


def require_off(domain: Domain) -> None:
    """Raise VmRunning unless the VM is off and has no saved memory, WritesAstray when its QEMU runs all the same."""
    state = domain.state()
    if state.crashed:
        raise VmRunning(
            f"the guest of VM {domain.name!r} crashed, and QEMU still has its disks: it is not off",
            vm=domain.name,
            hint=f"Back it up as it stands if you like; `{command_line('virsh destroy', domain.name)}` ends its QEMU.",
        )
    if state.run is not RunState.OFF:
        raise VmRunning(
            f"VM {domain.name!r} is not off",
            vm=domain.name,
            hint=f"Shut the VM down (`{command_line('virsh shutdown', domain.name)}`) and run the command again.",
        )
    refuse_lost(domain)
    if domain.has_saved_memory():
        raise VmRunning(
            f"VM {domain.name!r} has a saved memory image, which belongs to its present disks",
            vm=domain.name,
            hint=f"Start the VM and shut it down, or drop the memory: "
            f"`{command_line('virsh managedsave-remove', domain.name)}`.",
        )


def refuse_in_transition(run: RunState, vm: str) -> None:
    """Raise VmBusy while a VM is neither off nor standing: what it will be is not known yet."""
    if run is RunState.OTHER:
        raise VmBusy(f"VM {vm!r} is being shut down or started", vm=vm)


def refuse_beside_a_job(domain: Domain) -> None:
    """Refuse while somebody else's job holds the VM: libvirt would let the suspended guest wait 30 s for it."""
    if domain.has_job():
        if domain.has_stuck_job():
            raise VmBusy(
                f"libvirt keeps a job of VM {domain.name!r} that is over: libvirtd was killed while a backup began",
                vm=domain.name,
                hint=stuck_job_remedy(domain.name),
            )
        raise VmBusy(
            f"libvirt is at another operation on VM {domain.name!r} (a backup, migration, save or dump)",
            vm=domain.name,
            hint="Wait for it to end (`virsh domjobinfo` shows it) and run the command again.",
        )


def stuck_job_remedy(vm: str) -> str:
    """Return what ends a job that libvirtd keeps for ever, for a person to do."""
    stop = command_line("virsh shutdown", vm)
    return f"Shut the VM down (`{stop}`), then restart libvirtd (`systemctl restart libvirtd`): nothing else ends it."


def refuse_jobs(domain: Domain, targets: Collection[str] | None = None) -> None:
    """Refuse beside any job, also one on a single disk, of these or of all: libvirt begins no other on that disk."""
    refuse_beside_a_job(domain)
    busy = [target for target in domain.block_jobs() if targets is None or target in targets]
    if busy:
        raise VmBusy(
            f"a block job (copy, commit or pull) works on disk {', '.join(busy)} of VM {domain.name!r}",
            vm=domain.name,
            disk=busy[0],
            hint=f"Wait for it to end (`{command_line('virsh blockjob', domain.name, busy[0])}` shows it), or "
            "abort it.",
        )


def require_agent(domain: Domain, *, running: bool) -> None:
    """Ask the agent before anything is begun: afterwards its silence means that a frozen guest must be waited for."""
    if not running:
        raise AgentUnavailable(
            "the VM is paused, so its guest agent cannot freeze anything",
            vm=domain.name,
            hint="Resume the VM, or leave out --quiesce: the disks of a paused VM keep still anyway.",
        )
    domain.require_agent()
