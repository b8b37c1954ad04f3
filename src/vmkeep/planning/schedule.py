"""What is done by itself and when: the jobs of a schedule, their units for systemd, and how a job stands.

When a job runs is said by an expression of systemd (systemd.time(7)), and nobody but systemd reads it: the times that
``systemd-analyze calendar`` tells are all that is known of it here. The rule for what is *missed*: the longest gap
between two of those times, the random delay, and a margin went by since the job last ran. What is older than that is
never called good.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.values import dataclass

DEFAULT_DELAY_SECONDS: Final = 900
MARGIN_SECONDS: Final = 5400
"""A machine that just came up runs what it missed after some minutes, a timer is late by one at most (AccuracySec), and
in one night of the year the clock goes back by an hour."""
ITERATIONS: Final = 3000
"""How many times are asked of systemd: more than a week of every five minutes."""
MARK: Final = "# Written by `vmkeep schedule set`."
"""How each of vmkeep's units begins: another one of the same name is somebody else's."""
_TIME: Final = re.compile(r"^\s*(Next elapse|Iter(?:ation|\.) #\d+|\(in UTC\)): \w{3} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)")


class Job(StrEnum):
    """What can be done by itself."""

    BACKUP = "backup"
    VERIFY = "verify"
    RETAIN = "retain"
    PRUNE = "prune"


COMMANDS: Final[Mapping[Job, tuple[str, ...]]] = {
    Job.BACKUP: ("backup", "--all", "--wait", "30m"),
    Job.VERIFY: ("verify", "--all"),
    Job.RETAIN: ("retain",),
    Job.PRUNE: ("prune",),
}
"""What each job runs; a verification with a budget runs another command (``command_of``).

The first word is a command, and a job whose command does not exist is not offered.
"""


def command_of(job: Job, verify_budget: str = "") -> tuple[str, ...]:
    """Return what a job runs. ``verify_budget`` is that of the settings, empty for none."""
    return ("verify", "--budget", verify_budget) if job is Job.VERIFY and verify_budget else COMMANDS[job]


@dataclass(frozen=True, slots=True)
class Scheduled:
    """When a job is to run. ``gap_seconds`` is the longest time between two runs, None where nobody could tell.

    ``since`` is when that was said, ISO 8601 in UTC.
    """

    job: Job
    calendar: str
    delay_seconds: int
    gap_seconds: int | None
    since: str

    @property
    def patience_seconds(self) -> int | None:
        """How long after a run the next one must have begun; None where nobody can tell."""
        return None if self.gap_seconds is None else self.gap_seconds + self.delay_seconds + MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class VmFailure:
    """A VM that a job failed with: the error's code and message."""

    vm: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Untold:
    """Somebody who could not be told of a run: by which way, and why. No address and no secret stands in it."""

    way: str
    why: str

    @property
    def sentence(self) -> str:
        return f"nobody was told by {self.way}: {self.why}"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job. ``ended`` and ``status`` (the exit status) are None as long as it has not ended.

    ``code`` and ``message`` are the error that ended it, empty for none. ``vms`` are those that it did something for,
    ``failures`` those that it failed with. ``harmed`` are points that were found damaged, of a verification of all.
    ``problems`` are what `vmkeep doctor` called problems right after it, None where it was not asked. ``untold``: who
    could not be told.
    """

    id: str
    job: Job
    started: str
    ended: str | None = None
    status: int | None = None
    code: str = ""
    message: str = ""
    vms: tuple[str, ...] = ()
    failures: tuple[VmFailure, ...] = ()
    harmed: tuple[str, ...] = ()
    problems: tuple[str, ...] | None = None
    untold: tuple[Untold, ...] = ()

    @property
    def succeeded(self) -> bool:
        return self.status == 0


class Standing(StrEnum):
    """How a job stands."""

    RUNNING = "running"
    DONE = "done"
    """Its last run did all, and the next one is not overdue."""
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Its last run was killed before it could say how it ended."""
    MISSED = "missed"
    """It should have run again meanwhile."""
    WAITING = "waiting"
    """It has not run yet, and need not have."""
    UNKNOWN = "unknown"
    """Nobody can tell: the last run says a time that is still to come, or nothing says when the next one is due."""


