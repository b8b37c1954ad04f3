"""`vmkeep schedule`: what is done by itself, by timers of systemd, and how its last runs ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.console import duration_text, time_text
from vmkeep.cli.ondemand import ON_DEMAND
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.tables import Table
from vmkeep.errors import InvalidRequest
from vmkeep.planning.schedule import COMMANDS, DEFAULT_DELAY_SECONDS, Job, Run, Scheduled, Standing, command_of
from vmkeep.spans import SPAN_FORMS, span_seconds, span_text

if TYPE_CHECKING:
    from vmkeep.flows.schedule import JobStanding
    from vmkeep.flows.scheduled_run import Stop

app = typer.Typer(
    short_help="What is done by itself, and how it ended.",
    help="Have backups and verifications done by themselves, by timers of systemd, and look how they ended.",
    epilog="Example: vmkeep schedule set --backup '*-*-* 03:30'",
    rich_markup_mode=None,
)
_OFFERED = tuple(job for job in Job if COMMANDS[job][0] in ON_DEMAND)


def _when(job: Job, what: str) -> Any:
    """Return the option that says when a job runs; one whose command does not exist is not shown."""
    text = f"When {what}, as systemd writes times."
    return typer.Option(f"--{job}", metavar="TIME", help=text, show_default=False, hidden=job not in _OFFERED)


def complete_job(incomplete: str) -> Iterator[str]:
    """Yield the jobs that begin so."""
    return (str(job) for job in _OFFERED if job.startswith(incomplete))


@app.command("set", epilog="Example: vmkeep schedule set --backup '*-*-* 03:30' --verify 'Sun 05:00'")
def set_schedule(
    context: typer.Context,
    backup: Annotated[str | None, _when(Job.BACKUP, "all VMs are backed up")] = None,
    verify: Annotated[str | None, _when(Job.VERIFY, "everything in the repository is verified")] = None,
    retain: Annotated[str | None, _when(Job.RETAIN, "points go that the policies do not keep")] = None,
    prune: Annotated[str | None, _when(Job.PRUNE, "the room of points that are gone is given back")] = None,
    delay: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help=f"Begin later by a random time of up to so long: {SPAN_FORMS}. [default: 15m]",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Have jobs run by themselves from now on, each at its time. Jobs that are not named stay as they are."""
    from vmkeep.flows import schedule

    with session(context, json=json, connect=connect, debug=debug) as running:
        given = {Job.BACKUP: backup, Job.VERIFY: verify, Job.RETAIN: retain, Job.PRUNE: prune}
        calendars = {job: text for job, text in given.items() if text is not None}
        if not calendars:
            raise InvalidRequest(
                "No job was named", hint=f"Say when one runs: {', '.join(f'--{job} TIME' for job in _OFFERED)}."
            )
        for job in calendars:
            _require_offered(job)
        seconds = DEFAULT_DELAY_SECONDS if delay is None else span_seconds(delay)
        if seconds is None:
            raise InvalidRequest(f"{delay!r} is no length of time", hint=f"Write it as {SPAN_FORMS}.")
        made = schedule.set_schedule(running.settings, calendars, seconds)
        if running.console.json:
            jobs = [asdict(each) for each in made.jobs]
            running.console.document({"set": jobs, "checked": made.checked, "by_hand": list(made.by_hand)})
        else:
            running.console.show(*(f"{each.job} runs by itself: {_words(each)}" for each in made.jobs))
        if made.exposed is not None:
            running.console.notice(f"warning: {made.exposed}")
        for job in made.leaps:
            running.console.notice(
                f"warning: {job} is left out in the night in which the clock goes forward over its time, and is missed "
                "then; an hour later in the night it is not"
            )
        if not made.checked:
            running.console.notice(
                "warning: systemd-analyze is not there, so nobody has read the times, and what is missed cannot be told"
            )
        if made.by_hand:
            running.console.notice(f"warning: systemd does not run here. Where it does: `{' && '.join(made.by_hand)}`")


@app.command(epilog="Example: vmkeep schedule show")
def show(
    context: typer.Context, json: JsonOption = False, connect: ConnectOption = None, debug: DebugOption = False
) -> None:
    """Show what runs by itself and when, and how its last runs ended."""
    from vmkeep.flows.schedule import jobs_standing, next_run

    with session(context, json=json, connect=connect, debug=debug) as running:
        jobs = jobs_standing(running.settings)
        following = {each.job: next_run(each) for each in jobs}
        if running.console.json:
            running.console.document({"jobs": [job_document(each, following[each.job]) for each in jobs]})
            return
        if not jobs:
            running.console.show("nothing runs by itself: `vmkeep schedule set` has it do so")
            return
        rows = [
            (
                str(each.job),
                "-" if each.scheduled is None else each.scheduled.calendar,
                time_text(following[each.job] or "-"),
                "-" if each.last is None else time_text(each.last.started),
                _took(each.last),
                str(each.standing),
            )
            for each in jobs
        ]
        columns = ("job", "time", "next", "last run", "took", "standing")
        running.console.show(Table(columns=columns, rows=rows, drop=("took",)), *job_sentences(jobs))


