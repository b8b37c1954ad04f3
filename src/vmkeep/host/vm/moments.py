"""Checkpoints and snapshots of a VM as libvirt has them, read into values."""

from __future__ import annotations

from typing import Final

from vmkeep.definition import Definition, DefinitionError, parse_definition
from vmkeep.errors import InvalidRequest, RelationsTorn, VmkeepError
from vmkeep.host.tasks.moments import VmMoments, moment_errors, named
from vmkeep.hypervisor import Domain, DomainMoments, RunState
from vmkeep.logs import get_logger
from vmkeep.moments import MomentError, MomentKind, Snapshot, parse_moment, parse_snapshot, redefinable

_log = get_logger(__name__)
_UNREADABLE: Final = "libvirt wrote this definition, and vmkeep cannot read it; virsh can. Please report it."


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


def read_snapshot(xml: str, domain: Domain) -> tuple[Snapshot, Definition]:
    """Return a snapshot and the definition of its VM then. Raises InvalidRequest when either cannot be read."""
    try:
        snapshot = parse_snapshot(xml, redefine=True)
        if snapshot.domain is None:
            raise InvalidRequest(
                f"libvirt does not know the definition that VM {domain.name!r} had at the snapshot {snapshot.name!r}",
                vm=domain.name,
                hint="Without it nobody can tell which images hold its state.",
            )
        return snapshot, parse_definition(snapshot.domain)
    except (MomentError, DefinitionError) as error:
        raise InvalidRequest(f"a snapshot of VM {domain.name!r} cannot be read: {error}", vm=domain.name) from error
