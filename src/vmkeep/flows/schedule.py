"""What jobs are to run by themselves, and how their last runs ended: small files in ``VMKEEP_HOME/schedule``.

No rows of the catalogue: that a job could not open it is one of the things to be told. ``JOB.json`` says when it is to
run, ``JOB.runs.json`` its last runs, and ``JOB.lock`` is held as long as one lives. So a run that is not ended, and
whose lock is free, was killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from vmkeep.commandline import command_line
from vmkeep.config import Settings, prepare_home
from vmkeep.errors import CatalogDamaged, HomeExposed, VmkeepError
from vmkeep.filesystem import file_error, file_errors, make_directory, replace_file
from vmkeep.flows.timers import (
    has_units,
    look_at_timer,
    own_command,
    read_calendar,
    remove_timers,
    require_place,
    start_timers,
    timer_name,
    write_timer,
)
from vmkeep.host.tasks.checkup import Finding, FindingCode
from vmkeep.locks import FileLock
from vmkeep.ownership import refuse_exposed_file
from vmkeep.planning.schedule import (
    Job,
    Run,
    Scheduled,
    Standing,
    Untold,
    VmFailure,
    is_overdue,
    moment_text,
    standing,
)
from vmkeep.spans import span_text
from vmkeep.values import dataclass

MOST_RUNS: Final = 30
_MOST_BYTES: Final = 4 << 20
_MOST_TEXT: Final = 500


@dataclass(frozen=True, slots=True)
class JobStanding:
    """A job, when it is to run, its last runs with the newest first, and how it stands.

    ``overdue``: it should have run again, also when one run lasts that long. ``timer`` is the name of its units, None
    where it has none; ``problem`` says why it will not run by itself.
    ``process`` is the one that runs it now.
    """

    job: Job
    scheduled: Scheduled | None
    runs: tuple[Run, ...]
    standing: Standing
    overdue: bool
    timer: str | None = None
    problem: str | None = None
    process: int | None = None

    @property
    def last(self) -> Run | None:
        return self.runs[0] if self.runs else None


@dataclass(frozen=True, slots=True)
class ScheduleSet:
    """What was set. ``checked``: systemd has read the times. ``by_hand`` must be run where systemd does not run now.

    ``leaps`` are jobs that are left out in the night in which the clock goes forward. ``exposed`` says why others could
    have root run something else; None when they could not.
    """

    jobs: tuple[Scheduled, ...]
    checked: bool
    by_hand: tuple[str, ...]
    leaps: tuple[Job, ...] = ()
    exposed: str | None = None


def set_schedule(settings: Settings, calendars: Mapping[Job, str], delay_seconds: int) -> ScheduleSet:
    """Have jobs run by themselves; those that are not named stay as they are.

    Raises InvalidRequest for a time that systemd refuses, PermissionRefused for who is not root, TargetExists for a
    unit that somebody else wrote, and OperationFailed with what systemd said.
    """
    require_place(settings, calendars)
    command = own_command()
    since = moment_text(datetime.now(UTC))
    read = {job: read_calendar(calendar) for job, calendar in calendars.items()}
    scheduled = tuple(
        Scheduled(job, calendar, delay_seconds, read[job].gap_seconds, since) for job, calendar in calendars.items()
    )
    # Killed behind this, doctor says that the job has no units.
    for each in scheduled:
        _write(settings, f"{each.job}.json", asdict(each))
    for each in scheduled:
        write_timer(settings, each, command)
    by_hand = start_timers([timer_name(settings, each.job) for each in scheduled])
    exposed = None
    try:
        refuse_exposed_file(command, "which systemd will start as root", secret=False)
    except HomeExposed as error:
        exposed = error.message
    leaps = tuple(job for job, calendar in read.items() if calendar.leaps)
    return ScheduleSet(scheduled, all(calendar.checked for calendar in read.values()), by_hand, leaps, exposed)


def remove_schedule(settings: Settings, jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Have jobs not run by themselves any more; return those that did. What is known of their runs stays.

    Raises as ``set_schedule``.
    """
    named = [job for job in jobs or Job if read_scheduled(settings, job) is not None or has_units(settings, job)]
    if named:
        require_place(settings, ())
        remove_timers(settings, named)
    for job in named:
        path = _place(settings, f"{job}.json")
        with file_errors(path):
            path.unlink(missing_ok=True)
    return tuple(named)


