"""What the commands for checkpoints and for snapshots do: the verbs, for either kind.

The commands themselves, with the options that virsh has for each kind, stand in ``cli/checkpoint.py`` and
``cli/snapshot.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, fields, replace
from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli.completion import complete_moment, complete_vm
from vmkeep.cli.terminal import one_line
from vmkeep.errors import DefinitionReaches, InvalidRequest, MomentInvalid, MomentNotFound, VmkeepError
from vmkeep.values import dataclass

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

VmArgument = Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)]
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="The file; - is standard input.")]
ValidateOption = Annotated[bool, typer.Option("--validate", help="Let libvirt prove it first.")]
SecurityOption = Annotated[
    bool, typer.Option("--security-info", help="With the passwords that the VM's definition holds.")
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-definition", help="Take what reaches into this host, and the VM does not have, as it is."),
]
ChildrenOption = Annotated[bool, typer.Option("--children", help="And all that descends from it.")]
ChildrenOnlyOption = Annotated[bool, typer.Option("--children-only", help="Only what descends from it.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
XpathOption = Annotated[
    str | None,
    typer.Option("--xpath", metavar="XPATH", help="Print only what an XPath expression finds.", show_default=False),
]
WrapOption = Annotated[bool, typer.Option("--wrap", help="With --xpath: in one element <nodes>.")]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="NAME",
        help="Only the children of this one.",
        show_default=False,
        autocompletion=complete_moment,
    ),
]
DescendantsOption = Annotated[bool, typer.Option("--descendants", help="With --from: all that descends from it.")]

DOCUMENT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """How a list was asked for. The fields are the options of the same names; ``start`` is --from."""

    parent: bool = False
    tree: bool = False
    name: bool = False
    current: bool = False
    start: str | None = None
    roots: bool = False
    descendants: bool = False
    topological: bool = False
    filters: dict[str, bool] = field(default_factory=dict)

    def check(self) -> None:
        """Raise InvalidRequest for options that exclude each other, as virsh does."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(self)} | self.filters
        given["from"] = self.start
        pairs = [("tree", "name"), ("parent", "roots"), ("parent", "tree"), ("roots", "tree"), ("roots", "from")]
        pairs += [("roots", "current"), ("from", "current"), *((name, "tree") for name in self.filters)]
        for one, other in pairs:
            if given[one] and given[other]:
                words = f"--{one} and --{other} are mutually exclusive".replace("_", "-")
                raise InvalidRequest(words, hint="Give one of the two.")
        if self.descendants and self.start is None and not self.current:
            raise InvalidRequest("--descendants requires --from", hint="Give --from NAME.")


# -- looking ---------------------------------------------------------------------------------------------------


def list_moments(running: Session, kind: MomentKind, vm: str, wanted: Listing) -> None:
    """``vmkeep KIND list``."""
    from vmkeep.cli.moment_output import moment_object, moment_table
    from vmkeep.host.tasks.moments import ReadMoments, moment_errors
    from vmkeep.moments import MomentFilter, draw_tree, select

    wanted.check()
    with running.host() as host:
        found = host.ask(ReadMoments(kind=kind, vm=vm))
    tree = found.tree()
    if wanted.current:
        wanted = replace(wanted, start=_current(found))
    with moment_errors(kind, found.vm):
        choice = MomentFilter(
            start=wanted.start,
            roots=wanted.roots,
            descendants=wanted.descendants,
            topological=wanted.topological,
            **wanted.filters,
        )
        chosen = select(tree, choice)
        if wanted.tree and not running.console.json:
            lines = draw_tree(tree, wanted.start, descendants=wanted.descendants)
            running.console.text("".join(f"{one_line(line)}\n" for line in lines))
            return
    if wanted.name and not running.console.json:
        running.console.text("".join(f"{one_line(moment.name or '')}\n" for moment in chosen))
        return
    told = health(running, kind, found) if chosen else {}
    objects = [moment_object(moment, found, tree, told) for moment in chosen]
    if running.console.json:
        running.console.document({f"{kind}s": objects})
    elif objects:
        running.console.show(moment_table(objects, kind, parents=wanted.parent, health=bool(told)))
    else:
        running.console.show(f"no {kind}s")


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


def show_moment(running: Session, kind: MomentKind, vm: str, name: str | None, *, current: bool) -> None:
    """``vmkeep KIND info``."""
    from vmkeep.cli.moment_output import moment_facts, moment_object
    from vmkeep.host.tasks.moments import ReadMoments

    with running.host() as host:
        found = host.ask(ReadMoments(kind=kind, vm=vm))
    tree = found.tree()
    moment = find_moment(found, tree, _named_or_current(found, name, current=current))
    shown = moment_object(moment, found, tree, health(running, kind, found))
    shown["descendants"] = sum(1 for _ in tree.descendants(moment.name))
    if running.console.json:
        running.console.document({str(kind): shown})
    else:
        running.console.show(moment_facts(shown, kind))


