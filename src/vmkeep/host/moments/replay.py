"""Making libvirt list moments: one that was edited or lost, or all of a file. All of it is done, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from vmkeep.commandline import command_line
from vmkeep.errors import MomentExists, MomentsForeign, VmBusy, VmkeepError, VmOff
from vmkeep.host.moments.reach import refuse_reaching_moments
from vmkeep.host.tasks.moments import ImportMoments, MomentsChanged, RedefineMoment, VmMoments, moment_errors, named
from vmkeep.host.vm.moments import read_for_change
from vmkeep.hypervisor import Domain, DomainMoments, Hypervisor
from vmkeep.moments import (
    AnyMoment,
    MomentKind,
    MomentTree,
    Snapshot,
    format_moment,
    name_order,
    parse_moment,
    redefinable,
    with_domain_kept,
)


class Replay:
    """Changes of libvirt's records of one VM, each with how it is taken back."""

    def __init__(self, register: DomainMoments, found: VmMoments, stop: Callable[[], None], *, validate: bool) -> None:
        self._register = register
        self._existing = {moment.name: moment for moment in found.moments}
        self._current = found.current
        self._stop = stop
        self._validate = validate
        self._undos: list[tuple[str, Callable[[], None]]] = []

    def redefine(self, moment: AnyMoment, xml: str | None = None, *, current: bool = False) -> None:
        """``xml`` is the moment's document where it shall be kept as it is."""
        name = moment.name or ""
        self._stop()
        existing = self._existing.get(name)
        if existing is not None:
            kept = with_domain_kept(moment, existing)
            xml = xml if kept == moment else None
            moment = kept
        if existing is None:
            undo = partial(self._register.forget, name)
        else:
            text = _document(existing)
            undo = partial(self._send, existing, text, current=name == self._current)
        # The current snapshot stays so when it is redefined.
        current = current or name == self._current
        self._send(moment, xml or _document(moment), current=current, validate=self._validate)
        self._undos.append((name, undo))

    def make_current(self, moment: AnyMoment) -> None:
        """Let libvirt call a snapshot that it lists the current one."""
        before = None if self._current is None else self._existing[self._current]
        self._send(moment, _document(moment), current=True)
        if before is not None:
            undo = partial(self._send, before, _document(before), current=True)
            self._undos.append((before.name or "", undo))

    def forget(self, name: str) -> None:
        self._stop()
        self._register.forget(name)

    def take_back(self, error: BaseException) -> None:
        """Undo everything, last first; what cannot be is noted on the error."""
        while self._undos:
            name, undo = self._undos.pop()
            try:
                undo()
            except VmkeepError as failure:
                error.add_note(f"{self._register.kind} {name!r} could not be taken back: {failure}")

    def _send(self, moment: AnyMoment, xml: str, *, current: bool = False, validate: bool = False) -> None:
        state = moment.state if isinstance(moment, Snapshot) else None
        self._register.redefine(moment.name or "", xml, state=state, current=current, validate=validate)


def redefine_moment(
    domain: Domain, order: RedefineMoment, hypervisor: Hypervisor, stop: Callable[[], None]
) -> MomentsChanged:
    """Redefine one moment, or rename or clone a snapshot.

    Raises MomentInvalid, and DefinitionReaches unless it is trusted, before libvirt is asked.
    """
    register = DomainMoments(domain, order.kind)
    with moment_errors(order.kind, domain.name):
        moment = parse_moment(order.kind, order.xml, validate=order.validate)
    name = moment.name or ""
    found = read_for_change(register, secure=True, domain=True)
    _refuse_validation_of_what_is_off(order, found)
    if not order.trusted:
        refuse_reaching_moments(hypervisor, domain, found, [(name, order.xml)])
    if order.was is not None and not _stands_as(found, order.was):
        raise VmBusy(
            f"{order.kind} {order.renamed or name!r} of VM {domain.name!r} was changed by somebody else meanwhile",
            vm=domain.name,
            hint="Look at it as it is now, and change that.",
        )
    tree = found.tree()
    with moment_errors(order.kind, domain.name, name=name):
        if order.renamed is not None:
            tree.insert(moment)
        elif order.kind is MomentKind.SNAPSHOT:
            tree.redefine(moment, current=order.current)
        else:
            tree.redefine(moment)
    replay = Replay(register, found, stop, validate=order.validate)
    try:
        replay.redefine(moment, order.xml, current=order.current and order.renamed is None)
        if order.renamed is not None:
            _finish_renaming(replay, order, found, moment)
    except BaseException as error:
        replay.take_back(error)
        raise
    return MomentsChanged(vm=domain.name, uuid=domain.uuid, names=(name,))


def _finish_renaming(replay: Replay, order: RedefineMoment, found: VmMoments, moment: AnyMoment) -> None:
    """Put the renamed snapshot into the place of the old one; virsh would hang its children from its parent."""
    if not order.clone:
        for child in found.moments:
            if child.parent_name == order.renamed:
                replay.redefine(replace(child, parent_name=moment.name))
    if order.current or (found.current == order.renamed and not order.clone):
        replay.make_current(moment)
    if not order.clone and order.renamed is not None:
        replay.forget(order.renamed)