def jobs_standing(settings: Settings) -> tuple[JobStanding, ...]:
    """Return how each job stands that is to run by itself, or has run.

    Raises CatalogDamaged for a record that cannot be read, PermissionRefused and others.
    """
    return tuple(
        job_standing(settings, job)
        for job in Job
        if read_scheduled(settings, job) is not None or _place(settings, f"{job}.runs.json").exists()
    )


def job_standing(settings: Settings, job: Job) -> JobStanding:
    """Return how one job stands. Raises as ``jobs_standing``."""
    now = datetime.now(UTC)
    scheduled = read_scheduled(settings, job)
    lock = lock_path(settings, job)
    running = FileLock.is_held(lock)  # before the runs: one that ends meanwhile is not called interrupted
    runs = read_runs(settings, job)
    running = running or FileLock.is_held(lock)
    last = runs[0] if runs else None
    timer = None if scheduled is None else look_at_timer(settings, scheduled)
    return JobStanding(
        job,
        scheduled,
        runs,
        standing(scheduled, last, running=running, now=now),
        is_overdue(scheduled, last, now),
        None if timer is None else timer.name,
        None if timer is None else timer.problem,
        FileLock.holding_process(lock) if running else None,
    )


def next_run(each: JobStanding) -> str | None:
    """Return when a job runs next, by its time alone, ISO 8601 in UTC; None where nobody can tell."""
    if each.scheduled is None:
        return None
    with suppress(VmkeepError):
        times = read_calendar(each.scheduled.calendar).times
        return moment_text(times[0]) if times else None
    return None


def schedule_findings(settings: Settings) -> Iterable[Finding]:
    """Tell of jobs that did not run when they should have, that failed, or that nobody will start."""
    try:
        jobs = jobs_standing(settings)
    except VmkeepError as error:
        remedy = f"{error.hint}"
        yield Finding(FindingCode.SCHEDULE_BROKEN, error.message, remedy=remedy, path=error.path)
        return
    for each in jobs:
        yield from _of_job(each)


def _of_job(each: JobStanding) -> Iterable[Finding]:
    again = command_line("vmkeep schedule run", each.job)
    last = each.last
    if each.problem is not None and each.scheduled is not None:
        remedy = f"vmkeep schedule set --{each.job} {command_line('', each.scheduled.calendar).strip()}"
        yield Finding(FindingCode.SCHEDULE_BROKEN, f"{each.job} will not run by itself: {each.problem}", remedy=remedy)
    if each.overdue and each.scheduled is not None and each.scheduled.patience_seconds is not None:
        when = "it never ran" if last is None else f"it last ran {(last.ended or last.started)[:19]}Z"
        if last is not None and each.standing is Standing.RUNNING:
            when, again = f"one run has lasted since {last.started[:19]}Z", "vmkeep ops list"
        message = (
            f"{each.job} should run by itself every {span_text(each.scheduled.patience_seconds)} at least, and {when}"
        )
        yield Finding(FindingCode.RUN_MISSED, message, remedy=again)
    if last is None:
        return
    if each.standing is Standing.INTERRUPTED:
        message = f"the last run of {each.job}, begun {last.started[:19]}Z, was killed before it ended"
        yield Finding(FindingCode.RUN_FAILED, message, remedy=again)
    elif last.ended is not None and not last.succeeded:
        message = f"the last run of {each.job}, ended {last.ended[:19]}Z, failed: {told_of_failure(last)}"
        yield Finding(FindingCode.RUN_FAILED, message, remedy=again)
    for untold in last.untold:
        message = f"nobody was told of the last run of {each.job} by {untold.way}: {untold.why}"
        yield Finding(FindingCode.RUN_UNTOLD, message, remedy="vmkeep schedule tell")


