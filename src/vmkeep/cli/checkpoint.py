"""`vmkeep checkpoint`: libvirt's checkpoints of a VM, with the options of virsh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli import moment_files, moment_health, moments
from vmkeep.cli.completion import complete_checkpoint, complete_disk
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
from vmkeep.errors import InvalidRequest

if TYPE_CHECKING:
    from vmkeep.moments import CheckpointDisk, MomentKind

app = typer.Typer(
    short_help="libvirt's checkpoints of a VM, and their health.",
    help="libvirt's checkpoints of a VM: what its disks are read against.",
    epilog="Example: vmkeep checkpoint list win11 --tree",
    rich_markup_mode=None,
)
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The checkpoint's name.", autocompletion=complete_checkpoint)
]


@app.command("create", epilog="Example: vmkeep checkpoint create win11 monday --diskspec vda")
def create_checkpoint(
    context: typer.Context,
    vm: VmArgument,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Its name; without one, the time.", show_default=False)
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="A text that is kept with it.", show_default=False)
    ] = None,
    diskspec: Annotated[
        list[str] | None,
        typer.Option(
            "--diskspec",
            metavar="DISK[,checkpoint=TYPE][,bitmap=NAME]",
            autocompletion=complete_disk,
            help="A disk that takes part (or not: checkpoint=no); may be repeated. Without any: all that can.",
            show_default=False,
        ),
    ] = None,
    xml: Annotated[
        str | None,
        typer.Option(
            "--xml",
            metavar="FILE",
            help="Its definition in place of all that; - is standard input.",
            show_default=False,
        ),
    ] = None,
    print_xml: Annotated[bool, typer.Option("--print-xml", help="Print the definition and create nothing.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Create a checkpoint of a running VM."""
    from vmkeep.cli.moment_output import moment_object
    from vmkeep.cli.textfiles import read_text
    from vmkeep.host.tasks.moments import CreateCheckpoint, ReadMoments

    with session(context, json=json, connect=connect, debug=debug) as running:
        if xml is not None and (name is not None or description is not None or diskspec):
            raise InvalidRequest("--xml and what describes a checkpoint in words are mutually exclusive")
        order = CreateCheckpoint(
            vm=vm,
            name=name,
            description=description,
            disks=tuple(read_diskspec(text) for text in diskspec or ()),
            xml=None if xml is None else read_text(xml, limit_bytes=moments.DOCUMENT_BYTES),
            dry=print_xml,
        )
        with moments.changing(running) as change:
            done = change(order)
        for sentence in done.notices:
            running.console.notice(sentence)
        (created,) = done.names
        if print_xml:
            moments.dump_xml(running, _kind(), created, done.xml or "", xpath=None, wrap=False)
            return
        with running.host() as host:
            found = host.ask(ReadMoments(kind=_kind(), vm=vm))
        tree = found.tree()
        shown = moment_object(moments.find_moment(found, tree, created), found, tree)
        if running.console.json:
            running.console.document({"checkpoint": shown})
        else:
            disks = ", ".join(disk["target"] for disk in shown["disks"])
            running.console.show(f"checkpoint {created} of {found.vm} created: {disks}")


