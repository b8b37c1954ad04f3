"""`vmkeep init`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session, tell_first_use
from vmkeep.errors import IntegrityError

if TYPE_CHECKING:
    from vmkeep.flows.premises import InitReport


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: vmkeep init --repository /srv/vmkeep")(init)


def init(
    context: typer.Context,
    repository: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The repository's place; kept in the settings.", show_default=False),
    ] = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take over the repository that is there and rebuild the catalogue from it.")
    ] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Make catalogue, key and repository. The first backup does the same by itself."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        report = running.premises.initialise(repository, adopt=adopt)
        console = running.console
        if console.json:
            console.document({"init": asdict(report)})
        else:
            console.show(_repository(report), f"key: {report.key_path}")
            if adopt:
                console.show(f"adopted: {report.adopted_points} points of {report.adopted_vms} VMs not known before")
            if report.created:
                tell_first_use(console, report)
        for warning in report.warnings:
            console.notice(f"warning: {warning}")
        for point in report.damaged:
            console.notice(f"point {point.point} was not adopted: {point.message}")
        if report.damaged:
            raise IntegrityError(
                f"{len(report.damaged)} of the repository's points are damaged and were not adopted",
                path=report.location,
            )


def _repository(report: InitReport) -> str:
    if report.moved_from is not None:
        return f"repository moved: {report.moved_from} is now {report.location}"
    return f"repository {'made' if report.created else 'ready'}: {report.location}"