def standing(scheduled: Scheduled | None, last: Run | None, *, running: bool, now: datetime) -> Standing:
    """Return how a job stands. ``last`` is the run that began last; ``running``: a process of it lives."""
    if running:
        return Standing.RUNNING
    if last is not None and last.ended is None:
        return Standing.INTERRUPTED
    if last is not None and not last.succeeded:
        return Standing.FAILED
    if scheduled is None or scheduled.patience_seconds is None:
        return Standing.WAITING if last is None and scheduled is None else Standing.UNKNOWN
    if age_seconds(_newest(scheduled, last), now) is None:
        return Standing.UNKNOWN
    if is_overdue(scheduled, last, now):
        return Standing.MISSED
    return Standing.WAITING if last is None else Standing.DONE


def is_overdue(scheduled: Scheduled | None, last: Run | None, now: datetime) -> bool:
    """Return whether a job should have run again, also after one that failed or was interrupted."""
    if scheduled is None or scheduled.patience_seconds is None:
        return False
    age = age_seconds(_newest(scheduled, last), now)
    return age is not None and age > scheduled.patience_seconds


def _newest(scheduled: Scheduled, last: Run | None) -> str:
    """Return from when on the next run is waited for."""
    return scheduled.since if last is None else max(scheduled.since, last.ended or last.started)


def age_seconds(moment: str, now: datetime) -> float | None:
    """Return how long ago a time (ISO 8601) was; None for one that is still to come, by more than a minute, or none."""
    try:
        age = (now - datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return None
    return max(0.0, age) if age > -60 else None


def moment_text(moment: datetime) -> str:
    """Return a time as records have it: ISO 8601 in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def told_times(told: str) -> tuple[datetime, ...]:
    """Return the times in what ``systemd-analyze calendar --iterations`` printed (252 to 257), in the C locale.

    Each is told in the zone of the machine, and once more in UTC where that is another.
    """
    times: list[datetime] = []
    for line in told.splitlines():
        found = _TIME.match(line)
        if found is None:
            continue
        moment = datetime.strptime(found[2], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        if found[1] == "(in UTC)" and times:
            times[-1] = moment
        else:
            times.append(moment)
    return tuple(times)


def longest_gap_seconds(times: Sequence[datetime]) -> int | None:
    """Return the longest time between two that follow each other; None for less than two."""
    return max((round((later - earlier).total_seconds()) for earlier, later in pairwise(times)), default=None)


def service_unit(job: Job, command: str, home: str) -> str:
    """Return the unit that runs a job once. ``command`` is the absolute path of vmkeep, in which systemd expands no
    variables, and allows neither quotes nor backslashes (``may_be_started``).

    It needs the home, where the run is recorded. The repository may be away: to tell that is the job's.
    """
    return f"""{MARK} `{command_line("vmkeep schedule remove", job)}` takes it away, and the next `set` writes it anew.
[Unit]
Description=vmkeep: {job}
After=libvirtd.service virtqemud.service local-fs.target remote-fs.target network-online.target
Wants=network-online.target
RequiresMountsFor={_word(home)}

[Service]
Type=oneshot
Environment={_word(f"VMKEEP_HOME={home}")}
ExecStart={_word(command)} schedule run {job}
Nice=10
CPUWeight=20
IOWeight=20
IOSchedulingPriority=7
UMask=0077
KillMode=mixed
TimeoutStopSec=5min
"""


def may_be_started(command: str) -> bool:
    """Return whether systemd starts a program of that path (string_is_safe() in its source, 252 to 257)."""
    return command.isprintable() and not set(command) & set("\"'\\")


def timer_unit(scheduled: Scheduled) -> str:
    """Return the unit that says when. One that was missed because the machine was off is made up for."""
    return f"""{MARK} `{command_line("vmkeep schedule remove", scheduled.job)}` takes it away.
[Unit]
Description=vmkeep: when {scheduled.job} runs

[Timer]
OnCalendar={scheduled.calendar.replace("%", "%%")}
Persistent=true
RandomizedDelaySec={scheduled.delay_seconds}

[Install]
WantedBy=timers.target
"""


def unit_name(job: Job, home: str, default_home: str, digest: str) -> str:
    """Return how the units of a job are called, without their ending.

    ``digest`` tells installations with other homes apart: each has a schedule of its own.
    """
    return f"vmkeep-{job}" if home == default_home else f"vmkeep-{job}-{digest[:8]}"


def _word(text: str) -> str:
    """Return a text as one word of a unit (systemd.syntax(7)), of which nothing is expanded."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return text if re.fullmatch(r"[\w/.,:=@+-]+", text, re.ASCII) else f'"{plain}"'
