"""`vmkeep agent`: what a host of a fleet does to be one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from vmkeep.cli.console import time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.cli.textfiles import STANDARD, read_text

if TYPE_CHECKING:
    from vmkeep.agent.enrolment import Outcome

_LONGEST_TOKEN: Final = 4096
app = typer.Typer(
    short_help="This host as one of a fleet.",
    help="This host as one of a fleet: its certificate for the server.",
    epilog="Example: vmkeep agent enrol vmkeep1-AbC...",
    rich_markup_mode=None,
)


@app.command("enrol", epilog="Example: vmkeep agent enrol vmkeep1-AbC...")
def enrol(
    context: typer.Context,
    token: Annotated[
        str, typer.Argument(metavar="TOKEN", help="What `vmkeep host invite` printed; - reads it from standard input.")
    ],
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Make this host one of a fleet. Its key is made here; the server is proved before anything is sent to it."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        from vmkeep.agent import enrolment
        from vmkeep.identity.tokens import Token

        text = read_text(token, limit_bytes=_LONGEST_TOKEN) if token == STANDARD else token
        _tell(running, enrolment.enrol(running.settings, Token.parse(text)))


@app.command("renew", epilog="Example: vmkeep agent renew")
def renew(
    context: typer.Context, json: JsonOption = False, connect: ConnectOption = None, debug: DebugOption = False
) -> None:
    """Get the next certificate when half of the term is over, also after all of it. For a timer, once a day."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        from vmkeep.agent import enrolment

        _tell(running, enrolment.renew(running.settings))


def _tell(running: Session, outcome: Outcome) -> None:
    credentials = outcome.credentials
    certificate = credentials.described()
    if outcome.clock:
        running.console.notice(f"warning: {outcome.clock}")
    if running.console.json:
        running.console.document(
            {
                "agent": {
                    "host": credentials.host,
                    "name": credentials.name,
                    "server": credentials.server,
                    "agents": credentials.agents,
                    "serial": certificate.serial,
                    "ends": certificate.ends,
                    "renewed": outcome.renewed,
                }
            }
        )
        return
    what = "has a certificate" if outcome.renewed else "needs no other certificate yet: it has one"
    running.console.show(
        f"this host is {credentials.name} at {credentials.server}, and {what} until {time_text(certificate.ends)}"
    )
