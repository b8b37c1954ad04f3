"""`vmkeep snapshot`: libvirt's snapshots of a VM, with the options of virsh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli import moment_files, moment_health, moments, snapshot_create, snapshot_revert
from vmkeep.cli.completion import complete_snapshot
from vmkeep.cli.moments import (
    ChildrenOnlyOption,
    ChildrenOption,
    DescendantsOption,
    FileArgument,
    FromOption,
    Listing,
    SecurityOption,
    TrustOption,
    ValidateOption,
    VmArgument,
    WrapOption,
    XpathOption,
    YesOption,
)
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.terminal import one_line
from vmkeep.errors import InvalidRequest

if TYPE_CHECKING:
    from vmkeep.moments import MomentKind

app = typer.Typer(
    help="libvirt's snapshots of a VM.",
    epilog="Example: vmkeep snapshot list win11 --tree",
    rich_markup_mode=None,
)
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The snapshot's name.", autocompletion=complete_snapshot)
]
OptionalName = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="The snapshot's name.", show_default=False, autocompletion=complete_snapshot),
]
CurrentOption = Annotated[bool, typer.Option("--current", help="The current snapshot, in place of a name.")]


@app.command("list", epilog="Example: vmkeep snapshot list win11 --external --leaves")
def list_snapshots(
    context: typer.Context,
    vm: VmArgument,
    parent: Annotated[bool, typer.Option("--parent", help="With the parent of each.")] = False,
    roots: Annotated[bool, typer.Option("--roots", help="Only those without a parent.")] = False,
    leaves: Annotated[bool, typer.Option("--leaves", help="Only those without children.")] = False,
    no_leaves: Annotated[bool, typer.Option("--no-leaves", help="Only those with children.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="Only those that libvirt has a record of.")] = False,
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="Only those without a record: none.")] = False,
    inactive: Annotated[bool, typer.Option("--inactive", help="Only those made while the VM was off.")] = False,
    active: Annotated[bool, typer.Option("--active", help="Only those of a running VM, with its memory.")] = False,
    disk_only: Annotated[bool, typer.Option("--disk-only", help="Only those of disks alone.")] = False,
    internal: Annotated[bool, typer.Option("--internal", help="Only those kept in the images.")] = False,
    external: Annotated[bool, typer.Option("--external", help="Only those with files of their own.")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="Draw how they hang from each other.")] = False,
    start: FromOption = None,
    current: Annotated[bool, typer.Option("--current", help="Only the children of the current one.")] = False,
    descendants: DescendantsOption = False,
    name: Annotated[bool, typer.Option("--name", help="Print the names only.")] = False,
    topological: Annotated[bool, typer.Option("--topological", help="Parents first, not by name.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List the snapshots of a VM by name."""
    with session(context, json=json, connect=connect, debug=debug) as running:
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
        moments.list_moments(running, _kind(), vm, wanted)


