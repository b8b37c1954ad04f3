"""What the commands for checkpoints and for snapshots do: the verbs, for either kind.

``cli/moment_verbs.py`` registers them, with the options that virsh has for the kind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmkeep.cli.moment_options import (
    ChildrenOnlyOption,
    ChildrenOption,
    CloneOption,
    CurrentOption,
    EditedCurrentOption,
    FileArgument,
    GivenName,
    MadeCurrentOption,
    NameArgument,
    NoDomainOption,
    RecordOption,
    RenameOption,
    SecurityOption,
    SizeOption,
    TrustOption,
    ValidateOption,
    VmArgument,
    WrapOption,
    XpathOption,
    YesOption,
)
from vmkeep.cli.terminal import one_line
from vmkeep.errors import DefinitionReaches, InvalidRequest, MomentInvalid, MomentNotFound, VmkeepError

if TYPE_CHECKING:
    from vmkeep.catalog import Catalog
    from vmkeep.cli.session import Session
    from vmkeep.host.protocol import Host
    from vmkeep.host.tasks.moments import (
        DeleteMoments,
        ImportMoments,
        MomentChange,
        MomentsChanged,
        RedefineMoment,
        VmMoments,
    )
    from vmkeep.moments import AnyMoment, DeleteMode, MomentKind, MomentTree

DOCUMENT_BYTES = 16 * 1024 * 1024


# -- looking ---------------------------------------------------------------------------------------------------


def health(running: Session, kind: MomentKind, found: VmMoments) -> Mapping[str, str]:
    """Return how each moment is, in a few words; where that cannot be told a notice says why, and the list stands."""
    from vmkeep.flows.moment_health import MomentHealth
    from vmkeep.moments import MomentKind

    try:
        with running.host() as host:
            care = MomentHealth(running.premises, host)
            checkpoints = kind is MomentKind.CHECKPOINT
            return care.checkpoint_texts(found.uuid) if checkpoints else care.snapshot_texts(found.uuid)
    except VmkeepError as error:
        running.console.notice(f"the health of the {kind}s could not be told: {error.message}")
        return {}


def _looked_up(
    running: Session, kind: MomentKind, vm: str, name: str | None, *, current: bool
) -> tuple[VmMoments, MomentTree[Any], Any]:
    """Return all moments of a VM, as a tree as well, and the one that is meant."""
    from vmkeep.host.tasks.moments import ReadMoments

    with running.host() as host:
        found = host.ask(ReadMoments(kind=kind, vm=vm))
    tree = found.tree()
    return found, tree, find_moment(found, tree, _named_or_current(found, name, current=current))


def show_moment(
    running: Session, kind: MomentKind, vm: VmArgument, name: NameArgument = None, current: CurrentOption = False
) -> None:
    """``vmkeep KIND info``."""
    from vmkeep.cli.moment_output import moment_facts, moment_object

    found, tree, moment = _looked_up(running, kind, vm, name, current=current)
    shown = moment_object(moment, found, tree, health(running, kind, found))
    shown["descendants"] = sum(1 for _ in tree.descendants(moment.name))
    if running.console.json:
        running.console.document({str(kind): shown})
    else:
        running.console.show(moment_facts(shown, kind))


def tell_parent(
    running: Session, kind: MomentKind, vm: VmArgument, name: NameArgument = None, current: CurrentOption = False
) -> None:
    """``vmkeep KIND parent``."""
    found, tree, moment = _looked_up(running, kind, vm, name, current=current)
    parent = tree.parent(moment.name or "")
    if running.console.json:
        running.console.document({str(kind): {"name": moment.name, "parent": None if parent is None else parent.name}})
        return
    if parent is None:
        raise MomentNotFound(f"{kind} {moment.name!r} of VM {found.vm!r} has no parent", vm=found.vm, hint="")
    running.console.text(f"{one_line(parent.name or '')}\n")


def dump_moment(
    running: Session,
    kind: MomentKind,
    vm: VmArgument,
    name: GivenName,
    security_info: SecurityOption = False,
    no_domain: NoDomainOption = False,
    size: SizeOption = False,
    xpath: XpathOption = None,
    wrap: WrapOption = False,
) -> None:
    """``vmkeep KIND dumpxml``."""
    from vmkeep.host.tasks.moments import ReadMomentXml

    with running.host() as host:
        text = host.ask(
            ReadMomentXml(kind=kind, vm=vm, name=name, secure=security_info, domain=not no_domain, sizes=size)
        )
    dump_xml(running, kind, name, text, xpath=xpath, wrap=wrap)


def dump_xml(running: Session, kind: MomentKind, name: str, xml: str, *, xpath: str | None, wrap: bool) -> None:
    """Print a definition, or what an XPath finds in it."""
    if xpath is None:
        if wrap:
            raise InvalidRequest("--wrap requires --xpath", hint="Give --xpath, or leave out --wrap.")
        if running.console.json:
            running.console.document({str(kind): {"name": name, "xml": xml}})
        else:
            running.console.xml(xml)
        return
    from vmkeep.xmltext import find_in_xml

    try:
        nodes = find_in_xml(xml, xpath, wrap=wrap)
    except ValueError as error:
        raise InvalidRequest(f"XPath {xpath!r}: {error}", hint="It must find elements, attributes or texts.") from error
    if running.console.json:
        running.console.document({str(kind): {"name": name, "nodes": nodes}})
    else:
        running.console.xml("".join(f"{node}\n" for node in nodes))


def named_or_current(host: Host, kind: MomentKind, vm: str, name: str | None, *, current: bool) -> str:
    """Return the name that was given, or that of the current snapshot."""
    from vmkeep.host.tasks.moments import ReadMoments

    if name is not None and not current:
        return name
    return _named_or_current(host.ask(ReadMoments(kind=kind, vm=vm)), name, current=current)


def _named_or_current(found: VmMoments, name: str | None, *, current: bool) -> str:
    if current and name is not None:
        raise InvalidRequest("A name and --current are mutually exclusive", hint="Give one of the two.")
    if current:
        return current_of(found)
    if name is None:
        raise InvalidRequest("A name is missing", hint="Name the snapshot, or give --current.")
    return name


def current_of(found: VmMoments) -> str:
    """Return the name of the current one. Raises MomentNotFound."""
    if found.current is None:
        raise MomentNotFound(f"VM {found.vm!r} has no current {found.kind}", vm=found.vm)
    return found.current


def find_moment(found: VmMoments, tree: MomentTree[AnyMoment], name: str) -> AnyMoment:
    """Return one by its name. Raises MomentNotFound."""
    from vmkeep.host.tasks.moments import moment_errors

    with moment_errors(found.kind, found.vm):
        return tree.find(name)


# -- changing --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def changing(running: Session) -> Iterator[Callable[[MomentChange], MomentsChanged]]:
    """Yield what carries out orders. A signal ends one between two steps, so that it is taken back whole."""
    from vmkeep.flows.change_moments import change_moments

    with running.host() as host, running.interruption.handed_to(lambda _reason: None):

        def change(order: MomentChange) -> MomentsChanged:
            return change_moments(
                host,
                running.settings,
                _catalog(running, order),
                order,
                stop=running.interruption.check,
                watch=lambda progress: running.console.notice(progress.note) if progress.note else None,
            )

        yield change


def _catalog(running: Session, order: MomentChange) -> Catalog | None:
    """Return the catalogue that has to follow a change; None where there is none, or none that can be opened."""
    from vmkeep.moments import MomentKind

    if order.kind is not MomentKind.SNAPSHOT or not running.settings.catalog_path.exists():
        return None
    try:
        return running.premises.catalog
    except VmkeepError as error:
        running.console.notice(f"{error.message}; `vmkeep doctor --fix` forgets later what is kept with what is gone")
        return None


def change_or_ask(running: Session, order: RedefineMoment | ImportMoments) -> MomentsChanged:
    """Carry out an order. What it brings that reaches into this host is shown and asked about, where somebody can."""
    try:
        with changing(running) as change:
            return change(order)
    except DefinitionReaches as error:
        if not running.console.can_ask:
            raise
        agreed = running.console.ask_about(error, "Take all of it?")
    if not agreed:
        raise InvalidRequest("Not confirmed; nothing was changed", hint="Look at the file, and ask who wrote it.")
    with changing(running) as change:  # nothing was changed before
        return change(replace(order, trusted=True))


def delete_moments(
    running: Session,
    kind: MomentKind,
    vm: VmArgument,
    name: NameArgument = None,
    current: CurrentOption = False,
    children: ChildrenOption = False,
    children_only: ChildrenOnlyOption = False,
    metadata: RecordOption = False,
    yes: YesOption = False,
) -> None:
    """``vmkeep KIND delete``."""
    from vmkeep.host.tasks.moments import DeleteMoments

    with running.host() as host:
        deleted = named_or_current(host, kind, vm, name, current=current)
    mode = _delete_mode(children=children, children_only=children_only)
    order = DeleteMoments(kind=kind, vm=vm, name=deleted, mode=mode, metadata_only=metadata)
    with changing(running) as change:
        done = change(_agreed(running, order, yes=yes))
    if running.console.json:
        value = {"vm": done.vm, f"{kind}s": list(done.names), "metadata_only": metadata}
        running.console.document({"deleted": value})
        return
    how = "forgotten; what it holds is where it was" if metadata else "deleted"
    for each in done.names:
        running.console.show(f"{kind} {each} of {done.vm} {how}")
    if not done.names:
        running.console.show(f"{kind} {deleted} of {done.vm} has no children; nothing was deleted")


def _agreed(running: Session, order: DeleteMoments, *, yes: bool) -> DeleteMoments:
    """Return the order when the user agrees: a checkpoint that the next point is read against goes after a question."""
    from vmkeep.host.tasks.moments import ReadMoments, moment_errors, to_be_deleted
    from vmkeep.moments import MomentKind
    from vmkeep.planning.names import is_base_name

    if order.kind is not MomentKind.CHECKPOINT or order.metadata_only:
        return order
    with running.host() as host:
        found = host.ask(ReadMoments(kind=order.kind, vm=order.vm))
    with moment_errors(order.kind, found.vm):
        doomed = to_be_deleted(found.tree(), order.name, order.mode)
    bases = [name for name in doomed if is_base_name(name)]
    if not bases:
        return order
    question = (
        f"Delete {', '.join(bases)}? The next point of VM {found.vm!r} is read against "
        f"{'it' if len(bases) == 1 else 'one of them'}; without it the disks are read whole."
    )
    running.console.confirm(question, yes=yes)
    return replace(order, bases=frozenset(bases))


def redefine_moment(
    running: Session,
    kind: MomentKind,
    vm: VmArgument,
    file: FileArgument,
    current: MadeCurrentOption = False,
    validate: ValidateOption = False,
    trust_definition: TrustOption = False,
) -> None:
    """``vmkeep KIND redefine``."""
    from vmkeep.cli.textfiles import read_text
    from vmkeep.host.tasks.moments import RedefineMoment

    xml = read_text(file, limit_bytes=DOCUMENT_BYTES)
    order = RedefineMoment(kind=kind, vm=vm, xml=xml, validate=validate, current=current, trusted=trust_definition)
    done = change_or_ask(running, order)
    _tell_redefined(running, kind, done)


def edit_moment(
    running: Session,
    kind: MomentKind,
    vm: VmArgument,
    name: NameArgument = None,
    current: EditedCurrentOption = False,
    rename: RenameOption = False,
    clone: CloneOption = False,
) -> None:
    """``vmkeep KIND edit``."""
    from vmkeep.cli.editing import edit_text
    from vmkeep.host.tasks.moments import ReadMomentXml, RedefineMoment, moment_errors
    from vmkeep.moments import parse_moment, redefinable

    with running.host() as host:
        edited_name = name or named_or_current(host, kind, vm, None, current=current)
    if rename and clone:
        raise InvalidRequest("--rename and --clone are mutually exclusive", hint="Give one of the two.")
    with running.host() as host:
        xml = redefinable(host.ask(ReadMomentXml(kind=kind, vm=vm, name=edited_name, secure=True)))

    def change_it(edited: str) -> MomentsChanged:
        with moment_errors(kind, vm, name=edited_name):
            new_name = parse_moment(kind, edited).name or ""
        if new_name != edited_name and not (rename or clone):
            raise _renaming_refused(kind, vm, edited_name, new_name)
        order = RedefineMoment(
            kind=kind,
            vm=vm,
            xml=edited,
            current=current and name is not None,
            renamed=edited_name if new_name != edited_name else None,
            clone=clone,
            was=xml,
            trusted=True,
        )
        with changing(running) as change:
            return change(order)

    done = edit_text(xml, f"{kind}.xml", change_it, running.console, limit_bytes=DOCUMENT_BYTES)
    if done is not None:
        _tell_redefined(running, kind, done)
    elif running.console.json:
        running.console.document({"redefined": {"vm": vm, f"{kind}s": []}})
    else:
        running.console.show(f"{kind} {edited_name} of {vm} was not changed")


def _delete_mode(*, children: bool, children_only: bool) -> DeleteMode:
    """Return what --children and --children-only ask for."""
    from vmkeep.moments import DeleteMode

    if children and children_only:
        raise InvalidRequest("--children and --children-only are mutually exclusive", hint="Give one of the two.")
    if children:
        return DeleteMode.WITH_CHILDREN
    return DeleteMode.CHILDREN_ONLY if children_only else DeleteMode.ALONE


def _renaming_refused(kind: MomentKind, vm: str, name: str, new_name: str) -> InvalidRequest:
    from vmkeep.moments import MomentKind

    if kind is MomentKind.CHECKPOINT:
        words = f"checkpoint {name!r} of VM {vm!r} cannot be renamed to {new_name!r}: its bitmaps have its name"
        return MomentInvalid(words, vm=vm, hint="Leave the name as it is.")
    words = f"snapshot {name!r} of VM {vm!r} is renamed to {new_name!r}, and neither --rename nor --clone was given"
    return MomentInvalid(words, vm=vm, hint="Give --rename to replace it, or --clone to keep it as well.")


def _tell_redefined(running: Session, kind: MomentKind, done: MomentsChanged) -> None:
    if running.console.json:
        running.console.document({"redefined": {"vm": done.vm, f"{kind}s": list(done.names)}})
        return
    for name in done.names:
        running.console.show(f"{kind} {name} of {done.vm} redefined")
