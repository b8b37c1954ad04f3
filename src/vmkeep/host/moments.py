"""A VM's checkpoints and snapshots on the machine at hand: read into values, and changed under the VM's lock.

It needs libvirt only, so that its commands start fast: the repository, and what reads disks, are not imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmkeep.config import Settings, prepare_home
from vmkeep.errors import RelationsTorn, VmBusy, VmkeepError, VmOff
from vmkeep.host.lock import lock_vm
from vmkeep.host.momentorders import (
    CreateCheckpoint,
    DeleteMoments,
    ImportMoments,
    MomentChange,
    MomentsChanged,
    RedefineMoment,
    RepairSnapshots,
    VmMoments,
    moment_errors,
    named,
)
from vmkeep.hypervisor import Domain, DomainMoments, Hypervisor, RunState
from vmkeep.logs import get_logger
from vmkeep.moments import MomentKind, parse_moment, redefinable

_log = get_logger(__name__)
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
            if domain.state().run is RunState.OTHER:
                raise VmBusy(f"VM {domain.name!r} is being shut down or started", vm=domain.name)
            self._refuse_astray(order, domain, hypervisor)
            return self._carry_out(order, domain, hypervisor, stop)

    def _refuse_astray(self, order: MomentChange, domain: Domain, hypervisor: Hypervisor) -> None:
        """Raise WritesAstray before images or bitmaps are changed of a VM that is on others than libvirt says."""
        changes = isinstance(order, CreateCheckpoint) or (isinstance(order, DeleteMoments) and not order.metadata_only)
        if not changes:
            return
        from vmkeep.host.astray import refuse_astray, refuse_lost

        if domain.state().run is RunState.OFF:
            refuse_lost(domain)
        else:
            from vmkeep.definition import parse_definition
            from vmkeep.host.preparation import with_volumes_found

            definition = with_volumes_found(parse_definition(domain.definition_xml()), hypervisor)
            refuse_astray(domain, definition, hypervisor, self._settings)

    def _refuse_while_restored(self, domain: Domain) -> None:
        """Raise RestorePending while an unfinished restore in place has the VM's disks and checkpoints in its hands."""
        if any(self._settings.restores_dir.glob("*.json")):
            from vmkeep.host.journal import refuse_while_pending

            refuse_while_pending(self._settings, domain.name, domain.uuid)

    def _carry_out(
        self, order: MomentChange, domain: Domain, hypervisor: Hypervisor, stop: Callable[[], None]
    ) -> MomentsChanged:
        # Each brings along only what it needs.
        match order:
            case CreateCheckpoint():
                from vmkeep.host.checkpointcreation import create_checkpoint

                return create_checkpoint(domain, order)
            case DeleteMoments():
                from vmkeep.host.momentdeletion import delete_moments

                return delete_moments(domain, order, hypervisor, self._settings, stop)
            case RedefineMoment():
                from vmkeep.host.momentreplay import redefine_moment

                return redefine_moment(domain, order, hypervisor, stop)
            case ImportMoments():
                from vmkeep.host.momentreplay import import_moments

                return import_moments(domain, order, hypervisor, stop)
            case RepairSnapshots():
                from vmkeep.host.snapshot_repair import repair_snapshots

                return repair_snapshots(domain, order, hypervisor, stop)


def read_moments(register: DomainMoments, *, secure: bool = False, domain: bool = False) -> VmMoments:
    """Return what libvirt lists, as values. Raises MomentInvalid for a document that cannot be read."""
    definitions = register.definitions(secure=secure, domain=domain)
    read = []
    for name, xml in definitions.items():
        with moment_errors(register.kind, register.domain.name, name=name, hint=_UNREADABLE):
            read.append(parse_moment(register.kind, redefinable(xml)))
    return VmMoments(
        vm=register.domain.name,
        uuid=register.domain.uuid,
        kind=register.kind,
        running=register.domain.state().run is not RunState.OFF,
        moments=tuple(read),
        current=register.current(),
    )


def read_for_change(register: DomainMoments, *, secure: bool = False, domain: bool = False) -> VmMoments:
    """As ``read_moments``, before something is changed. Raises RelationsTorn when libvirtd would not survive that.

    When a deletion of a subtree by libvirt itself fails half-way, links to what is gone are left in the memory of
    libvirtd 9.0 until it is restarted, and the next change follows them.
    """
    found = read_moments(register, secure=secure, domain=domain)
    if _torn(found, register):
        # Somebody may have changed something between the lists.
        found = read_moments(register, secure=secure, domain=domain)
        if torn := _torn(found, register):
            raise RelationsTorn(
                f"libvirtd's links between the {register.kind}s of VM {found.vm!r} lead to some that are gone (seen at "
                f"{named(sorted(torn))}): somebody's deletion of several at once failed half-way, and another change "
                "would end libvirtd",
                vm=found.vm,
            )
    return found


def refuse_torn_checkpoints(domain: Domain) -> None:
    """Raise RelationsTorn when libvirtd would not survive a change to the checkpoints of a VM.

    What else stands in the way of reading them is left to those who need them.
    """
    register = DomainMoments(domain, MomentKind.CHECKPOINT)
    try:
        read_for_change(register)
    except RelationsTorn:
        raise
    except VmkeepError as error:
        _log.info("relations not looked at", vm=domain.name, error=error.message)


def _torn(found: VmMoments, register: DomainMoments) -> set[str]:
    """Return the names that libvirtd has in another place than their definitions say."""
    tree = found.tree()
    in_cycles = {name for cycle in tree.broken.cycles for name in cycle}  # which of them is the root is left to chance
    names = {moment.name or "" for moment in found.moments} - in_cycles
    roots, leaves = register.linked()
    ours = {moment.name for moment in tree.children()}
    return {name for name in names if (name in roots) != (name in ours) or (name in leaves) == tree.has_children(name)}


_UNREADABLE = "libvirt wrote this definition, and vmkeep cannot read it; virsh can. Please report it."
