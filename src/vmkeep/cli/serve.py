"""`vmkeep serve`: the server of a fleet, for as long as it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.errors import InvalidRequest, ToolMissing

if TYPE_CHECKING:
    from vmkeep.server.listeners import Listeners


def register(app: typer.Typer) -> None:
    app.command(
        short_help="The server of a fleet: hosts enrol there.",
        epilog="Example: vmkeep serve --listen 0.0.0.0:8443 --listen-agents 0.0.0.0:8444",
    )(serve)


def serve(
    context: typer.Context,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", help="Other certificates, PEM: no host can enrol then."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Their key, PEM, without a passphrase.")
    ] = None,
    authority: Annotated[
        Path | None,
        typer.Option("--agents-authority", metavar="FILE", help="Who signs the certificates of agents then, PEM."),
    ] = None,
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
    """Serve a fleet. For a service: it runs until it is ended. So far hosts enrol there, and renew certificates."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        given = tuple(each for each in (certificate, key, authority) if each is not None)
        if given and len(given) != 3:
            raise InvalidRequest(
                "--certificate, --key and --agents-authority belong together",
                hint="Leave all of them out: the server has an authority of its own.",
            )
        with running.interruption.postponed():
            if len(given) == 3:
                listening, tend = _of_others(given[0], given[1], given[2], people, agents), None
            else:
                listening, tend = _of_its_own(running, people, agents)

        def ready() -> None:
            told = dict(zip(("people", "agents"), map(str, listening.addresses), strict=True))
            if running.console.json:
                running.console.line({"listening": told})
            else:
                running.console.show(f"listening at {told['people']}, for agents at {told['agents']}")

        with running.interruption.handed_to(lambda _reason: listening.stop()):
            listening.serve(ready=ready, tend=tend)
        running.console.remark("ended")


def _of_others(certificate: Path, key: Path, authority: Path, people: str, agents: str) -> Listeners:
    with _server_modules():
        from vmkeep.server.application import make_application
        from vmkeep.server.listeners import Address, Listener, Listeners

    return Listeners(
        [
            Listener(make_application(), Address.parse(people), certificate, key),
            Listener(make_application(), Address.parse(agents), certificate, key, clients=authority),
        ]
    )


def _of_its_own(running: Session, people: str, agents: str) -> tuple[Listeners, Callable[[], bool]]:
    """Return the listeners with the server's own authority, and what keeps their certificates fresh."""
    with _server_modules():
        from vmkeep.flows.registrar import Registrar
        from vmkeep.flows.server_key import prepare_server, server_files
        from vmkeep.server.admission import Admissions
        from vmkeep.server.application import make_application
        from vmkeep.server.enrolment import enrolment_routes, renewal_routes
        from vmkeep.server.listeners import Address, Listener, Listeners

    settings = running.settings
    addresses = [Address.parse(each) for each in (people, agents)]
    told = (settings.server_address or people, settings.agents_address or agents)
    names = sorted({Address.parse(each).host for each in told})
    registrar = Registrar(settings, running.premises.catalog)
    registrar.authorities()
    prepare_server(settings, names)
    files = server_files(settings)
    of_people, of_agents = make_application(), make_application()
    listening = Listeners(
        [
            Listener(of_people, addresses[0], files.key, files.key),
            Listener(of_agents, addresses[1], files.key, files.key, clients=files.clients),
        ]
    )
    agents_address = settings.agents_address or str(listening.addresses[1])
    of_people.include_router(enrolment_routes(registrar, agents_address))
    of_agents.include_router(renewal_routes(registrar, Admissions(registrar), agents_address))
    return listening, lambda: prepare_server(settings, names)


@contextlib.contextmanager
def _server_modules() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ToolMissing(
            f"The server needs a module that is not installed: {error.name}", hint="Install vmkeep[server]."
        ) from error
