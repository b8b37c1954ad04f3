"""A VM's checkpoints and snapshots on the machine at hand: read into values, and changed under the VM's lock.

It needs libvirt only, so that its commands start fast: the repository, and what reads disks, are not imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmkeep.config import Settings, prepare_home
from vmkeep.errors import VmOff
from vmkeep.host.records.lock import lock_vm
from vmkeep.host.tasks.moments import (
    CreateCheckpoint,
    DeleteMoments,
    ImportMoments,
    MomentChange,
    MomentsChanged,
    RedefineMoment,
    RepairSnapshots,
    VmMoments,
)
from vmkeep.host.vm.fitness import refuse_in_transition
from vmkeep.host.vm.moments import read_moments
from vmkeep.hypervisor import Domain, DomainMoments, Hypervisor, RunState
from vmkeep.moments import MomentKind, redefinable

WITH_CHECKPOINTS: Final = "while checkpoint exists"
"""What libvirt 9.0 says to a record of a snapshot that it is given while the VM is off and has checkpoints."""


class LocalMoments:
    """The part of the Host protocol that is about moments."""

    def __init__(self, settings: Settings, connected: Callable[[], Hypervisor]) -> None:
        self._settings = settings
        self._connected = connected

    def moments(self, kind: MomentKind, vm: str, *, secure: bool = False, domain: bool = False) -> VmMoments:
        """Return all of a kind. ``domain``: with the VM's definition in checkpoints; ``secure``: with passwords."""
        return read_moments(DomainMoments(self._connected().domain(vm), kind), secure=secure, domain=domain)

    def moment_xml(
        self, kind: MomentKind, vm: str, name: str, *, secure: bool = False, domain: bool = True, sizes: bool = False
    ) -> str:
        """Return one as libvirt writes it. ``sizes``: with the bytes dirtied since; raises VmOff while it is off."""
        found = self._connected().domain(vm)
        if sizes and found.state().run is RunState.OFF:
            raise VmOff(
                f"VM {found.name!r} is off, and only QEMU knows how much its disks changed since {kind} {name!r}",
                vm=found.name,
            )
        return DomainMoments(found, kind).definition(name, secure=secure, domain=domain, sizes=sizes)

    def moment_definitions(self, kind: MomentKind, vm: str, *, secure: bool = False) -> dict[str, str]:
        """Return all of a kind by name, as libvirt writes them and takes them again; ``secure``: with passwords."""
        definitions = DomainMoments(self._connected().domain(vm), kind).definitions(secure=secure)
        return {name: redefinable(xml) for name, xml in definitions.items()}

    def change_moments(self, order: MomentChange, *, stop: Callable[[], None] = lambda: None) -> MomentsChanged:
        """Carry out an order. Raises VmBusy while another operation of vmkeep's works on the VM, RestorePending while
        a restore of it in place is not finished.

        ``stop`` is called between steps and raises to end early: what was redefined is taken back then.
        """
        hypervisor = self._connected()
        domain = hypervisor.domain(order.vm)
        if isinstance(order, CreateCheckpoint) and order.dry:
            return self._carry_out(order, domain, hypervisor, stop)
        prepare_home(self._settings)
        doing = f"a change of {order.kind}s"
        with lock_vm(self._settings.locks_dir, domain.uuid, domain.name, doing, stop):
            self._refuse_while_restored(domain)
            refuse_in_transition(domain.state().run, domain.name)
            self._refuse_astray(order, domain, hypervisor)
            return self._carry_out(order, domain, hypervisor, stop)

    def _refuse_astray(self, order: MomentChange, domain: Domain, hypervisor: Hypervisor) -> None:
        """Raise WritesAstray before images or bitmaps are changed of a VM that is on others than libvirt says."""
        changes = isinstance(order, CreateCheckpoint) or (isinstance(order, DeleteMoments) and not order.metadata_only)
        if not changes:
            return
        from vmkeep.host.vm.astray import refuse_astray, refuse_lost

        if domain.state().run is RunState.OFF:
            refuse_lost(domain)
        else:
            from vmkeep.definition import parse_definition
            from vmkeep.host.vm.definition import with_volumes_found

            definition = with_volumes_found(parse_definition(domain.definition_xml()), hypervisor)
            refuse_astray(domain, definition, hypervisor, self._settings)

    def _refuse_while_restored(self, domain: Domain) -> None:
        """Raise RestorePending while an unfinished restore in place has the VM's disks and checkpoints in its hands."""
        if any(self._settings.restores_dir.glob("*.json")):
            from vmkeep.host.records.restore import refuse_while_pending

            refuse_while_pending(self._settings, domain.name, domain.uuid)

    def _carry_out(
        self, order: MomentChange, domain: Domain, hypervisor: Hypervisor, stop: Callable[[], None]
    ) -> MomentsChanged:
        # Each brings along only what it needs.
        match order:
            case CreateCheckpoint():
                from vmkeep.host.moments.creation import create_checkpoint

                return create_checkpoint(domain, order)
            case DeleteMoments():
                from vmkeep.host.moments.deletion import delete_moments

                return delete_moments(domain, order, hypervisor, self._settings, stop)
            case RedefineMoment():
                from vmkeep.host.moments.replay import redefine_moment

                return redefine_moment(domain, order, hypervisor, stop)
            case ImportMoments():
                from vmkeep.host.moments.replay import import_moments

                return import_moments(domain, order, hypervisor, stop)
            case RepairSnapshots():
                from vmkeep.host.moments.snapshot_repair import repair_snapshots

                return repair_snapshots(domain, order, hypervisor, stop)
        raise AssertionError(f"not a change of moments: {order}")
