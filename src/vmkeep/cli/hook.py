"""`vmkeep hook`: libvirt's hook that lets no VM start with a lost or an older TPM, or such UEFI variables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli.completion import complete_vm
from vmkeep.cli.console import time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.tables import Table
from vmkeep.custody.gate import GatePolicy

if TYPE_CHECKING:
    from vmkeep.host.tasks.gate import GateStatus

app = typer.Typer(
    short_help="The gate: no start with a lost or older TPM.",
    help="The gate: a hook of libvirt's that lets no VM start with a TPM or UEFI variables that are lost or an older "
    "version.",
    epilog="Example: vmkeep hook install",
    rich_markup_mode=None,
)


@app.command(epilog="Example: vmkeep hook install")
def install(
    context: typer.Context,
    refuse_unsure: Annotated[
        bool | None,
        typer.Option(
            "--refuse-when-unsure/--allow-when-unsure",
            help="Whether a VM is kept from starting also when the gate cannot read what it goes by. "
            "[default: as it is; at first it starts]",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Make the gate, for all VMs of which state is kept; or make it anew, after an upgrade."""
    from vmkeep.flows.gate import install_hook

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            made = install_hook(running.premises.catalog, host, refuse_unsure=refuse_unsure)
        if running.console.json:
            running.console.document({"installed": asdict(made)})
            return
        running.console.show(f"the gate stands: {made.hook}")
        if not made.told:
            running.console.notice(
                "warning: no libvirtd or virtqemud was found to be told of it: run `systemctl reload libvirtd` (or "
                "virtqemud); VMs go on"
            )


@app.command(epilog="Example: vmkeep hook remove")
def remove(
    context: typer.Context, json: JsonOption = False, connect: ConnectOption = None, debug: DebugOption = False
) -> None:
    """Take the gate away. Every VM may start then."""
    from vmkeep.flows.gate import remove_hook

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            removed = remove_hook(host)
        if running.console.json:
            running.console.document({"removed": removed})
        else:
            running.console.show("the gate is gone" if removed else "there was no gate")


@app.command(epilog="Example: vmkeep hook status")
def status(
    context: typer.Context, json: JsonOption = False, connect: ConnectOption = None, debug: DebugOption = False
) -> None:
    """Show whether the gate stands, and what it said last of each VM."""
    from vmkeep.flows.gate import look_at_gate

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            found = look_at_gate(host)
        if running.console.json:
            running.console.document({"gate": asdict(found)})
            return
        names = {vm.uuid: vm.name for vm in running.premises.catalog.vms()}
        rows = [(said.vm, time_text(said.when), said.verdict, said.why) for said in found.said]
        table = Table(columns=("VM", "asked", "verdict", "why"), rows=rows, drop=("asked",))
        running.console.show(*_sentences(found, names), *([table] if rows else []))


@app.command(epilog="Example: vmkeep hook policy win11 warn")
def policy(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    word: Annotated[
        GatePolicy, typer.Argument(metavar="POLICY", help="strict (as without), warn (only the log tells), or off.")
    ],
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Say what the gate does about a VM whose state is lost or older."""
    from vmkeep.flows.gate import set_gate_policy

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            set_gate_policy(host, vm, word)
        if running.console.json:
            running.console.document({"vm": vm, "policy": str(word)})
        else:
            running.console.show(f"the gate is {word} for {vm}")


@app.command("pass", epilog="Example: vmkeep hook pass win11")
def let_pass(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Let a VM start once with the state that it has, or with a blank one, within ten minutes."""
    from vmkeep.flows.gate import let_start

    with session(context, json=json, connect=connect, debug=debug) as running:
        running.console.confirm(
            f"Let VM {vm!r} start once with whatever state lies there, or a blank one? What its guest sealed to "
            "another TPM state does not open then.",
            yes=yes,
        )
        with running.host() as host:
            seconds = let_start(host, vm)
        if running.console.json:
            running.console.document({"vm": vm, "seconds": seconds})
        else:
            running.console.show(f"{vm} may start once within {seconds / 60:.0f} minutes")


def _sentences(found: GateStatus, names: dict[str, str]) -> list[str]:
    if found.hook is None:
        return ["there is no gate: `vmkeep hook install` makes it"]
    told = [f"the gate stands: {found.hook}", f"it knows state of {found.gated} VM{'s' if found.gated != 1 else ''}"]
    if found.refuses_unsure:
        told.append("it starts no VM when it cannot read what it goes by")
    told += [f"it is {policy} for {names.get(uuid, uuid)}" for uuid, policy in sorted(found.policies.items())]
    if found.problem is not None:
        told.append(f"it does not do its work: {found.problem}; `vmkeep hook install` makes it anew")
    if not found.said:
        told.append("libvirt has not asked it yet")
    return told
