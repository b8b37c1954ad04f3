"""`vmkeep snapshot`: libvirt's snapshots of a VM, with the options of virsh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli import moment_health, moments, snapshot_create, snapshot_revert
from vmkeep.cli.completion import complete_snapshot
from vmkeep.cli.moment_options import SecurityOption, VmArgument
from vmkeep.cli.moment_verbs import VERBS, Told, Wording
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
_WORDING = Wording(
    kind="snapshot",
    kept="images and files stay as they are",
    told={
        "list": Told("List the snapshots of a VM by name.", "win11 --external --leaves"),
        "tree": Told("Draw how the snapshots of a VM hang from each other; the same as list --tree.", "win11"),
        "info": Told("Show what is known of a snapshot.", "win11 --current"),
        "parent": Told("Print the name of a snapshot's parent.", "win11 --current"),
        "dumpxml": Told("Print the definition of a snapshot as libvirt has it.", "win11 monday"),
        "edit": Told(
            "Edit the definition of a snapshot with VISUAL or EDITOR. What it holds of the disks keeps its old name.",
            "win11 monday --rename",
        ),
        "redefine": Told(
            "Make libvirt list a snapshot as a definition says. Disks are not touched.",
            "win11 monday.xml --current",
        ),
        "delete": Told(
            "Delete a snapshot with what it holds. What hangs from it hangs from its parent.",
            "win11 monday --children",
        ),
        "export": Told("Write the definitions of all snapshots of a VM to one file.", "win11 win11-snapshots.json"),
        "import": Told(
            "Make libvirt list all snapshots of a file, or change nothing. Disks are not touched.",
            "win11 win11-snapshots.json",
        ),
    },
)
# Those that ask after one are before `current` in the help, those that write or change one behind it.
_LOOKING = ("list", "tree", "info", "parent")


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


def _kind() -> MomentKind:
    """Imported when a command runs: the other commands start without it."""
    from vmkeep.moments import MomentKind

    return MomentKind.SNAPSHOT


_WORDING.register(app, *_LOOKING)
app.command("current", epilog="Example: vmkeep snapshot current win11 --name")(current_snapshot)
_WORDING.register(app, *(verb for verb in VERBS if verb not in _LOOKING))
snapshot_create.register(app)
snapshot_revert.register(app)
moment_health.register_for_snapshots(app)
