"""The VM that a clone is made of: held while it is off, looked at, and proved to have stayed as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from vmkeep.commandline import command_line, shell_word
from vmkeep.definition import Definition
from vmkeep.errors import InvalidRequest, VmBusy, VmRunning, VmStarted
from vmkeep.host.operation import Operation
from vmkeep.host.records.lock import lock_vm
from vmkeep.host.records.unended import refuse_while_pending
from vmkeep.host.vm.definition import read_definition, with_volumes_found
from vmkeep.host.vm.disks import disk_sizes, plannable_disks, refusal
from vmkeep.host.vm.filetraits import Traits, traits_of
from vmkeep.host.vm.fitness import require_off
from vmkeep.host.vm.images import image_chains, writer_in_chain
from vmkeep.host.vm.rights import refuse_without_rights
from vmkeep.host.vm.states import StateSource, state_sources
from vmkeep.host.vm.unseen import refuse_unseen_images
from vmkeep.hypervisor import Domain, RunState
from vmkeep.locks import FileLock
from vmkeep.planning import ExclusionReason, PointRequest, Refused, plan_point
from vmkeep.planning.bitmaps import Chain
from vmkeep.statefiles.location import StateRoots
from vmkeep.values import dataclass


class HeldVms:
    """A VM that an operation holds, and the name of another one that it makes."""

    def __init__(self, *locks: FileLock) -> None:
        self._locks = locks

    def release(self) -> None:
        """Let go of both."""
        for lock in self._locks:
            lock.release()

    def release_guest(self) -> None:
        """Nothing is done to the guest."""


def hold(operation: Operation, domain: Domain, name: str, doing: str) -> None:
    """Take the lock of a VM, and that of a name which it or another VM is to get. Raises VmBusy."""
    directory = operation.settings.locks_dir
    of_vm = lock_vm(directory, domain.uuid, domain.name, doing, operation.stop)
    try:
        of_name = lock_vm(directory, _lock_of_name(name), name, doing, operation.stop)
    except BaseException:
        of_vm.release()
        raise
    operation.holder = HeldVms(of_vm, of_name)


def let_go(operation: Operation) -> None:
    """Let go of what the operation holds."""
    if operation.holder is not None:
        operation.holder.release()
        operation.holder = None


def _lock_of_name(name: str) -> str:
    # A name may hold anything, and be longer than a file's.
    return f"name-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True)
class Original:
    """A VM that is off. ``xml`` is its definition with passwords; ``chains`` are the images of its disks by target.

    ``left`` are the targets of disks that are not there, which the VM starts without.
    """

    domain: Domain
    xml: str
    definition: Definition
    chains: Mapping[str, Chain]
    states: tuple[StateSource, ...]
    left: tuple[str, ...]
    disks: tuple[str, ...]
    uri: str

    @property
    def digest(self) -> str:
        """The SHA-256 of its definition."""
        return hashlib.sha256(self.xml.encode()).hexdigest()

    def traits(self) -> dict[str, Traits]:
        """Return what changes when anybody writes to its files; a device tells nothing but that it is there."""
        layers = [layer for chain in self.chains.values() for layer in chain]
        paths = [layer.path for layer in layers] + [layer.data_file for layer in layers if layer.data_file]
        return {path: traits_of(Path(path)) for path in (*paths, *(str(source.path) for source in self.states))}

    def require_off(self) -> None:
        """Raise VmStarted when it is not off any more."""
        if self.domain.state().run is not RunState.OFF:
            raise started(self.domain.name)


def started(vm: str) -> VmStarted:
    """Return the error of a VM that did not keep still while it was cloned."""
    return VmStarted(
        f"VM {vm!r} was started, or its files or its definition were changed, while it was cloned",
        vm=vm,
        hint="Nothing of the clone stays. Shut the VM down and run the command again.",
    )


def require_at_rest(domain: Domain, name: str) -> None:
    """Raise VmRunning for a VM that is not off, with the way to a second VM of one that runs."""
    try:
        require_off(domain)
    except VmRunning as error:
        backup = command_line("vmkeep backup", domain.name)
        restore = command_line("vmkeep restore", f"{domain.name}@latest", options=f"--as {shell_word(name)}")
        error.hint = f"{error.hint} Or make a second VM of a point of it: `{backup}`, then `{restore}`."
        raise


def look_at(operation: Operation, domain: Domain) -> Original:
    """Return a VM that is off as it lies there. Raises what a point of it would raise, and VmBusy for an image that
    something has open for writing.
    """
    hypervisor, settings = operation.connected(), operation.settings
    refuse_while_pending(settings, domain.name, domain.uuid)
    refuse_without_rights(domain, hypervisor, settings)
    xml = domain.definition_xml(inactive=True, secure=True)
    definition = with_volumes_found(read_definition(xml, domain), hypervisor)
    refuse_unseen_images(domain, definition)
    chains = image_chains(definition)
    sizes = disk_sizes(domain, definition, chains)
    disks = plannable_disks(definition, sizes, settings, chains, hypervisor, running=False)
    outcome = plan_point(PointRequest(vm=domain.name, running=False, disks=disks))
    if isinstance(outcome, Refused):
        raise refusal(outcome, domain.name, excludable=False)
    for target, chain in chains.items():
        writer = writer_in_chain(chain)
        if writer is not None:
            raise VmBusy(
                f"disk {target} of VM {domain.name!r} is being written by {writer}, so it cannot be cloned now",
                vm=domain.name,
                disk=target,
            )
    left = [gone.target for gone in outcome.excluded if gone.reason is ExclusionReason.OPTIONAL_MISSING]
    return Original(
        domain,
        xml,
        definition,
        chains,
        state_sources(definition, StateRoots.of(hypervisor.uri)),
        tuple(left),
        tuple(disk.target for disk in outcome.disks),
        hypervisor.uri,
    )


def require_persistent(domain: Domain) -> None:
    """Raise InvalidRequest for a VM that libvirt forgets when it stops."""
    if not domain.is_persistent():
        raise InvalidRequest(
            f"VM {domain.name!r} has no definition that stays: libvirt forgets it when it stops",
            vm=domain.name,
            hint=f"Define it first: `{command_line('virsh dumpxml', domain.name)}` > FILE, then `virsh define FILE`.",
        )