def import_moments(
    domain: Domain, order: ImportMoments, hypervisor: Hypervisor, stop: Callable[[], None]
) -> MomentsChanged:
    """Make libvirt list the moments of a file, parents first. Raises before anything is changed where it can.

    Raises DefinitionReaches unless they are trusted, before libvirt sees anything of them.
    """
    bundle = order.bundle
    _refuse_foreign(domain, order)
    register = DomainMoments(domain, order.kind)
    found = read_for_change(register, secure=True, domain=True)
    _refuse_validation_of_what_is_off(order, found)
    held = {bundled.name: bundled for bundled in bundle.moments}
    equal = _equal_already(order, found)
    if not order.trusted:
        refuse_reaching_moments(hypervisor, domain, found, ((held[name].name, held[name].xml) for name in held))
    tree = _joined(found, (bundled.moment for bundled in bundle.moments), domain.name)
    ordered = [moment.name or "" for moment in tree.descendants() if moment.name in held]
    replay = Replay(register, found, stop, validate=order.validate)
    try:
        for name in ordered:
            # What is equal is redefined only so that it is validated.
            if name not in equal or order.validate:
                replay.redefine(held[name].moment, held[name].xml)
        # The VM's own disks stand below the snapshot that is current there, whatever the file says.
        if order.kind is MomentKind.SNAPSHOT and bundle.current is not None and found.current is None:
            replay.make_current(parse_moment(order.kind, redefinable(register.definition(bundle.current, secure=True))))
    except BaseException as error:
        replay.take_back(error)
        raise
    return MomentsChanged(
        vm=domain.name,
        uuid=domain.uuid,
        names=tuple(name for name in ordered if name not in equal),
        kept=tuple(name for name in ordered if name in equal),
    )


def _equal_already(order: ImportMoments, found: VmMoments) -> frozenset[str]:
    """Return the names of the file whose moments are there. Raises MomentExists for those that are others there."""
    existing = {moment.name: moment for moment in found.moments}
    met = [bundled for bundled in order.bundle.moments if bundled.name in existing]
    equal = frozenset(bundled.name for bundled in met if _is_equal(bundled.moment, existing[bundled.name]))
    different = sorted((bundled.name for bundled in met if bundled.name not in equal), key=name_order)
    if different and not order.replace:
        raise MomentExists(
            f"VM {found.vm!r} has other {order.kind}s of these names: {named(different)}",
            vm=found.vm,
            hint="Nothing was changed. --replace redefines them as the file has them.",
        )
    return equal


def _refuse_foreign(domain: Domain, order: ImportMoments) -> None:
    bundle = order.bundle
    if bundle.kind is not order.kind:
        raise MomentsForeign(
            f"the file holds {bundle.kind}s, not {order.kind}s",
            vm=domain.name,
            hint=f"Run `{command_line(f'vmkeep {bundle.kind} import', domain.name)} FILE`.",
        )
    if bundle.vm_uuid != domain.uuid:
        raise MomentsForeign(
            f"the file is of VM {bundle.vm_name!r} with UUID {bundle.vm_uuid}, and VM {domain.name!r} has "
            f"{domain.uuid}",
            vm=domain.name,
        )


def _refuse_validation_of_what_is_off(order: RedefineMoment | ImportMoments, found: VmMoments) -> None:
    if order.validate and order.kind is MomentKind.CHECKPOINT and not found.running:
        raise VmOff(
            f"VM {found.vm!r} is off, and libvirt can prove the bitmaps of a running VM only",
            vm=found.vm,
            hint="Start the VM, or leave out --validate.",
        )


def _joined(found: VmMoments, imported: Iterable[AnyMoment], vm: str) -> MomentTree[AnyMoment]:
    """Return the forest that there will be. Raises MomentInvalid with the names when it would be none."""
    names = {moment.name: moment for moment in imported}
    joined = {moment.name: moment for moment in found.moments} | names
    tree: MomentTree[AnyMoment] = MomentTree.build(found.kind, joined.values())
    # What is broken at libvirt already, and has nothing to do with the file, does not keep the file out.
    broken = {fault.name for fault in tree.broken.missing}.union(*tree.broken.cycles)
    if broken.intersection(names):
        with moment_errors(found.kind, vm):
            tree.demand_sound()
    return tree


def _stands_as(found: VmMoments, xml: str) -> bool:
    """Return whether libvirt still lists a moment as it was read."""
    was = parse_moment(found.kind, redefinable(xml))
    return any(moment.name == was.name and _is_equal(was, moment) for moment in found.moments)


def _document(moment: AnyMoment) -> str:
    return redefinable(format_moment(moment, secure=True))


def _is_equal(moment: AnyMoment, existing: AnyMoment) -> bool:
    """Return whether redefining would change nothing."""
    kept = with_domain_kept(moment, existing)
    return format_moment(kept, secure=True) == format_moment(existing, secure=True)