@app.command("list", epilog="Example: vmkeep checkpoint list win11 --leaves")
def list_checkpoints(
    context: typer.Context,
    vm: VmArgument,
    parent: Annotated[bool, typer.Option("--parent", help="With the parent of each.")] = False,
    roots: Annotated[bool, typer.Option("--roots", help="Only those without a parent.")] = False,
    leaves: Annotated[bool, typer.Option("--leaves", help="Only those without children.")] = False,
    no_leaves: Annotated[bool, typer.Option("--no-leaves", help="Only those with children.")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="Draw how they hang from each other.")] = False,
    start: FromOption = None,
    descendants: DescendantsOption = False,
    name: Annotated[bool, typer.Option("--name", help="Print the names only.")] = False,
    topological: Annotated[bool, typer.Option("--topological", help="Parents first, not by name.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List the checkpoints of a VM by name."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        wanted = Listing(
            parent=parent,
            tree=tree,
            name=name,
            start=start,
            roots=roots,
            descendants=descendants,
            topological=topological,
            filters={"leaves": leaves, "no_leaves": no_leaves},
        )
        moments.list_moments(running, _kind(), vm, wanted)


@app.command("tree", epilog="Example: vmkeep checkpoint tree win11")
def draw_checkpoints(
    context: typer.Context,
    vm: VmArgument,
    start: FromOption = None,
    descendants: DescendantsOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Draw how the checkpoints of a VM hang from each other; the same as list --tree."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        wanted = Listing(tree=True, start=start, descendants=descendants)
        moments.list_moments(running, _kind(), vm, wanted)


@app.command("info", epilog="Example: vmkeep checkpoint info win11 monday")
def show_checkpoint(
    context: typer.Context,
    vm: VmArgument,
    name: NameArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show what is known of a checkpoint."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        moments.show_moment(running, _kind(), vm, name, current=False)


@app.command("parent", epilog="Example: vmkeep checkpoint parent win11 monday")
def tell_parent(
    context: typer.Context,
    vm: VmArgument,
    name: NameArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Print the name of a checkpoint's parent."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        moments.tell_parent(running, _kind(), vm, name, current=False)


@app.command("dumpxml", epilog="Example: vmkeep checkpoint dumpxml win11 monday --no-domain --size")
def dump_checkpoint(
    context: typer.Context,
    vm: VmArgument,
    name: NameArgument,
    security_info: SecurityOption = False,
    no_domain: Annotated[bool, typer.Option("--no-domain", help="Without the VM's definition in it.")] = False,
    size: Annotated[bool, typer.Option("--size", help="With the bytes that changed since, of a running VM.")] = False,
    xpath: XpathOption = None,
    wrap: WrapOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Print the definition of a checkpoint as libvirt has it."""
    from vmkeep.host.tasks.moments import ReadMomentXml

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            text = host.ask(
                ReadMomentXml(kind=_kind(), vm=vm, name=name, secure=security_info, domain=not no_domain, sizes=size)
            )
        moments.dump_xml(running, _kind(), name, text, xpath=xpath, wrap=wrap)


@app.command("edit", epilog="Example: vmkeep checkpoint edit win11 monday")
def edit_checkpoint(
    context: typer.Context,
    vm: VmArgument,
    name: NameArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Edit the definition of a checkpoint with VISUAL or EDITOR. Its name cannot be changed."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        moments.edit_moment(running, _kind(), vm, name)


@app.command("redefine", epilog="Example: vmkeep checkpoint redefine win11 monday.xml --validate")
def redefine_checkpoint(
    context: typer.Context,
    vm: VmArgument,
    file: FileArgument,
    validate: ValidateOption = False,
    trust_definition: TrustOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Make libvirt list a checkpoint as a definition says. Bitmaps are not made; --validate proves them."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        moments.redefine_moment(running, _kind(), vm, file, validate=validate, trust=trust_definition)


@app.command("delete", epilog="Example: vmkeep checkpoint delete win11 monday --children")
def delete_checkpoint(
    context: typer.Context,
    vm: VmArgument,
    name: NameArgument,
    children: ChildrenOption = False,
    children_only: ChildrenOnlyOption = False,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="Only libvirt's record: the bitmaps stay in the images.")
    ] = False,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Delete a checkpoint with its bitmaps, whether the VM runs or is off. What hangs from it hangs from its parent."""
    from vmkeep.host.tasks.moments import DeleteMoments

    with session(context, json=json, connect=connect, debug=debug) as running:
        order = DeleteMoments(
            kind=_kind(),
            vm=vm,
            name=name,
            mode=moments.delete_mode(children=children, children_only=children_only),
            metadata_only=metadata,
        )
        moments.delete_moments(running, order, yes=yes)


@app.command("export", epilog="Example: vmkeep checkpoint export win11 win11-checkpoints.json")
def export_checkpoints(
    context: typer.Context,
    vm: VmArgument,
    file: moment_files.OutputArgument = "-",
    security_info: SecurityOption = False,
    force: moment_files.ForceOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Write the definitions of all checkpoints of a VM to one file."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        moment_files.export_moments(running, _kind(), vm, file, secure=security_info, force=force)


@app.command("import", epilog="Example: vmkeep checkpoint import win11 win11-checkpoints.json --validate")
def import_checkpoints(
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
    """Make libvirt list all checkpoints of a file, or change nothing. Bitmaps are not made."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        moment_files.import_moments(
            running, _kind(), vm, file, replace_them=replace, validate=validate, trust=trust_definition
        )


def read_diskspec(text: str) -> CheckpointDisk:
    """Return what a --diskspec says; as for virsh, two commas in it stand for one."""
    from vmkeep.moments import CheckpointDisk, CheckpointType

    name, *settings = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    known: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in ("checkpoint", "bitmap") or not equals or not value or key in known:
            raise InvalidRequest(
                f"--diskspec {text!r}: {setting!r} cannot be meant",
                hint="Write it as DISK, DISK,checkpoint=no or DISK,bitmap=NAME.",
            )
        known[key] = value
    kind = known.get("checkpoint", "default")
    if not name or kind not in tuple(CheckpointType):
        raise InvalidRequest(
            f"--diskspec {text!r}: it needs a disk, and checkpoint is no or bitmap",
            hint="Write it as DISK, DISK,checkpoint=no or DISK,bitmap=NAME.",
        )
    return CheckpointDisk(name, CheckpointType(kind), known.get("bitmap"))


def _kind() -> MomentKind:
    """Imported when a command runs: the other commands start without it."""
    from vmkeep.moments import MomentKind

    return MomentKind.CHECKPOINT


moment_health.register_for_checkpoints(app)
