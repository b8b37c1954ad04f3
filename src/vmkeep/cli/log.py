"""`vmkeep log`: what was done, of which VM, by which choices, and how it ended."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_vm
from vmkeep.cli.console import time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.cli.tables import Table
from vmkeep.errors import PointNotFound

if TYPE_CHECKING:
    from vmkeep.catalog import Catalog, Operation


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("log", short_help="Show what was done, and how it ended.", epilog="Example: vmkeep log win11")(log)


def log(
    context: typer.Context,
    vm: Annotated[
        str | None,
        typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm, show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Show the last N operations.")] = 50,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show what was done: backups, restores and snapshots, newest last, with their choices and how they ended."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        shown = _chosen(running, vm, limit)
        if running.console.json:
            running.console.document({"operations": shown})
            return
        columns = ("time", "operation", "VM", "result", "seconds", "choices", "why")
        rows = [
            (
                time_text(entry["started"]),
                entry["kind"],
                vm_name(running.premises.catalog, entry["vm"], entry["request"]),
                entry["state"],
                "" if entry["seconds"] is None else f"{entry['seconds']:.1f}",
                ", ".join(_choices(entry)),
                (entry["error"] or {}).get("message") or "",
            )
            for entry in shown
        ]
        shown_table = Table(
            columns=columns,
            rows=rows,
            right=("seconds",),
            texts={"choices": 12},
            drop=("seconds",),
            names={"VM": 12},
            sentences=True,
        )
        running.console.show(shown_table if rows else "no operations")


def _chosen(running: Session, vm: str | None, limit: int) -> list[dict[str, Any]]:
    from vmkeep.flows.show_operations import operations_of

    catalog = running.premises.catalog
    operations = operations_of(catalog, vm)
    makers = catalog.makers()
    return [_entry(operation, running, makers) for operation in reversed(operations[:limit])]


def _entry(operation: Operation, running: Session, makers: Mapping[str, Mapping[str, str | None]]) -> dict[str, Any]:
    from vmkeep.flows.show_operations import seconds_of, standing_of

    return {
        "id": operation.id,
        "kind": operation.kind,
        "vm": operation.vm,
        "state": standing_of(running.settings, operation),
        "started": operation.started,
        "finished": operation.finished,
        "seconds": seconds_of(operation),
        "request": dict(operation.request),
        "error": None if operation.error is None else dict(operation.error),
        # Of the point that was made, or that was restored.
        "made_by": makers.get(operation.id) or makers.get(operation.request.get("point") or ""),
    }


def vm_name(catalog: Catalog, vm: str | None, request: Mapping[str, Any]) -> str:
    """Return the VM's name: `backup --all` asks by UUID, and a restore to files names a point only."""
    if vm is None:
        point = request.get("point")
        try:
            return "" if point is None else catalog.find_point(point).vm_name
        except PointNotFound:
            return ""
    named = catalog.vm(vm)
    return vm if named is None else named.name


def _choices(entry: Mapping[str, Any]) -> list[str]:
    trust = None if entry["made_by"] is None else entry["made_by"]["trust"]
    maker = [] if trust in (None, "own") else [f"maker={trust}"]
    return [*choices(entry["request"]), *maker]


def choices(request: Mapping[str, Any]) -> list[str]:
    """Return what was chosen, as words. The VM is left out, which has a place of its own."""
    chosen = ((name, value) for name, value in request.items() if value not in (None, False, "", [], {}))
    return [_plain(name, value) for name, value in chosen if name != "vm"]


def _plain(name: str, value: object) -> str:
    """Return a choice as words: "full", "labels.why=update", "exclude=vda,vdb"."""
    if value is True:
        return name
    if isinstance(value, Mapping):
        return ", ".join(_plain(f"{name}.{key}", each) for key, each in value.items())
    if isinstance(value, list) and all(isinstance(each, Mapping) and "points" in each for each in value):
        return f"{name}=" + ", ".join(f"{len(each['points'])} of {each['vm']}" for each in value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return f"{name}={','.join(value)}"
    if isinstance(value, str):
        text = " ".join(value.split()) if "\n" in value else value  # a document
        return f"{name}={text}"
    return f"{name}={json_text.dumps(value, ensure_ascii=False)}"
