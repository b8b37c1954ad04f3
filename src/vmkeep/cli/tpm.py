"""`vmkeep tpm`: the virtual TPMs of VMs."""

from __future__ import annotations

from typing import Annotated

import typer

from vmkeep.cli.completion import complete_vm
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.state import PointOption, YesOption, put_back
from vmkeep.cli.state_show import Kind, VersionOption

app = typer.Typer(
    short_help="The virtual TPMs of VMs.",
    help="The virtual TPMs of VMs. What is kept of them is shown by `vmkeep state`.",
    epilog="Example: vmkeep tpm restore win11",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.callback()
def group() -> None:
    """The virtual TPMs of VMs."""


@app.command("restore", epilog="Example: vmkeep tpm restore win11 --version 3")
def restore(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    version: VersionOption = None,
    point: PointOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Put kept TPM state back in place of what a VM has now, as `vmkeep state restore --kind tpm`."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        put_back(running, vm, Kind.TPM, version, point, yes=yes)
