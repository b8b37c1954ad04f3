"""`vmkeep vm`: the host's VMs, and whether a point of each would be complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli import vm_clone
from vmkeep.cli.completion import complete_vm
from vmkeep.cli.console import size_text, time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.tables import Facts, Table

if TYPE_CHECKING:
    from vmkeep.catalog import Catalog
    from vmkeep.host.tasks.survey import SurveyedVm

app = typer.Typer(
    short_help="The VMs of the host, and whether a point would hold all of them.",
    help="The VMs of the host: disks, firmware, TPM, last point, and whether a point would be complete.",
    epilog="Example: vmkeep vm list",
    rich_markup_mode=None,
)


@app.command("list", epilog="Example: vmkeep vm list")
def list_vms(
    context: typer.Context,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List the VMs of the host."""
    from vmkeep.host.tasks.survey import LookAtVms

    with session(context, json=json, connect=connect, debug=debug) as running:
        catalog = running.premises.catalog
        with running.host() as host:
            vms = [_described(vm, catalog) for vm in host.ask(LookAtVms())]
        if running.console.json:
            running.console.document({"vms": vms})
            return
        columns = ("VM", "state", "disks", "firmware", "TPM", "last point", "complete")
        rows = [
            (
                vm["name"],
                vm["state"],
                ", ".join(disk["target"] for disk in vm["disks"]) or "none",
                vm["firmware"],
                vm["tpm"] or "none",
                time_text(vm["last_point"]["created"]) if vm["last_point"] else "never",
                "yes" if vm["complete"] else "no",
            )
            for vm in vms
        ]
        if not rows:
            running.console.show("no VMs")
            return
        drop = ("firmware", "TPM")
        why = [f"{vm['name']}: {problem}" for vm in vms for problem in vm["problems"]]
        why += [
            f"{vm['name']}: skipped by `vmkeep backup --all`" + (f" ({vm['reason']})" if vm["reason"] else "")
            for vm in vms
            if vm["skip"]
        ]
        running.console.show(Table(columns=columns, rows=rows, texts={"disks": 10}, drop=drop), *why)


@app.command("show", epilog="Example: vmkeep vm show win11")
def show_vm(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show one VM, and if a point of it would not be complete, why."""
    from vmkeep.host.tasks.survey import LookAtVm

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            found = host.ask(LookAtVm(vm))
        shown = _described(found, running.premises.catalog)
        if running.console.json:
            running.console.document({"vm": shown})
            return
        last = shown["last_point"]
        facts = [
            ("VM", f"{found.name} ({found.uuid})"),
            ("state", found.state),
            ("firmware", found.firmware),
            ("NVRAM", found.nvram or "none"),
            ("TPM", found.tpm or "none"),
            ("last point", f"{last['id']}, {time_text(last['created'])}" if last else "never"),
            ("complete", "yes" if found.complete else "no"),
            *(("problem", problem) for problem in found.problems),
            *([("skipped", "by `vmkeep backup --all`")] if found.skip else []),
            *([("reason", found.reason)] if found.reason else []),
            *([("clone of", f"{found.clone_of} ({found.clone_of_uuid})")] if found.clone_of_uuid else []),
        ]
        disks = [
            (
                disk.target,
                disk.device,
                disk.format or "",
                size_text(disk.size_bytes),
                disk.source or "no medium",
                disk.problem or disk.read_whole or "",
            )
            for disk in found.disks
        ]
        columns = ("disk", "device", "format", "size", "source", "problem")
        running.console.show(Facts(facts), "", Table(columns=columns, rows=disks, right=("size",), sentences=True))


@app.command("forget", epilog="Example: vmkeep vm forget win11")
def forget(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="A name that it had, or its UUID.")],
    days: Annotated[
        int, typer.Option("--days", metavar="N", help="For how long versions of its state stay.", min=0, max=36_500)
    ] = 90,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Say that a VM is gone for good: TPM state and UEFI variables that no point holds are kept for a term only."""
    from vmkeep.flows.forget_vm import forget_vm

    with session(context, json=json, connect=connect, debug=debug) as running:
        running.console.confirm(
            f"Keep what no point holds of the TPM state and the UEFI variables of VM {vm!r} for {days} days only? Its "
            "points stay.",
            yes=yes,
        )
        with running.host() as host:
            forgotten = forget_vm(running.premises, host, vm, days)
        if running.console.json:
            running.console.document({"forgotten": asdict(forgotten)})
            return
        stays = f"{_counted(forgotten.versions, 'version')} of its state until {time_text(forgotten.until)}"
        if forgotten.points:
            stays += f", and for good what its {_counted(forgotten.points, 'point')} hold"
        running.console.show(f"{forgotten.vm}: kept are {stays}")


vm_clone.register(app)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _described(vm: SurveyedVm, catalog: Catalog) -> dict[str, Any]:
    newest = catalog.newest_made(vm.uuid)
    last: Mapping[str, Any] | None = None
    if newest is not None:
        last = {"id": newest.id, "created": newest.created, "kind": newest.kind}
    described = asdict(vm)
    return {**described, "disks": list(described["disks"]), "problems": list(vm.problems), "last_point": last}