def told_of_failure(run: Run) -> str:
    """Return why a run failed, in one line: with each VM that it failed with."""
    each = [f"{failure.vm}: {failure.message} [{failure.code}]" for failure in run.failures]
    return "; ".join(each) or f"{run.message or 'it said nothing'} [{run.code or f'status {run.status}'}]"


# -- the records ---------------------------------------------------------------------------------------------------


def lock_path(settings: Settings, job: Job) -> Path:
    """Return the lock that a run of a job holds."""
    return _place(settings, f"{job}.lock")


def read_scheduled(settings: Settings, job: Job) -> Scheduled | None:
    """Return when a job is to run; None when it is not. Raises as ``read_runs``."""
    path = _place(settings, f"{job}.json")
    value = _read(path)
    if value is None:
        return None
    try:
        gap = value["gap_seconds"]
        return Scheduled(
            job,
            str(value["calendar"]),
            int(value["delay_seconds"]),
            None if gap is None else int(gap),
            _moment(value["since"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(path) from error


def read_runs(settings: Settings, job: Job) -> tuple[Run, ...]:
    """Return the last runs of a job, the newest first.

    Raises CatalogDamaged for a record that says nothing, PermissionRefused and others for one that cannot be read.
    """
    path = _place(settings, f"{job}.runs.json")
    value = _read(path)
    if value is None:
        return ()
    try:
        return tuple(_run(job, run) for run in value["runs"][:MOST_RUNS])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(path) from error


def record_run(settings: Settings, run: Run) -> None:
    """Record a run as it stands now: a new one, or what came of one. Only who holds its lock may.

    Raises NoSpace, PermissionRefused and others. Records that say nothing are replaced.
    """
    known: tuple[Run, ...] = ()
    with suppress(CatalogDamaged):
        known = read_runs(settings, run.job)
    runs = [run, *(each for each in known if each.id != run.id)]
    _write(settings, f"{run.job}.runs.json", {"runs": [asdict(each) for each in runs[:MOST_RUNS]]})


def _run(job: Job, value: Mapping[str, Any]) -> Run:
    status = value["status"]
    run = Run(
        str(value["id"]),
        job,
        _moment(value["started"]),
        None if value["ended"] is None else _moment(value["ended"]),
        None if status is None else int(status),
        str(value["code"]),
        str(value["message"]),
        tuple(map(str, value["vms"])),
        tuple(VmFailure(str(each["vm"]), str(each["code"]), str(each["message"])) for each in value["failures"]),
        tuple(map(str, value["harmed"])),
        None if value["problems"] is None else tuple(map(str, value["problems"])),
        tuple(Untold(str(each["way"]), str(each["why"])) for each in value["untold"]),
    )
    if (run.ended is None) != (run.status is None):
        raise ValueError("a run that ended has a status")
    return run


def shortened(run: Run) -> Run:
    """Return a run with messages of a length that a record may have."""
    failures = tuple(replace(each, message=each.message[:_MOST_TEXT]) for each in run.failures)
    return replace(run, message=run.message[:_MOST_TEXT], failures=failures)


def _moment(value: object) -> str:
    moment = datetime.fromisoformat(str(value))
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return str(value)


def _place(settings: Settings, name: str) -> Path:
    return settings.schedule_dir / name


def _write(settings: Settings, name: str, value: Mapping[str, Any]) -> None:
    prepare_home(settings)
    path = _place(settings, name)
    with file_errors(path):
        make_directory(path.parent)
        replace_file(path, json.dumps(value, indent=1).encode())


def _read(path: Path) -> dict[str, Any] | None:
    """Return the object in a record; None when there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            value = json.loads(file.read(_MOST_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise file_error(error, path, "read") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _damaged(path: Path) -> CatalogDamaged:
    return CatalogDamaged(
        f"{path} is no record of a schedule",
        path=str(path),
        hint=f"Move it away ({command_line('mv', path, f'{path}.bad')}), and run `vmkeep schedule set` again.",
    )
