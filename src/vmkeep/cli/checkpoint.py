"""`vmkeep checkpoint`: libvirt's checkpoints of a VM, with the options of virsh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli import moment_health, moments
from vmkeep.cli.completion import complete_disk
from vmkeep.cli.moment_options import VmArgument
from vmkeep.cli.moment_verbs import VERBS, Told, Wording
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
_WORDING = Wording(
    kind="checkpoint",
    kept="the bitmaps stay in the images",
    told={
        "list": Told("List the checkpoints of a VM by name.", "win11 --leaves"),
        "tree": Told("Draw how the checkpoints of a VM hang from each other; the same as list --tree.", "win11"),
        "info": Told("Show what is known of a checkpoint.", "win11 monday"),
        "parent": Told("Print the name of a checkpoint's parent.", "win11 monday"),
        "dumpxml": Told(
            "Print the definition of a checkpoint as libvirt has it.",
            "win11 monday --no-domain --size",
        ),
        "edit": Told(
            "Edit the definition of a checkpoint with VISUAL or EDITOR. Its name cannot be changed.",
            "win11 monday",
        ),
        "redefine": Told(
            "Make libvirt list a checkpoint as a definition says. Bitmaps are not made; --validate proves them.",
            "win11 monday.xml --validate",
        ),
        "delete": Told(
            "Delete a checkpoint with its bitmaps, whether the VM runs or is off. "
            "What hangs from it hangs from its parent.",
            "win11 monday --children",
        ),
        "export": Told("Write the definitions of all checkpoints of a VM to one file.", "win11 win11-checkpoints.json"),
        "import": Told(
            "Make libvirt list all checkpoints of a file, or change nothing. Bitmaps are not made.",
            "win11 win11-checkpoints.json --validate",
        ),
    },
)


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


_WORDING.register(app, *VERBS)
moment_health.register_for_checkpoints(app)