@app.command("tree", epilog="Example: vmkeep snapshot tree win11")
def draw_snapshots(
    context: typer.Context,
    vm: VmArgument,
    start: FromOption = None,
    descendants: DescendantsOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Draw how the snapshots of a VM hang from each other; the same as list --tree."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        wanted = Listing(tree=True, start=start, descendants=descendants)
        moments.list_moments(running, _kind(), vm, wanted)


@app.command("info", epilog="Example: vmkeep snapshot info win11 --current")
def show_snapshot(
    context: typer.Context,
    vm: VmArgument,
    name: OptionalName = None,
    current: CurrentOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show what is known of a snapshot."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        moments.show_moment(running, _kind(), vm, name, current=current)


@app.command("parent", epilog="Example: vmkeep snapshot parent win11 --current")
def tell_parent(
    context: typer.Context,
    vm: VmArgument,
    name: OptionalName = None,
    current: CurrentOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Print the name of a snapshot's parent."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        moments.tell_parent(running, _kind(), vm, name, current=current)


@app.command("current", epilog="Example: vmkeep snapshot current win11 --name")
def current_snapshot(
    context: typer.Context,
    vm: VmArgument,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="The snapshot that shall be the current one.",
            show_default=False,
            autocompletion=complete_snapshot,
        ),
    ] = None,
    only_name: Annotated[bool, typer.Option("--name", help="Print its name only.")] = False,
    security_info: SecurityOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Print the definition of the current snapshot, or call another one current. Disks are not touched."""
    from vmkeep.host.tasks.moments import ReadMomentXml, RedefineMoment
    from vmkeep.moments import redefinable

    kind = _kind()
    with session(context, json=json, connect=connect, debug=debug) as running:
        if name is None:
            with running.host() as host:
                found = moments.named_or_current(host, kind, vm, None, current=True)
                text = host.ask(ReadMomentXml(kind=kind, vm=vm, name=found, secure=security_info))
            if only_name and not running.console.json:
                running.console.text(f"{one_line(found)}\n")
            else:
                moments.dump_xml(running, kind, found, text, xpath=None, wrap=False)
            return
        if only_name or security_info:
            raise InvalidRequest("A name goes without --name and --security-info", hint="Leave the options out.")
        with running.host() as host:
            text = host.ask(ReadMomentXml(kind=kind, vm=vm, name=name, secure=True))
        with moments.changing(running) as change:
            change(RedefineMoment(kind=kind, vm=vm, xml=redefinable(text), current=True, was=text, trusted=True))
        if running.console.json:
            running.console.document({"snapshot": {"name": name, "current": True}})
        else:
            running.console.show(f"snapshot {name} of {vm} is the current one")


@app.command("dumpxml", epilog="Example: vmkeep snapshot dumpxml win11 monday")
def dump_snapshot(
    context: typer.Context,
    vm: VmArgument,
    name: NameArgument,
    security_info: SecurityOption = False,
    xpath: XpathOption = None,
    wrap: WrapOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Print the definition of a snapshot as libvirt has it."""
    from vmkeep.host.tasks.moments import ReadMomentXml

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            text = host.ask(ReadMomentXml(kind=_kind(), vm=vm, name=name, secure=security_info))
        moments.dump_xml(running, _kind(), name, text, xpath=xpath, wrap=wrap)


@app.command("edit", epilog="Example: vmkeep snapshot edit win11 monday --rename")
def edit_snapshot(
    context: typer.Context,
    vm: VmArgument,
    name: OptionalName = None,
    current: Annotated[
        bool, typer.Option("--current", help="Without a name: the current one. With it: it becomes current.")
    ] = False,
    rename: Annotated[bool, typer.Option("--rename", help="A new name may be given to it.")] = False,
    clone: Annotated[bool, typer.Option("--clone", help="Under a new name it is one more.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Edit the definition of a snapshot with VISUAL or EDITOR. What it holds of the disks keeps its old name."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            edited = name or moments.named_or_current(host, _kind(), vm, None, current=current)
        moments.edit_moment(
            running, _kind(), vm, edited, current=current and name is not None, rename=rename, clone=clone
        )


@app.command("redefine", epilog="Example: vmkeep snapshot redefine win11 monday.xml --current")
def redefine_snapshot(
    context: typer.Context,
    vm: VmArgument,
    file: FileArgument,
    current: Annotated[bool, typer.Option("--current", help="It becomes the current one.")] = False,
    validate: ValidateOption = False,
    trust_definition: TrustOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Make libvirt list a snapshot as a definition says. Disks are not touched."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        moments.redefine_moment(running, _kind(), vm, file, validate=validate, current=current, trust=trust_definition)


@app.command("delete", epilog="Example: vmkeep snapshot delete win11 monday --children")
def delete_snapshot(
    context: typer.Context,
    vm: VmArgument,
    name: OptionalName = None,
    current: CurrentOption = False,
    children: ChildrenOption = False,
    children_only: ChildrenOnlyOption = False,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="Only libvirt's record: images and files stay as they are.")
    ] = False,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Delete a snapshot with what it holds. What hangs from it hangs from its parent."""
    from vmkeep.host.tasks.moments import DeleteMoments

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            deleted = moments.named_or_current(host, _kind(), vm, name, current=current)
        order = DeleteMoments(
            kind=_kind(),
            vm=vm,
            name=deleted,
            mode=moments.delete_mode(children=children, children_only=children_only),
            metadata_only=metadata,
        )
        moments.delete_moments(running, order, yes=yes)


@app.command("export", epilog="Example: vmkeep snapshot export win11 win11-snapshots.json")
def export_snapshots(
    context: typer.Context,
    vm: VmArgument,
    file: moment_files.OutputArgument = "-",
    security_info: SecurityOption = False,
    force: moment_files.ForceOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Write the definitions of all snapshots of a VM to one file."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        moment_files.export_moments(running, _kind(), vm, file, secure=security_info, force=force)


@app.command("import", epilog="Example: vmkeep snapshot import win11 win11-snapshots.json")
def import_snapshots(
    context: typer.Context,
    vm: VmArgument,
    file: FileArgument,
    replace: moment_files.ReplaceOption = False,
    validate: ValidateOption = False,
    trust_definition: TrustOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Make libvirt list all snapshots of a file, or change nothing. Disks are not touched."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        moment_files.import_moments(
            running, _kind(), vm, file, replace_them=replace, validate=validate, trust=trust_definition
        )


def _kind() -> MomentKind:
    """Imported when a command runs: the other commands start without it."""
    from vmkeep.moments import MomentKind

    return MomentKind.SNAPSHOT


snapshot_create.register(app)
snapshot_revert.register(app)
moment_health.register_for_snapshots(app)
