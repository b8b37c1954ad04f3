"""`vmkeep host`: the installations that sign points in the repository, which are trusted, and the hosts of a fleet."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vmkeep.catalog import KnownHostKey, Trust
from vmkeep.cli import fleet_hosts
from vmkeep.cli.completion import complete_host_key
from vmkeep.cli.console import time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.cli.tables import Table

app = typer.Typer(
    short_help="The hosts that sign points, and those of a fleet.",
    help="The installations that sign points in the repository and which of them are trusted here; hosts of a fleet.",
    epilog="Example: vmkeep host list",
    rich_markup_mode=None,
)
fleet_hosts.register(app)
KeysArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="FINGERPRINT",
        help="The fingerprint of its key, or 8 characters of it or more.",
        autocompletion=complete_host_key,
    ),
]


@app.command("list", epilog="Example: vmkeep host list")
def list_hosts(
    context: typer.Context,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List the installations that sign points here, this one among them, as they were met; and the hosts of a fleet."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        _look(running)
        hosts, members = _described(running), fleet_hosts.described(running)
        if running.console.json:
            running.console.document({"hosts": hosts, "fleet": members})
            return
        if members:
            running.console.show(fleet_hosts.table(members))
        if not hosts and members:
            return
        if not hosts:
            running.console.show("no hosts: the first point makes the key of this one")
            return
        columns = ("key", "host", "installation", "trust", "points", "met")
        rows = [
            (
                host["fingerprint"],
                host["host"],
                host["installation"][:8],
                host["trust"],
                str(host["points"]),
                time_text(host["met"]),
            )
            for host in hosts
        ]
        table = Table(columns=columns, rows=rows, right=("points",), drop=("met", "installation"), names={"host": 12})
        running.console.show(table, *_remarks(hosts))


@app.command("trust", epilog="Example: vmkeep host trust 3f2a9c01d5e877b640cbd5b0f4a81e22")
def trust(
    context: typer.Context,
    keys: KeysArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Trust the points of a host as if they were made here. Compare the whole fingerprint with what it says itself."""
    _decide(context, keys, Trust.TRUSTED, json=json, connect=connect, debug=debug)


@app.command("distrust", epilog="Example: vmkeep host distrust 3f2a9c01d5e877b640cbd5b0f4a81e22")
def distrust(
    context: typer.Context,
    keys: KeysArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Shut a host out: its points are restored as data only, when they are named by their ids, and never otherwise."""
    _decide(context, keys, Trust.DISTRUSTED, json=json, connect=connect, debug=debug)


@app.command("renew", epilog="Example: vmkeep host renew --yes")
def renew(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Make this home an installation of its own, with a new key: after it was copied, or its key was stolen."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        running.console.confirm(
            "Sign points with a new key from now on, as another installation? Other hosts must trust it then.", yes=yes
        )
        from vmkeep.flows.own_key import renew_own_key

        key = renew_own_key(running.settings, running.premises.catalog)
        if running.console.json:
            running.console.document({"host": _only(_described(running), {key.fingerprint})[0]})
        else:
            running.console.show(f"this installation is {key.installation} now, and signs with key {key.fingerprint}")


def _decide(
    context: typer.Context, keys: list[str], decision: Trust, *, json: bool, connect: str | None, debug: bool
) -> None:
    with session(context, json=json, connect=connect, debug=debug) as running:
        _look(running)
        catalog = running.premises.catalog
        for text in keys:
            catalog.host_key(text)  # all of them, before anything is changed
        decided = {catalog.trust_host(text, decision).fingerprint for text in keys}
        hosts = _only(_described(running), decided)
        if running.console.json:
            running.console.document({"hosts": hosts})
            return
        for host in hosts:
            points = "1 point" if host["points"] == 1 else f"{host['points']} points"
            running.console.show(
                f"host {host['host']}, key {host['fingerprint']}: {host['trust']}; {points} known here"
            )


def _look(running: Session) -> None:
    from vmkeep.flows.hosts import look_for_hosts

    unasked = look_for_hosts(running.premises, running.console.note)
    if unasked is not None:
        running.console.notice(f"warning: the repository could not be asked for its hosts: {unasked}")


def _described(running: Session) -> list[dict[str, Any]]:
    from vmkeep.flows.hosts import former_key

    catalog = running.premises.catalog
    keys, points = catalog.host_keys(), catalog.points_of_host_keys()
    return [_host(key, former_key(key, keys), points.get(key.fingerprint, 0)) for key in keys]


def _host(key: KnownHostKey, former: str | None, points: int) -> dict[str, Any]:
    return {
        "fingerprint": key.fingerprint,
        "key": key.key,
        "host": key.host,
        "installation": key.installation,
        "trust": str(key.trust),
        "points": points,
        "met": key.seen_at,
        "former": former,
        "copied_to": key.copied_to,
    }


def _only(hosts: list[dict[str, Any]], fingerprints: set[str]) -> list[dict[str, Any]]:
    return [host for host in hosts if host["fingerprint"] in fingerprints]


def _remarks(hosts: list[dict[str, Any]]) -> list[str]:
    """Say below the table what nobody must overlook."""
    told = [
        f"{host['fingerprint']}: installation {host['installation'][:8]} signed with {host['former']} before"
        for host in hosts
        if host["former"] is not None and host["trust"] not in (Trust.OWN, Trust.TRUSTED)
    ]
    told += [
        f"{host['fingerprint']}: a copy of this home was at work on host {host['copied_to']} (`vmkeep doctor`)"
        for host in hosts
        if host["copied_to"] is not None
    ]
    return told
