"""`vmkeep serve`: the server of a fleet, for as long as it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.errors import ToolMissing

if TYPE_CHECKING:
    from vmkeep.server.listeners import Listeners


def register(app: typer.Typer) -> None:
    app.command(
        short_help="The server of a fleet: not to be used yet.",
        epilog="Example: vmkeep serve --certificate server.pem --key server.key --agents-authority agents.pem",
    )(serve)


def serve(
    context: typer.Context,
    certificate: Annotated[Path, typer.Option("--certificate", metavar="FILE", help="The server's certificates, PEM.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Its key, PEM, without a passphrase.")],
    authority: Annotated[
        Path, typer.Option("--agents-authority", metavar="FILE", help="Who signs the certificates of agents, PEM.")
    ],
    people: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="For people and enrolment.")
    ] = "127.0.0.1:8443",
    agents: Annotated[
        str, typer.Option("--listen-agents", metavar="HOST:PORT", help="For agents, with their certificates.")
    ] = "127.0.0.1:8444",
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Serve a fleet. For a service: it runs until it is ended. So far it answers whether it lives, and nothing else."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.interruption.postponed():
            listening = _listeners(certificate, key, authority, people, agents)

        def ready() -> None:
            told = dict(zip(("people", "agents"), map(str, listening.addresses), strict=True))
            if running.console.json:
                running.console.line({"listening": told})
            else:
                running.console.show(f"listening at {told['people']}, for agents at {told['agents']}")

        with running.interruption.handed_to(lambda _reason: listening.stop()):
            listening.serve(ready=ready)
        running.console.remark("ended")


def _listeners(certificate: Path, key: Path, authority: Path, people: str, agents: str) -> Listeners:
    try:
        from vmkeep.server.application import make_application
        from vmkeep.server.listeners import Address, Listener, Listeners
    except ModuleNotFoundError as error:
        raise ToolMissing(
            f"The server needs a module that is not installed: {error.name}", hint="Install vmkeep[server]."
        ) from error

    return Listeners(
        [
            Listener(make_application(), Address.parse(people), certificate, key),
            Listener(make_application(), Address.parse(agents), certificate, key, clients=authority),
        ]
    )
