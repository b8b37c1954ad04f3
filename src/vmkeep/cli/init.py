"""`vmkeep init`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli.completion import complete_host_key
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session, tell_first_use
from vmkeep.errors import IntegrityError, InvalidRequest

if TYPE_CHECKING:
    from vmkeep.flows.installation import InitReport, MetHost
    from vmkeep.repository.probe import BucketReport


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: vmkeep init --repository /srv/vmkeep")(init)


def init(
    context: typer.Context,
    repository: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|s3://BUCKET/PREFIX",
            help="The repository's place; kept in the settings.",
            show_default=False,
        ),
    ] = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take over the repository that is there and rebuild the catalogue from it.")
    ] = False,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FINGERPRINT",
            help="Trust the host that signs with this key; with --adopt; repeatable.",
            show_default=False,
            autocompletion=complete_host_key,
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Trust all hosts that sign points there; with --adopt.")
    ] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Make catalogue, key and repository. The first backup does the same by itself."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        if not adopt and (trust or yes):
            raise InvalidRequest("--trust and --yes go with --adopt only")
        report = running.premises.initialise(repository, adopt=adopt)
        console = running.console
        report = _decide_about_hosts(running, report, trust or (), yes=yes)
        if console.json:
            console.document({"init": asdict(report)})
        else:
            console.show(_repository(report), f"key: {report.key_path}")
            if report.bucket is not None:
                console.show(_bucket(report.bucket))
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


def _decide_about_hosts(running: Session, report: InitReport, trust: Sequence[str], *, yes: bool) -> InitReport:
    """Trust the hosts that are named, or that are agreed to. What nobody is there to decide is told, and stays open."""
    from vmkeep.catalog import Trust
    from vmkeep.flows.hosts import told_of_host

    catalog, console = running.premises.catalog, running.console
    trusted = {catalog.trust_host(text, Trust.TRUSTED).fingerprint for text in trust}
    left = []
    for host in report.hosts:
        if host.fingerprint in trusted:
            continue
        question = f"{_told(host)}. Trust the points that it has signed as if they were made here?"
        if yes or (not trust and console.can_ask and console.ask(question)):
            catalog.trust_host(host.fingerprint, Trust.TRUSTED)
            trusted.add(host.fingerprint)
        else:
            left.append(host)
    for host in left:
        console.notice(f"warning: {told_of_host(host)}")
    decided = (Trust.TRUSTED if host.fingerprint in trusted else Trust.UNKNOWN for host in report.hosts)
    hosts = (replace(host, trust=str(trust)) for host, trust in zip(report.hosts, decided, strict=True))
    return replace(report, hosts=tuple(hosts))


def _told(host: MetHost) -> str:
    other = "" if host.former is None else f", another one than before ({host.former})"
    return f"Host {host.host} signs points in this repository with key {host.fingerprint}{other}"


def _bucket(report: BucketReport) -> str:
    from vmkeep.repository.probe import described

    return f"the bucket's server: {described(report)}"


def _repository(report: InitReport) -> str:
    if report.moved_from is not None:
        return f"repository moved: {report.moved_from} is now {report.location}"
    return f"repository {'made' if report.created else 'ready'}: {report.location}"
