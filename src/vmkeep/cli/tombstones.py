"""`vmkeep tombstones`: what must still be deleted on hosts, tried again or let be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.console import time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.tables import Table

if TYPE_CHECKING:
    from vmkeep.custody.tombstones import Tombstone
    from vmkeep.flows.tombstones import TombstoneTried

_ID_DIGITS = 8

app = typer.Typer(
    short_help="What could not be deleted on a host, and must be.",
    help="What a removed TPM left on a host because it could not be deleted: files of its state, libvirt's secret.",
    epilog="Example: vmkeep tombstones list",
    rich_markup_mode=None,
)


@app.command("list", epilog="Example: vmkeep tombstones list --all")
def list_tombstones(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Also those on which nothing is to be done any more.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show what must still be deleted, on which host, since when and what protects it until then."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        catalog = running.premises.catalog
        found = catalog.tombstones() if every else catalog.open_tombstones()
        if running.console.json:
            running.console.document({"tombstones": [tombstone_document(each) for each in found]})
            return
        if not found:
            running.console.show("nothing is left to be deleted")
            return
        rows = [
            (
                each.id[:_ID_DIGITS],
                each.vm_name,
                each.host_name,
                _state(each),
                time_text(each.since),
                str(each.tries),
                "; ".join(each.paths),
            )
            for each in found
        ]
        columns = ("id", "VM", "host", "state", "since", "tries", "what")
        table = Table(columns=columns, rows=rows, right=("tries",), drop=("tries",))
        running.console.show(table, *(sentence for each in found for sentence in _remarks(each)))


@app.command("retry", epilog="Example: vmkeep tombstones retry --all")
def retry(
    context: typer.Context,
    tombstones: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="The id of a tombstone, or 8 digits of it.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of this host.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Delete what could not be deleted before, as long as it is what it was."""
    from vmkeep.errors import InvalidRequest, OperationFailed, VmkeepError
    from vmkeep.flows.removals import store_deletions
    from vmkeep.flows.tombstones import find_tombstones, retry_tombstones

    if bool(tombstones) == every:
        raise InvalidRequest(
            "name what is to be tried again, or give --all", hint="`vmkeep tombstones list` shows what is left."
        )
    with session(context, json=json, connect=connect, debug=debug) as running:
        console, premises = running.console, running.premises
        with running.host() as host:
            chosen = find_tombstones(premises.catalog, host, tombstones or (), every=every)
            tried = retry_tombstones(
                premises.catalog, host, chosen, lambda each: None if console.json else console.show(*_told(each))
            )
        try:
            store_deletions(premises.catalog, premises.repository, lambda told: console.notice(f"warning: {told}"))
        except VmkeepError as error:
            console.notice(f"warning: that could not be noted in the repository yet: {error.message}")
        if console.json:
            console.document({"tried": [_tried_document(each) for each in tried]})
        elif not tried:
            console.show("nothing is left to be deleted on this host")
        left = [each.tombstone for each in tried if each.tombstone.is_open]
        if left:
            raise OperationFailed(
                f"{len(left)} of {len(tried)} could not be deleted: {left[0].last_error}",
                vm=left[0].vm_name,
                path=left[0].paths[0],
                hint="`vmkeep tombstones list` shows what is left; `vmkeep tombstones waive` lets one be.",
            )


@app.command("waive", epilog='Example: vmkeep tombstones waive 1f3a5c77 --yes --reason "the disk was shredded"')
def waive(
    context: typer.Context,
    tombstone: Annotated[str, typer.Argument(metavar="ID", help="The id of a tombstone, or 8 digits of it.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded, and signed.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Say that something stays, or was dealt with otherwise: it is not tried again. Who said so is recorded."""
    from vmkeep.cli.people import who_asks
    from vmkeep.custody.tombstones import told_of_protection
    from vmkeep.errors import InvalidRequest, VmkeepError
    from vmkeep.flows.removals import store_deletions
    from vmkeep.flows.tombstones import the_tombstone, waive_tombstone

    if not reason.strip():
        raise InvalidRequest("--reason is empty", hint="Say why nothing needs to be deleted.")
    with session(context, json=json, connect=connect, debug=debug) as running:
        console, premises = running.console, running.premises
        known = the_tombstone(premises.catalog, tombstone)
        console.confirm(
            f"Let {'; '.join(known.paths)} of VM {known.vm_name!r} on host {known.host_name} be "
            f"({told_of_protection(known.protection)})? It is not tried again.",
            yes=yes,
        )
        waived = waive_tombstone(premises.catalog, known.id, who_asks(), reason)
        try:
            store_deletions(premises.catalog, premises.repository, lambda told: console.notice(f"warning: {told}"))
        except VmkeepError as error:
            console.notice(f"warning: that could not be noted in the repository yet: {error.message}")
        if console.json:
            console.document({"waived": tombstone_document(waived)})
        else:
            console.show(f"{waived.id[:_ID_DIGITS]} is waived by {waived.who}: {waived.why}")


def tombstone_document(each: Tombstone) -> dict[str, Any]:
    """Return a tombstone as JSON has it."""
    return {
        "id": each.id,
        "kind": str(each.kind),
        "state": str(each.state),
        "vm": each.vm_name,
        "vm_uuid": each.vm_uuid,
        "host": each.host_name,
        "host_uuid": each.host_uuid,
        "removal": each.origin,
        "place": each.place,
        "files": [
            {
                "path": file.path,
                "sha256": file.sha256 or None,
                "size_bytes": file.size_bytes,
                "version": file.version_id or None,
                "why": file.why or None,
            }
            for file in each.files
        ],
        "protection": str(each.protection),
        "secret": each.secret or None,
        "since": each.since,
        "tries": each.tries,
        "last_at": each.last_at,
        "last_error": each.last_error or None,
        "ended": each.ended,
        "ending": str(each.ending) or None,
        "who": each.who or None,
        "why": each.why or None,
    }


def _tried_document(tried: TombstoneTried) -> dict[str, Any]:
    return {"removed": list(tried.removed), "tombstone": tombstone_document(tried.tombstone)}


def _state(each: Tombstone) -> str:
    return str(each.ending or each.state)


def _remarks(each: Tombstone) -> list[str]:
    from vmkeep.custody.tombstones import told_of_protection

    name = f"{each.id[:_ID_DIGITS]}: "
    if each.state == "waived":
        return [f"{name}waived {time_text(each.ended or '')} by {each.who}: {each.why}"]
    if not each.is_open:
        return []
    told = [f"{name}{told_of_protection(each.protection)}"]
    return [*told, f"{name}{each.last_error}"] if each.last_error else told


def _told(tried: TombstoneTried) -> list[str]:
    each = tried.tombstone
    told = [f"deleted: {path}" for path in tried.removed]
    if each.is_open:
        return [*told, f"{each.id[:_ID_DIGITS]} stays: {each.last_error}"]
    words = {
        "gone": "it was gone already",
        "superseded": "it is needed again, and stays",
        "deleted": "all of it is gone",
    }
    return [*told, f"{each.id[:_ID_DIGITS]} is settled: {words[each.ending]}"]