def tell_parent(running: Session, kind: MomentKind, vm: str, name: str | None, *, current: bool) -> None:
    """``vmkeep KIND parent``."""
    from vmkeep.host.tasks.moments import ReadMoments

    with running.host() as host:
        found = host.ask(ReadMoments(kind=kind, vm=vm))
    tree = found.tree()
    moment = find_moment(found, tree, _named_or_current(found, name, current=current))
    parent = tree.parent(moment.name or "")
    if running.console.json:
        running.console.document({str(kind): {"name": moment.name, "parent": None if parent is None else parent.name}})
        return
    if parent is None:
        raise MomentNotFound(f"{kind} {moment.name!r} of VM {found.vm!r} has no parent", vm=found.vm, hint="")
    running.console.text(f"{one_line(parent.name or '')}\n")


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
        return _current(found)
    if name is None:
        raise InvalidRequest("A name is missing", hint="Name the snapshot, or give --current.")
    return name


def _current(found: VmMoments) -> str:
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


def delete_moments(running: Session, order: DeleteMoments, *, yes: bool) -> None:
    """``vmkeep KIND delete``. A checkpoint that the next point is read against goes after a question only."""
    from vmkeep.host.tasks.moments import ReadMoments, moment_errors, to_be_deleted
    from vmkeep.moments import MomentKind
    from vmkeep.planning.names import is_base_name

    if order.kind is MomentKind.CHECKPOINT and not order.metadata_only:
        with running.host() as host:
            found = host.ask(ReadMoments(kind=order.kind, vm=order.vm))
        with moment_errors(order.kind, found.vm):
            doomed = to_be_deleted(found.tree(), order.name, order.mode)
        bases = [name for name in doomed if is_base_name(name)]
        if bases:
            question = (
                f"Delete {', '.join(bases)}? The next point of VM {found.vm!r} is read against "
                f"{'it' if len(bases) == 1 else 'one of them'}; without it the disks are read whole."
            )
            running.console.confirm(question, yes=yes)
            order = replace(order, bases=frozenset(bases))
    with changing(running) as change:
        done = change(order)
    if running.console.json:
        value = {"vm": done.vm, f"{order.kind}s": list(done.names), "metadata_only": order.metadata_only}
        running.console.document({"deleted": value})
        return
    how = "forgotten; what it holds is where it was" if order.metadata_only else "deleted"
    for name in done.names:
        running.console.show(f"{order.kind} {name} of {done.vm} {how}")
    if not done.names:
        running.console.show(f"{order.kind} {order.name} of {done.vm} has no children; nothing was deleted")


def redefine_moment(
    running: Session,
    kind: MomentKind,
    vm: str,
    file: str,
    *,
    validate: bool,
    current: bool = False,
    trust: bool = False,
) -> None:
    """``vmkeep KIND redefine``."""
    from vmkeep.cli.textfiles import read_text
    from vmkeep.host.tasks.moments import RedefineMoment

    xml = read_text(file, limit_bytes=DOCUMENT_BYTES)
    order = RedefineMoment(kind=kind, vm=vm, xml=xml, validate=validate, current=current, trusted=trust)
    done = change_or_ask(running, order)
    _tell_redefined(running, kind, done)


def edit_moment(
    running: Session,
    kind: MomentKind,
    vm: str,
    name: str,
    *,
    current: bool = False,
    rename: bool = False,
    clone: bool = False,
) -> None:
    """``vmkeep KIND edit``."""
    from vmkeep.cli.editing import edit_text
    from vmkeep.host.tasks.moments import ReadMomentXml, RedefineMoment, moment_errors
    from vmkeep.moments import parse_moment, redefinable

    if rename and clone:
        raise InvalidRequest("--rename and --clone are mutually exclusive", hint="Give one of the two.")
    with running.host() as host:
        xml = redefinable(host.ask(ReadMomentXml(kind=kind, vm=vm, name=name, secure=True)))

    def change_it(edited: str) -> MomentsChanged:
        with moment_errors(kind, vm, name=name):
            new_name = parse_moment(kind, edited).name or ""
        if new_name != name and not (rename or clone):
            raise _renaming_refused(kind, vm, name, new_name)
        order = RedefineMoment(
            kind=kind,
            vm=vm,
            xml=edited,
            current=current,
            renamed=name if new_name != name else None,
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
        running.console.show(f"{kind} {name} of {vm} was not changed")


def delete_mode(*, children: bool, children_only: bool) -> DeleteMode:
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
