"""`list` and `tree`: the checkpoints or the snapshots of a VM, all or some, as a table, by name or drawn."""

from __future__ import annotations

from dataclasses import field, fields, replace
from typing import TYPE_CHECKING

from vmkeep.cli.moment_options import (
    ActiveOption,
    DescendantsOption,
    DiskOnlyOption,
    ExternalOption,
    FromCurrentOption,
    FromOption,
    InactiveOption,
    InternalOption,
    LeavesOption,
    NamesOption,
    NoLeavesOption,
    ParentOption,
    RecordedOption,
    RootsOption,
    TopologicalOption,
    TreeOption,
    UnrecordedOption,
    VmArgument,
)
from vmkeep.cli.moments import current_of, health
from vmkeep.cli.terminal import one_line
from vmkeep.errors import InvalidRequest
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.cli.session import Session
    from vmkeep.moments import MomentKind


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


def list_moments(
    running: Session,
    kind: MomentKind,
    vm: VmArgument,
    parent: ParentOption = False,
    roots: RootsOption = False,
    leaves: LeavesOption = False,
    no_leaves: NoLeavesOption = False,
    metadata: RecordedOption = False,
    no_metadata: UnrecordedOption = False,
    inactive: InactiveOption = False,
    active: ActiveOption = False,
    disk_only: DiskOnlyOption = False,
    internal: InternalOption = False,
    external: ExternalOption = False,
    tree: TreeOption = False,
    start: FromOption = None,
    current: FromCurrentOption = False,
    descendants: DescendantsOption = False,
    name: NamesOption = False,
    topological: TopologicalOption = False,
) -> None:
    """``vmkeep KIND list``."""
    wanted = Listing(
        parent=parent,
        tree=tree,
        name=name,
        start=start,
        current=current,
        roots=roots,
        descendants=descendants,
        topological=topological,
        filters={
            "leaves": leaves,
            "no_leaves": no_leaves,
            "metadata": metadata,
            "no_metadata": no_metadata,
            "inactive": inactive,
            "active": active,
            "disk_only": disk_only,
            "internal": internal,
            "external": external,
        },
    )
    _show(running, kind, vm, wanted)


def draw_moments(
    running: Session,
    kind: MomentKind,
    vm: VmArgument,
    start: FromOption = None,
    descendants: DescendantsOption = False,
) -> None:
    """``vmkeep KIND tree``."""
    _show(running, kind, vm, Listing(tree=True, start=start, descendants=descendants))


def _show(running: Session, kind: MomentKind, vm: str, wanted: Listing) -> None:
    from vmkeep.cli.moment_output import moment_object, moment_table
    from vmkeep.host.tasks.moments import ReadMoments, moment_errors
    from vmkeep.moments import MomentFilter, draw_tree, select

    wanted.check()
    with running.host() as host:
        found = host.ask(ReadMoments(kind=kind, vm=vm))
    tree = found.tree()
    if wanted.current:
        wanted = replace(wanted, start=current_of(found))
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