@app.command(epilog="Example: vmkeep schedule remove verify")
def remove(
    context: typer.Context,
    jobs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="JOB", help="The jobs; all of them without.", show_default=False, autocompletion=complete_job
        ),
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Have jobs not run by themselves any more, and take their units away. One that runs now goes on to its end."""
    from vmkeep.flows.schedule import remove_schedule

    with session(context, json=json, connect=connect, debug=debug) as running:
        removed = remove_schedule(running.settings, [_job(text) for text in jobs or ()])
        if running.console.json:
            running.console.document({"removed": [str(job) for job in removed]})
        elif removed:
            running.console.show(f"no longer by itself: {', '.join(removed)}")
        else:
            running.console.show("it did not run by itself" if jobs else "nothing ran by itself")


@app.command(epilog="Example: vmkeep schedule run backup")
def run(
    context: typer.Context,
    job: Annotated[
        str, typer.Argument(metavar="JOB", help=f"One of {', '.join(_OFFERED)}.", autocompletion=complete_job)
    ],
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Run a job now, as its timer does: what comes of it is recorded, and told to whom the settings name."""
    from vmkeep.flows.scheduled_run import run_job

    with session(context, json=json, connect=connect, debug=debug) as running:
        wanted = _job(job)
        _require_offered(wanted)
        interruption = running.interruption
        command = " ".join(("vmkeep", *command_of(wanted, running.settings.verify_budget)))
        running.console.remark(f"running `{command}`; `vmkeep ops list` shows how far it is")

        def handed(stop: Stop) -> Any:
            return interruption.handed_to(lambda _reason: stop())

        ended = run_job(
            running.settings,
            wanted,
            uri=running.connect,
            handed=handed,
            warn=lambda sentence: running.console.notice(f"warning: {sentence}"),
        )
        if running.console.json:
            running.console.document({"run": run_document(ended.run)})
        else:
            running.console.show(*_run_lines(ended.run))
        if ended.error is not None:
            raise ended.error


@app.command(epilog="Example: vmkeep schedule tell")
def tell(
    context: typer.Context, json: JsonOption = False, connect: ConnectOption = None, debug: DebugOption = False
) -> None:
    """Try whether all whom the settings name can be told of runs: each hears that this is a trial."""
    from vmkeep.flows.telling import try_telling

    with session(context, json=json, connect=connect, debug=debug) as running:
        tried = try_telling(running.settings)
        if running.console.json:
            running.console.document({"told": tried.told, "untold": [asdict(each) for each in tried.untold]})
        else:
            running.console.show(*(f"told by {way}" for way in tried.told))
        tried.require_all()


def job_document(each: JobStanding, following: str | None) -> dict[str, Any]:
    """Return a job as `schedule show --json` and `status --json` have it."""
    scheduled = each.scheduled
    return {
        "job": str(each.job),
        "calendar": None if scheduled is None else scheduled.calendar,
        "delay_seconds": None if scheduled is None else scheduled.delay_seconds,
        "gap_seconds": None if scheduled is None else scheduled.gap_seconds,
        "since": None if scheduled is None else scheduled.since,
        "timer": each.timer,
        "problem": each.problem,
        "next": following,
        "standing": str(each.standing),
        "overdue": each.overdue,
        "process": each.process,
        "runs": [run_document(run) for run in each.runs],
    }


def run_document(run: Run) -> dict[str, Any]:
    """Return a run as `schedule run --json` has it."""
    document = asdict(run)
    for field in ("vms", "harmed", "failures", "untold"):
        document[field] = list(document[field])
    document["problems"] = None if run.problems is None else list(run.problems)
    document["job"] = str(run.job)
    document["code"], document["message"] = run.code or None, run.message or None
    return document


def job_sentences(jobs: tuple[JobStanding, ...]) -> Iterator[str]:
    """Yield what there is to say of jobs that do not stand well."""
    from vmkeep.flows.schedule import told_of_failure

    for each in jobs:
        if each.problem is not None:
            yield f"{each.job} will not run by itself: {each.problem}"
        if each.overdue:
            yield f"{each.job} should have run again meanwhile"
        if each.last is not None and each.standing is Standing.INTERRUPTED:
            yield f"{each.job} was killed before it ended; what it left is put right by the next command"
        elif each.last is not None and each.last.ended is not None and not each.last.succeeded:
            yield f"{each.job} failed: {told_of_failure(each.last)}"
        for untold in each.last.untold if each.last is not None else ():
            yield f"{each.job}: {untold.sentence}"


def _run_lines(run: Run) -> Iterator[str]:
    how = "done" if run.succeeded else f"failed with status {run.status}"
    yield f"{run.job}: {how} in {_took(run)}" + (f": {', '.join(run.vms)}" if run.vms else "")
    for failure in run.failures:
        yield f"{failure.vm}: {failure.message} [{failure.code}]"
    for problem in run.problems or ():
        yield f"doctor says: {problem}"


def _took(run: Run | None) -> str:
    if run is None or run.ended is None:
        return "-"
    from datetime import datetime

    return duration_text((datetime.fromisoformat(run.ended) - datetime.fromisoformat(run.started)).total_seconds())


def _words(each: Scheduled) -> str:
    gap = "" if each.gap_seconds is None else f", every {span_text(each.gap_seconds)} at least"
    return f"{each.calendar}, up to {span_text(each.delay_seconds)} later{gap}"


def _job(text: str) -> Job:
    try:
        return Job(text)
    except ValueError as error:
        raise InvalidRequest(f"there is no job {text!r}", hint=f"The jobs are: {', '.join(_OFFERED)}.") from error


def _require_offered(job: Job) -> None:
    if job not in _OFFERED:
        raise InvalidRequest(
            f"this vmkeep has no command `{COMMANDS[job][0]}`", hint=f"The jobs are: {', '.join(_OFFERED)}."
        )
