"""The timers of systemd by which jobs run: their units written, made to count, looked at and taken away.

Root alone writes them, beside their place and through no link. A unit of the same name that somebody else wrote is
left alone. Where systemd does not run (a container), they are written all the same, and what to run later is told.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

from vmkeep.config import Settings, home_place
from vmkeep.errors import InvalidRequest, OperationFailed, PermissionRefused, TargetExists
from vmkeep.filesystem import file_errors, replace_file, sync_directory
from vmkeep.logs import get_logger
from vmkeep.planning.schedule import (
    ITERATIONS,
    MARK,
    Job,
    Scheduled,
    longest_gap_seconds,
    may_be_started,
    service_unit,
    timer_unit,
    told_times,
    unit_name,
)
from vmkeep.values import dataclass

_log = get_logger(__name__)
UNITS: Final = Path("/etc/systemd/system")
_RUNS: Final = Path("/run/systemd/system")
"""Is there where systemd is the system's (sd_booted(3))."""
_WANTED: Final = "timers.target.wants"
_ASKED_SECONDS: Final = 60
_CLOCK_SECONDS: Final = 3600
# Of which times are made. Whatever reads them or does not, nothing else of a unit can be written with these.
_LETTERS: Final = re.compile(r"[\w :*,./~+-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Calendar:
    """What systemd says of an expression: the next times, the first of them first. ``checked``: it was asked at all.

    ``gap_seconds`` is the longest time between two, as it is where the clock is never changed. ``leaps``: there is a
    night in which the clock goes forward over such a time, and systemd leaves it out (252 and 257 do).
    """

    checked: bool
    times: tuple[datetime, ...] = ()
    gap_seconds: int | None = None
    leaps: bool = False


@dataclass(frozen=True, slots=True)
class Timer:
    """How the timer of a job stands. ``problem`` says why the job will not run by itself; None when it will."""

    name: str
    problem: str | None


def systemd_runs() -> bool:
    """Return whether systemd is what runs this system's services."""
    return _RUNS.is_dir()


def read_calendar(expression: str) -> Calendar:
    """Have systemd read an expression. Raises InvalidRequest for one that it refuses, or that comes once or never."""
    hint = "`man systemd.time` describes them, `systemd-analyze calendar` tries one: 'daily', 'Mon..Fri 02:30', ..."
    if not expression.strip() or not _LETTERS.fullmatch(expression):
        raise InvalidRequest(f"{expression!r} is no time of systemd's", hint=hint)
    program = shutil.which("systemd-analyze")
    if program is None:
        return Calendar(checked=False)
    command = [program, "calendar", f"--iterations={ITERATIONS}", "--", expression]
    ended = _run(command)
    if ended.returncode != 0:
        raise InvalidRequest(f"{expression!r} is no time of systemd's: {_last_line(ended.stderr)}", hint=hint)
    times = told_times(ended.stdout)
    if len(times) < 2:
        raise InvalidRequest(
            f"{expression!r} comes {'once' if times else 'never'}, and a job must come again", hint=hint
        )
    # One night a year would else allow every night to be left out.
    steady = longest_gap_seconds(told_times(_run(command, zone="UTC0").stdout))
    longest = longest_gap_seconds(times)
    leaps = steady is not None and longest is not None and longest > steady + _CLOCK_SECONDS
    return Calendar(True, times, steady, leaps)


def timer_name(settings: Settings, job: Job) -> str:
    """Return how the units of a job of this installation are called, without their ending."""
    home = str(settings.home)
    return unit_name(
        job, home, str(home_place(environ={})), sha256(home.encode("utf-8", "surrogateescape")).hexdigest()
    )


def require_place(settings: Settings, jobs: Iterable[Job], units: Path = UNITS) -> None:
    """Raise PermissionRefused for who is not root, and TargetExists for a unit that somebody else wrote."""
    if os.geteuid() != 0:
        raise PermissionRefused(
            "only root may have systemd run something by itself",
            path=str(units),
            hint="Run it with sudo; or have cron run `vmkeep schedule run backup` as this user.",
        )
    for job in jobs:
        for path in _paths(settings, job, units):
            if os.path.lexists(path) and not _is_ours(path):
                raise TargetExists(
                    f"{path} is there, and `vmkeep schedule` did not write it",
                    path=str(path),
                    hint=f"Look at it. When it is not needed: `systemctl disable --now {path.stem}.timer`, and move it "
                    "away.",
                )


def write_timer(settings: Settings, scheduled: Scheduled, command: Path, units: Path = UNITS) -> None:
    """Write both units of a job. Raises NoSpace, PermissionRefused and others with the file's path."""
    service, timer = _paths(settings, scheduled.job, units)
    for path, text in (
        (service, service_unit(scheduled.job, str(command), str(settings.home))),
        (timer, timer_unit(scheduled)),
    ):
        with file_errors(path):
            units.mkdir(mode=0o755, parents=True, exist_ok=True)
            replace_file(path, text.encode("utf-8", "surrogateescape"), 0o644)


def start_timers(names: Sequence[str]) -> tuple[str, ...]:
    """Have systemd run the timers from now on; return the commands to be run by hand, none where that was done.

    Raises OperationFailed with what systemd said.
    """
    timers = [f"{name}.timer" for name in names]
    commands = [["systemctl", "daemon-reload"], ["systemctl", "enable", *timers], ["systemctl", "restart", *timers]]
    if not systemd_runs():
        return tuple(" ".join(command) for command in commands)
    for command in commands:
        _systemctl(command)
    return ()


def remove_timers(settings: Settings, jobs: Iterable[Job], units: Path = UNITS) -> tuple[str, ...]:
    """Take the units of jobs away that are vmkeep's own; return the names of those that were there.

    A run that is under way goes on to its end. Raises OperationFailed with what systemd said.
    """
    removed = []
    for job in jobs:
        name = timer_name(settings, job)
        own = [path for path in _paths(settings, job, units) if _is_ours(path)]
        if not own:
            continue
        if systemd_runs():
            _systemctl(["systemctl", "disable", "--now", f"{name}.timer"])
        wanted = units / _WANTED / f"{name}.timer"
        for path in (*([wanted] if wanted.is_symlink() else []), *own):
            with file_errors(path):
                path.unlink(missing_ok=True)
        removed.append(name)
    if removed:
        with file_errors(units):
            sync_directory(units)
        if systemd_runs():
            _systemctl(["systemctl", "daemon-reload"])
    return tuple(removed)


def look_at_timer(settings: Settings, scheduled: Scheduled, units: Path = UNITS) -> Timer:
    """Return how the timer of a job stands; what cannot be told is no problem."""
    name = timer_name(settings, scheduled.job)
    for path in _paths(settings, scheduled.job, units):
        if not os.path.lexists(path):
            return Timer(name, f"its unit {path} is gone")
        if not _is_ours(path):
            return Timer(name, f"its unit {path} is not the one that vmkeep wrote")
    timer = f"{name}.timer"
    if not systemd_runs():
        return Timer(name, "systemd does not run here, so nothing starts it")
    for question, wanted in (("is-enabled", "enabled"), ("is-active", "active")):
        try:
            said = _run(["systemctl", question, timer]).stdout.strip()
        except OperationFailed:
            return Timer(name, None)
        if said and said != wanted:
            return Timer(name, f"systemd says that {timer} is {said}")
    return Timer(name, None)


def own_command() -> Path:
    """Return the path by which systemd shall start vmkeep: the one on PATH, which stays over an upgrade.

    Raises InvalidRequest when this command was not started as an installed program.
    """
    started = Path(sys.argv[0]).absolute()
    found = shutil.which("vmkeep")
    if found is not None and (not started.is_file() or Path(found).samefile(started)):
        started = Path(found).absolute()
    if started.name == "vmkeep" and os.access(started, os.X_OK) and may_be_started(str(started)):
        return started
    raise InvalidRequest(
        "vmkeep was not started as an installed program, which systemd could start as well",
        hint="Install it (`scripts/install`), and run `vmkeep schedule set` with that.",
    )


def has_units(settings: Settings, job: Job, units: Path = UNITS) -> bool:
    """Return whether there is a unit of a job that vmkeep wrote."""
    return any(_is_ours(path) for path in _paths(settings, job, units))


def _paths(settings: Settings, job: Job, units: Path) -> tuple[Path, Path]:
    name = timer_name(settings, job)
    return units / f"{name}.service", units / f"{name}.timer"


def _is_ours(path: Path) -> bool:
    """Return whether a unit is a plain file that vmkeep wrote; False for a link, by which units are masked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        return os.read(descriptor, len(MARK)) == MARK.encode()
    finally:
        os.close(descriptor)


def _systemctl(command: Sequence[str]) -> None:
    ended = _run(command)
    if ended.returncode != 0:
        raise OperationFailed(
            f"`{' '.join(command)}` failed: {_last_line(ended.stderr) or f'status {ended.returncode}'}",
            hint="The units are written. Mend what systemd says, then run the command again.",
        )


def _run(command: Sequence[str], zone: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of systemd's to its end, in the time zone of the machine unless another is named.

    Raises OperationFailed when it cannot be run, or hangs.
    """
    # systemd itself goes by the zone of the machine, whatever that of this command is.
    environment = {name: text for name, text in os.environ.items() if name != "TZ"}
    _log.info("run", command=" ".join(command))
    try:
        return subprocess.run(
            command,
            env={**environment, **({} if zone is None else {"TZ": zone}), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASKED_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = f"no answer within {_ASKED_SECONDS} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        raise OperationFailed(f"`{' '.join(command)}` failed: {why}", hint="Look at `systemctl status`.") from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
