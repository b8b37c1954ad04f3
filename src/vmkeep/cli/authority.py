"""`vmkeep ca`: the authority that signs the certificates of a fleet's servers and hosts."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import typer

from vmkeep.cli.console import time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session

app = typer.Typer(
    short_help="The authority of a fleet's hosts.",
    help="The authority that signs the certificates of a fleet's servers and hosts.",
    epilog="Example: vmkeep ca show",
    rich_markup_mode=None,
)
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command("show", epilog="Example: vmkeep ca show")
def show(
    context: typer.Context, json: JsonOption = False, connect: ConnectOption = None, debug: DebugOption = False
) -> None:
    """Show the fingerprints of the authorities that are trusted; the first use makes one."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        _tell(running)


@app.command("rotate", epilog="Example: vmkeep ca rotate --yes")
def rotate(
    context: typer.Context,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Sign with a new authority from now on. The former one is trusted until it is retired; hosts follow."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        running.console.confirm("Sign certificates of servers and hosts with a new authority from now on?", yes=yes)
        from vmkeep.flows.registrar import Registrar

        authorities = Registrar(running.settings, running.premises.catalog).authorities()
        authorities.rotated(dt.datetime.now(dt.UTC)).replace(running.settings.authority_path)
        _tell(running)


@app.command("retire", epilog="Example: vmkeep ca retire --yes")
def retire(
    context: typer.Context,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Trust the former authority no more. Servers heed it when they are started again."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        from vmkeep.flows.registrar import Registrar

        registrar = Registrar(running.settings, running.premises.catalog)
        retired = registrar.authorities().retired()
        late = [
            host.name
            for host in registrar.hosts()
            if host.counting and all(each.authority != retired.present.fingerprint for each in host.counting)
        ]
        shut = f" These hosts have no other certificate, and must be invited anew: {', '.join(late)}." if late else ""
        running.console.confirm(f"Trust the former authority no more?{shut}", yes=yes)
        retired.replace(running.settings.authority_path)
        _tell(running)


def _tell(running: Session) -> None:
    from vmkeep.flows.registrar import Registrar
    from vmkeep.identity.certificates import fingerprint

    authorities = Registrar(running.settings, running.premises.catalog).authorities()
    told: list[dict[str, Any]] = [
        {
            "fingerprint": fingerprint(each),
            "signs": each == authorities.present.certificate,
            "begins": each.not_valid_before_utc.isoformat(),
            "ends": each.not_valid_after_utc.isoformat(),
        }
        for each in authorities.trusted
    ]
    if running.console.json:
        running.console.document({"authorities": told})
        return
    for each in told:
        role = "signs" if each["signs"] else "trusted until it is retired"
        running.console.show(f"{each['fingerprint']}: {role}, ends {time_text(each['ends'])}")
