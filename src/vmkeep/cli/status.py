"""`vmkeep status`: one page on how all stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.console import size_text, time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.tables import Facts, Table
from vmkeep.spans import span_text

if TYPE_CHECKING:
    from vmkeep.flows.show_status import Status
    from vmkeep.planning.protection import ProtectedVm


def register(app: typer.Typer) -> None:
    app.command(short_help="How all stands, on one page.", epilog="Example: vmkeep status")(status)


def status(
    context: typer.Context,
    node_exporter: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write it to a file for Prometheus' node exporter instead: its name must end in .prom.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show how all stands: every VM with its newest sound point, what runs by itself, and what needs a person.

    What is older than it may be is never called good. The exit status says that it looked; `vmkeep doctor` judges.
    """
    from vmkeep.flows.show_status import look_at_status

    with session(context, json=json, connect=connect, debug=debug) as running:
        summaries = running.listing(None).summaries
        with running.host() as host:
            found = look_at_status(running.settings, running.premises.catalog, summaries, host)
        if node_exporter is not None:
            from vmkeep.cli.exposition import write_exposition

            write_exposition(node_exporter, found)
            if running.console.json:
                running.console.document({"written": node_exporter})
            return
        if running.console.json:
            running.console.document({"status": status_document(found)})
        else:
            running.console.show(*_page(found))
        if found.libvirt is not None:
            running.console.notice(f"warning: libvirt could not be asked for its VMs: {found.libvirt}")


def status_document(found: Status) -> dict[str, Any]:
    """Return the page as `status --json` prints it."""
    from vmkeep.cli.schedule import job_document
    from vmkeep.cli.verify import coverage_document

    return {
        "at": found.at,
        "vms": [
            {**asdict(vm), "protection": str(vm.protection), "passed_over": list(vm.passed_over)} for vm in found.vms
        ],
        "jobs": [{**job_document(job, None), "runs": job_document(job, None)["runs"][:1]} for job in found.jobs],
        "gate": found.gate,
        "watch": found.watch,
        "space": None if found.space is None else asdict(found.space),
        "verified": None if found.verified is None else coverage_document(found.verified),
        "needs": [asdict(need) for need in found.needs],
        "problems": None if found.problems is None else list(found.problems),
        "problems_at": found.problems_at,
    }


def _page(found: Status) -> Iterator[str | Table | Facts]:
    from vmkeep.planning.protection import Protection

    counted = [(word, found.count(word)) for word in Protection]
    yield ", ".join(f"{number} {word}" for word, number in counted if number) or "no VMs"
    if found.vms:
        rows = [
            (vm.name, vm.state or "-", time_text(vm.created) if vm.created else "never", *_ages(vm), str(vm.protection))
            for vm in found.vms
        ]
        columns = ("VM", "state", "newest sound point", "age", "may be", "protection")
        yield ""
        yield Table(columns=columns, rows=rows, drop=("state", "may be"), names={"VM": 12})
    yield ""
    yield Facts(list(_facts(found)))
    if found.needs:
        yield ""
        yield "needs a person:"
        for need in found.needs:
            yield f"  {need.message}"
            yield f"    {need.remedy}"
    if found.problems:
        yield ""
        yield f"doctor said at {time_text(found.problems_at or '')}:"
        yield from (f"  {problem}" for problem in found.problems)


def _ages(vm: ProtectedVm) -> tuple[str, str]:
    age = "-" if vm.age_seconds is None else span_text(vm.age_seconds)
    return age, "-" if vm.objective_seconds is None else span_text(vm.objective_seconds)


def _verified(found: Status) -> str:
    coverage = found.verified
    if coverage is None:
        return "never, by this installation"
    from datetime import datetime

    from vmkeep.planning.rota import GOAL

    if coverage.is_late(datetime.fromisoformat(found.at)):
        return f"unknown: not everything was read within {GOAL.days} days"
    share = 100 * coverage.proved_bytes // coverage.size_bytes if coverage.size_bytes else 100
    oldest = "" if coverage.oldest is None else f", the oldest proof of {time_text(coverage.oldest.isoformat())}"
    bad = f"; {coverage.bad} packs are damaged" if coverage.bad else ""
    return f"{share} % of the bytes within {GOAL.days} days{oldest}{bad}"


def _facts(found: Status) -> Iterator[tuple[str, str]]:
    for job in found.jobs:
        when = "never ran" if job.last is None else f"last run {time_text(job.last.started)}"
        yield str(job.job), f"{job.standing}; {when}"
    if not found.jobs:
        yield "by itself", "nothing: `vmkeep schedule set` has backups made"
    yield "gate", found.gate
    yield "watch", found.watch
    if found.space is None:
        yield "repository", "none yet"
    else:
        free = "" if found.space.free_bytes is None else f"; {size_text(found.space.free_bytes)} free there"
        points = "1 point" if found.space.points == 1 else f"{found.space.points} points"
        yield "repository", f"{found.space.location}: {points}, {size_text(found.space.stored_bytes)} stored{free}"
    yield "verified", _verified(found)
    if found.problems is None:
        asked = "" if found.problems_at is None else f" since {time_text(found.problems_at)}"
        yield "doctor", f"unknown: nothing that runs by itself has asked it{asked}"
    else:
        problems = f"{len(found.problems)} problem{'s' if len(found.problems) != 1 else ''}"
        yield "doctor", f"{problems} at {time_text(found.problems_at or '')}"
