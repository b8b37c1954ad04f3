"""`vmkeep key recipients`: whose keys open the repository."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli.console import time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.cli.tables import Table
from vmkeep.errors import InvalidRequest

if TYPE_CHECKING:
    from vmkeep.flows.change_recipients import Recipients

app = typer.Typer(
    short_help="Whose keys open the repository.",
    help="Whose keys open the repository: each of them opens all of it.",
    epilog="Example: vmkeep key recipients list",
    rich_markup_mode=None,
)
KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Another key than the one in use, by its id.", show_default=False),
]


@app.command("list", epilog="Example: vmkeep key recipients list")
def list_recipients(
    context: typer.Context,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List the keys that open the repository, and which of them are at hand."""
    from vmkeep.flows.show_keys import shown_keys

    with session(context, json=json, connect=connect, debug=debug) as running:
        shown = [each for each in shown_keys(running.premises, ask=False) if each.recipient]
        if running.console.json:
            recipients = [{**asdict(each), "at_hand": each.at_hand} for each in shown]
            running.console.document({"recipients": recipients})
            return
        rows = [
            (
                each.key,
                each.kind,
                each.name or "-",
                "in use" if each.in_use else "yes" if each.at_hand else "no",
                time_text(each.since) if each.since else "-",
            )
            for each in shown
        ]
        running.console.show(Table(columns=("key", "kind", "name", "at hand", "since"), rows=rows, drop=("since",)))


@app.command("add", epilog="Example: vmkeep key recipients add vault")
def add(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME|KEY", help="A key that is at hand, as `vmkeep key providers` lists it."),
    ] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make a key file and add that.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Let another key open the repository too: what is there, and what is written from now on."""
    from vmkeep.flows.change_recipients import add_recipient

    if new_key == (name is not None):
        raise InvalidRequest("Name a key, or give --new-key", hint="`vmkeep key providers` lists those at hand.")
    with session(context, json=json, connect=connect, debug=debug) as running:
        told_of_change(running, add_recipient(running.premises, name))


@app.command("remove", epilog="Example: vmkeep key recipients remove 61cf383c --new-data-key --yes")
def remove(
    context: typer.Context,
    recipient: Annotated[str, typer.Argument(metavar="KEY", help="Its id, 8 characters of it, or its name.")],
    new_data_key: Annotated[
        bool, typer.Option("--new-data-key", help="Also seal what is written from now on with a new data key.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Let a key open the repository no longer. What it has opened so far it may open for ever."""
    from vmkeep.flows.change_recipients import recipient_named, remove_recipient

    with session(context, json=json, connect=connect, debug=debug) as running:
        key_id = recipient_named(running.premises, recipient)
        still = "what is stored so far" if new_data_key else "all data, that of later points too (--new-data-key)"
        running.console.confirm(
            f"Remove key {key_id}? Copies of it, on paper and on other hosts, serve vmkeep no longer. But it goes on "
            f"opening earlier generations of the keyring, which stay: who has it and the storage reads {still}.",
            yes=yes,
        )
        told_of_change(running, remove_recipient(running.premises, key_id, new_data_key=new_data_key))


def told_of_change(running: Session, done: Recipients) -> None:
    """Say what was changed, and what is to be done about it."""
    if running.console.json:
        running.console.document({"keyring": asdict(done)})
        return
    told = []
    if done.added:
        told.append(f"key {done.added} opens the repository from now on")
    if done.path:
        told.append(f"it is {done.path}; keep a copy elsewhere: vmkeep key export --key {done.added}")
    if done.removed:
        told.append(f"key {done.removed} opens no later keyring; earlier ones, and what they open, it still does")
    if done.new_data_key:
        told.append("what is written from now on is sealed with a new data key")
    running.console.show(*told)
