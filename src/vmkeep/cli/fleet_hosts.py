"""`vmkeep host invite|show|revoke|rename|forget`: who is a host of the fleet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vmkeep.cli.console import time_text
from vmkeep.cli.people import who_asks
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.cli.tables import Facts, Table
from vmkeep.errors import InvalidRequest
from vmkeep.spans import span_seconds

if TYPE_CHECKING:
    from vmkeep.flows.registrar import Registrar
    from vmkeep.identity.hosts import HostIdentity

_MOST_SECONDS: Final = 30 * 86_400
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="The name or the id of a host of the fleet.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    app.command("invite", epilog="Example: vmkeep host invite alpha --for 1h")(invite)
    app.command("show", epilog="Example: vmkeep host show alpha")(show)
    app.command("revoke", epilog="Example: vmkeep host revoke alpha --yes")(revoke)
    app.command("rename", epilog="Example: vmkeep host rename alpha beta")(rename)
    app.command("forget", epilog="Example: vmkeep host forget alpha --yes")(forget)


def invite(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the host shall be called.")],
    span: Annotated[
        str, typer.Option("--for", metavar="LENGTH", help="How long the token counts, 30d at most.")
    ] = "24h",
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="HOST:PORT",
            help="Where the host reaches the server; else as settings say.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Let a host become one of the fleet: print a token, once, for `vmkeep agent enrol` on that host."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        seconds = span_seconds(span)
        if seconds is None or not 0 < seconds <= _MOST_SECONDS:
            raise InvalidRequest(f"{span!r} is no length of time up to 30d", hint="Write it like 1h or 7d.")
        address = server or running.settings.server_address
        if not address:
            raise InvalidRequest(
                "It is not known where hosts reach the server",
                hint="Give --server HOST:PORT, or set server_address in vmkeep.toml.",
            )
        from vmkeep.agent.requests import split_address

        split_address(address)
        host, token = _registrar(running).invite(name, address, seconds, who_asks())
        if running.console.json:
            running.console.document({"host": _host(host, running), "token": token.text(), "until": host.invite_until})
            return
        running.console.text(f"{token.text()}\n")
        running.console.remark(
            f"on the host, until {time_text(host.invite_until)}: vmkeep agent enrol TOKEN. Whoever has the token can "
            f"become {host.name}, once; it is shown this once"
        )


def show(
    context: typer.Context,
    name: HostArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show a host of the fleet: its status, its certificates, and what was done about it."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        registrar = _registrar(running)
        host = registrar.named(name)
        events = registrar.events(host)
        told = _host(host, running)
        if running.console.json:
            done = [{"at": each.at, "what": each.what, "who": each.who, "serial": each.serial} for each in events]
            running.console.document({"host": {**told, "events": done}})
            return
        running.console.show(
            Facts(
                [
                    ("host", host.name),
                    ("id", host.id),
                    ("status", _status(told)),
                    ("changed", time_text(host.changed_at)),
                ]
            ),
            *_certificates(told["certificates"]),
            Table(
                columns=("at", "what", "who"),
                rows=[(time_text(each.at), each.what, each.who) for each in events],
                sentences=True,
            ),
        )


def revoke(
    context: typer.Context,
    name: HostArgument,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Shut a host out at once: none of its certificates counts any more, and an invite that is open is gone."""
    question = f"Shut host {name} out? It comes back by a new invite alone."
    _changed(context, question, lambda registrar: registrar.revoke(name, who_asks()), yes, json, connect, debug)


def rename(
    context: typer.Context,
    name: HostArgument,
    new_name: Annotated[str, typer.Argument(metavar="NAME", help="Its new name.")],
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Give a host another name. Its certificate goes on: a host is known by its id."""
    _changed(context, "", lambda registrar: registrar.rename(name, new_name, who_asks()), True, json, connect, debug)


def forget(
    context: typer.Context,
    name: HostArgument,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List a host no more, one that is revoked or never came, and free its name."""
    question = f"List host {name} no more?"
    _changed(context, question, lambda registrar: registrar.forget(name, who_asks()), yes, json, connect, debug)


def described(running: Session) -> list[dict[str, Any]]:
    """Return the hosts of the fleet for --json."""
    return [_host(host, running) for host in running.premises.catalog.host_identities()]


def table(hosts: Sequence[dict[str, Any]]) -> Table:
    """Return the hosts of the fleet for people."""
    rows = [
        (
            host["name"],
            _status(host),
            max((each["ends"] for each in host["certificates"]), default=""),
            host["changed_at"],
        )
        for host in hosts
    ]
    shown = [(name, status, time_text(ends) if ends else "-", time_text(at)) for name, status, ends, at in rows]
    return Table(columns=("host", "status", "certificate ends", "changed"), rows=shown, names={"host": 12})


def _changed(
    context: typer.Context,
    question: str,
    change: Callable[[Registrar], HostIdentity],
    yes: bool,
    json: bool,
    connect: str | None,
    debug: bool,
) -> None:
    with session(context, json=json, connect=connect, debug=debug) as running:
        if question:
            running.console.confirm(question, yes=yes)
        host = change(_registrar(running))
        if running.console.json:
            running.console.document({"host": _host(host, running)})
        else:
            running.console.show(f"host {host.name}: {host.status}")


def _registrar(running: Session) -> Registrar:
    from vmkeep.flows.registrar import Registrar

    return Registrar(running.settings, running.premises.catalog)


def _host(host: HostIdentity, running: Session) -> dict[str, Any]:
    now = running.premises.catalog.clock()
    return {
        "id": host.id,
        "name": host.name,
        "status": str(host.status),
        "changed_at": host.changed_at,
        "invited_until": host.invite_until if host.status == "invited" else None,
        "certificates": [
            {
                "serial": each.serial,
                "state": each.standing(now),
                "begins": each.begins,
                "ends": each.ends,
                "authority": each.authority,
            }
            for each in host.certificates
        ],
    }


def _status(host: dict[str, Any]) -> str:
    if host["invited_until"] is not None:
        return f"invited until {time_text(host['invited_until'])}"
    counting = [each["state"] for each in host["certificates"] if each["state"] in ("issued", "current")]
    return f"{host['status']}, certificate ended" if host["status"] == "enrolled" and not counting else host["status"]


def _certificates(told: Sequence[dict[str, Any]]) -> list[Table]:
    rows = [(each["serial"][:16], each["state"], time_text(each["ends"]), each["authority"][:16]) for each in told]
    return [Table(columns=("certificate", "state", "ends", "authority"), rows=rows)] if rows else []
