"""`vmkeep log`: what was done, of which VM, by which choices, and how it ended."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_vm
from vmkeep.cli.console import time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.cli.tables import Table
from vmkeep.errors import PointNotFound, VmNotFound

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
                _name(running.premises.catalog, entry),
                entry["state"],
                "" if entry["seconds"] is None else f"{entry['seconds']:.1f}",
                ", ".join(_plain(name, value) for name, value in _choices(entry)),
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
    catalog = running.premises.catalog
    operations = catalog.operations()
    if vm is not None:
        named, points = _meant(catalog, vm)
        operations = tuple(
            operation for operation in operations if operation.vm in named or operation.request.get("point") in points
        )
        if not operations and len(named) == 1:
            raise VmNotFound(f"Nothing was ever done with a VM {vm!r}", vm=vm, hint="`vmkeep log` shows everything.")
    makers = catalog.makers()
    return [_entry(operation, running, makers) for operation in reversed(operations[:limit])]


def _meant(catalog: Catalog, vm: str) -> tuple[set[str], set[str]]:
    """Return the names and UUIDs that mean the VM, and its points: a restore to files names only its point."""
    uuids = catalog.vms_named(vm)
    names: Iterator[str] = (known.name for uuid in uuids if (known := catalog.vm(uuid)) is not None)
    points = {summary["id"] for summary in catalog.summaries(vm)} if uuids else set()
    return {vm, *uuids, *names}, points


def _entry(operation: Operation, running: Session, makers: Mapping[str, Mapping[str, str | None]]) -> dict[str, Any]:
    from vmkeep.flows.check_up import owner_lives

    state = str(operation.state)
    if operation.finished is None and not owner_lives(running.settings, operation.owner):
        state = "interrupted"
    seconds = None
    if operation.finished is not None:
        seconds = _moment(operation.finished).timestamp() - _moment(operation.started).timestamp()
    return {
        "id": operation.id,
        "kind": operation.kind,
        "vm": operation.vm,
        "state": state,
        "started": operation.started,
        "finished": operation.finished,
        "seconds": None if seconds is None else round(seconds, 3),
        "request": dict(operation.request),
        "error": None if operation.error is None else dict(operation.error),
        # Of the point that was made, or that was restored.
        "made_by": makers.get(operation.id) or makers.get(operation.request.get("point") or ""),
    }


def _name(catalog: Catalog, entry: dict[str, Any]) -> str:
    """Return the VM's name: `backup --all` asks by UUID, and a restore to files names a point only."""
    if entry["vm"] is None:
        point = entry["request"].get("point")
        try:
            return "" if point is None else catalog.find_point(point).vm_name
        except PointNotFound:
            return ""
    named = catalog.vm(entry["vm"])
    return entry["vm"] if named is None else named.name


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _choices(entry: dict[str, Any]) -> list[tuple[str, object]]:
    """Leave out what was not chosen, and the VM, which has a column of its own."""
    request = entry["request"].items()
    chosen = [(name, value) for name, value in request if name != "vm" and value not in (None, False, "", [], {})]
    trust = None if entry["made_by"] is None else entry["made_by"]["trust"]
    return chosen if trust in (None, "own") else [*chosen, ("maker", trust)]


def _plain(name: str, value: object) -> str:
    """Return a choice as words: "full", "labels.why=update", "exclude=vda,vdb"."""
    if value is True:
        return name
    if isinstance(value, Mapping):
        return ", ".join(_plain(f"{name}.{key}", each) for key, each in value.items())
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return f"{name}={','.join(value)}"
    if isinstance(value, str):
        text = " ".join(value.split()) if "\n" in value else value  # a document
        return f"{name}={text}"
    return f"{name}={json_text.dumps(value, ensure_ascii=False)}"
