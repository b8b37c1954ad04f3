"""Timers and records of jobs in folders of the test's own, and what doctor is told of them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vmkeep.config import Settings, load_settings
from vmkeep.errors import CatalogDamaged, InvalidRequest, TargetExists
from vmkeep.flows import schedule, timers
from vmkeep.flows.schedule import (
    job_standing,
    jobs_standing,
    lock_path,
    read_runs,
    record_run,
    schedule_findings,
)
from vmkeep.flows.timers import (
    has_units,
    look_at_timer,
    own_command,
    read_calendar,
    remove_timers,
    require_place,
    write_timer,
)
from vmkeep.host.tasks.checkup import Severity
from vmkeep.locks import FileLock
from vmkeep.planning.schedule import (
    Job,
    Run,
    Scheduled,
    Standing,
    Untold,
    VmFailure,
    moment_text,
)

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has timers")


def ago(days: float) -> str:
    return moment_text(datetime.now(UTC) - timedelta(days=days))


DAILY = Scheduled(Job.BACKUP, "daily", 900, 86400, ago(0))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "home").mkdir(mode=0o700)
    return load_settings(home=tmp_path / "home", environ={})


def note(settings: Settings, since: str) -> None:
    """Record that the backup is to run daily, as `schedule set` does."""
    settings.schedule_dir.mkdir(mode=0o700, exist_ok=True)
    value = {"calendar": "daily", "delay_seconds": 900, "gap_seconds": 86400, "since": since}
    (settings.schedule_dir / "backup.json").write_text(json.dumps(value))


def codes(settings: Settings) -> set[str]:
    """Return what doctor is told, but that the units of the test are nowhere."""
    return {str(finding.code) for finding in schedule_findings(settings)} - {"schedule-broken"}


@needs_systemd
@pytest.mark.parametrize("calendar", ["foo", "2020-01-01", "2099-12-24 10:00", "daily\nPersistent=no", "", "--version"])
def test_time_that_systemd_refuses_or_that_comes_once_is_refused(calendar: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_calendar(calendar)
    assert raised.value.hint


@needs_systemd
@pytest.mark.parametrize(
    ("calendar", "gap_hours"),
    [("Mon..Fri 02:30 UTC", 72), ("Mon *-*-* *:0/5:00 UTC", 144), ("*-*-01 00:00 UTC", 744)],
)
def test_longest_gap_is_that_of_the_times_which_systemd_tells(calendar: str, gap_hours: int) -> None:
    found = read_calendar(calendar)
    assert found.gap_seconds is not None
    assert abs(found.gap_seconds - gap_hours * 3600) <= 300
    assert not found.leaps


@needs_systemd
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has mounts of its own")
@pytest.mark.parametrize(("calendar", "leaps"), [("02:30", True), ("03:30", False), ("*:0/30", False)])
def test_night_in_which_the_clock_goes_forward_is_told_and_is_not_every_nights_gap(
    tmp_path: Path, calendar: str, leaps: bool
) -> None:
    shutil.copy("/usr/share/zoneinfo/Europe/Berlin", tmp_path / "localtime")
    probe = (
        "from vmkeep.flows.timers import read_calendar; "
        f"found = read_calendar({calendar!r}); print(found.gap_seconds, found.leaps)"
    )
    start = f"exec {sys.executable} -c {shlex.quote(probe)}"
    lines = f"mount --bind {tmp_path}/localtime $(realpath /etc/localtime) && {start}"
    command = ["unshare", "-m", "--propagation", "private", "/bin/sh", "-c", lines]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    gap, leapt = ended.stdout.split()
    assert (int(gap), leapt == "True") == (1800 if "*" in calendar else 86400, leaps)


def test_time_is_not_judged_where_systemd_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    assert read_calendar("whatever").checked is False
    for harmful in ("daily\n[Service]", "daily\\", "%n", "", " "):
        with pytest.raises(InvalidRequest):
            read_calendar(harmful)


def test_units_are_written_seen_and_removed(settings: Settings, tmp_path: Path) -> None:
    write_timer(settings, DAILY, Path("/usr/local/bin/vmkeep"), tmp_path)
    assert has_units(settings, Job.BACKUP, tmp_path)
    assert not has_units(settings, Job.VERIFY, tmp_path)
    (timer,) = tmp_path.glob("*.timer")
    (tmp_path / "timers.target.wants").mkdir()
    wanted = tmp_path / "timers.target.wants" / timer.name
    wanted.symlink_to(timer)
    problem = look_at_timer(settings, DAILY, tmp_path).problem
    assert problem is None or "unit" not in problem
    assert remove_timers(settings, list(Job), tmp_path) == (timer.stem,)
    assert not list(tmp_path.glob("vmkeep-*"))
    assert not wanted.is_symlink()
    gone = look_at_timer(settings, DAILY, tmp_path).problem
    assert gone is not None
    assert "is gone" in gone


@needs_systemd
def test_units_of_odd_places_are_what_systemd_reads(settings: Settings, tmp_path: Path) -> None:
    home, program = tmp_path / '100% "ours" $x\\y', tmp_path / "my $tools 5%" / "vmkeep"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    write_timer(replace(settings, home=home), DAILY, program, tmp_path / "units")
    units = [str(path) for path in (tmp_path / "units").iterdir()]
    ended = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    # What other units of the machine are like is no matter of ours.
    assert [line for line in ended.stderr.splitlines() if "vmkeep" in line] == []


@needs_root
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_unit_of_somebody_else_is_left_alone(settings: Settings, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{timers.timer_name(settings, Job.BACKUP)}.timer"
    ours = tmp_path / "ours"
    write_timer(settings, DAILY, Path("/usr/local/bin/vmkeep"), ours)
    if kind == "file":
        path.write_text("[Timer]\nOnCalendar=hourly\n")
    elif kind == "link":
        path.symlink_to(ours / path.name)
    else:
        path.mkdir()
    before = os.lstat(path)
    with pytest.raises(TargetExists):
        require_place(settings, [Job.BACKUP], tmp_path)
    assert remove_timers(settings, [Job.BACKUP], tmp_path) == ()
    assert os.lstat(path).st_ino == before.st_ino


def test_command_that_no_timer_can_start_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", [str(tmp_path / "main.py")])
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(InvalidRequest):
        own_command()
    program = tmp_path / "vmkeep"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    link = tmp_path / "bin" / "vmkeep"
    link.parent.mkdir()
    link.symlink_to(program)
    monkeypatch.setattr("sys.argv", [str(program)])
    monkeypatch.setitem(os.environ, "PATH", str(link.parent))
    assert own_command() == link  # which an upgrade leads elsewhere
    for name in ('a"b', "a\\b", "a\nb"):
        odd = tmp_path / name / "vmkeep"
        odd.parent.mkdir()
        odd.symlink_to(program)
        monkeypatch.setitem(os.environ, "PATH", str(odd.parent))
        with pytest.raises(InvalidRequest):
            own_command()


def test_runs_are_recorded_newest_first_and_not_without_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "MOST_RUNS", 3)
    for number in range(5):
        record_run(settings, Run(f"{number}", Job.BACKUP, ago(1)))
    ended = Run("4", Job.BACKUP, ago(1), ago(0.9), 0, vms=("a",), problems=("x",))
    record_run(settings, ended)
    runs = read_runs(settings, Job.BACKUP)
    assert ([run.id for run in runs], runs[0]) == (["4", "3", "2"], ended)
    assert (settings.schedule_dir / "backup.runs.json").stat().st_mode & 0o777 == 0o600
    full = replace(ended, failures=(VmFailure("b", "vm-busy", "it"),), harmed=("c",), untold=(Untold("ping", "no"),))
    record_run(settings, full)
    assert read_runs(settings, Job.BACKUP)[0] == full


def test_run_lives_as_long_as_its_lock(settings: Settings) -> None:
    record_run(settings, Run("a", Job.BACKUP, ago(0)))
    lock = FileLock.try_acquire(lock_path(settings, Job.BACKUP), note=f"run (process {os.getpid()})")
    assert lock is not None
    stands = job_standing(settings, Job.BACKUP)
    assert (stands.standing, stands.process) == (Standing.RUNNING, os.getpid())
    assert codes(settings) == set()
    note(settings, ago(9))
    record_run(settings, Run("a", Job.BACKUP, ago(3)))
    assert job_standing(settings, Job.BACKUP).standing is Standing.RUNNING
    assert codes(settings) == {"run-missed"}  # one that hangs for days
    (settings.schedule_dir / "backup.json").unlink()
    lock.release()
    assert job_standing(settings, Job.BACKUP).standing is Standing.INTERRUPTED
    assert codes(settings) == {"run-failed"}


def test_job_that_did_not_come_is_a_problem_whatever_its_last_run_was(settings: Settings) -> None:
    assert jobs_standing(settings) == ()
    note(settings, ago(1))
    assert codes(settings) == set()
    note(settings, ago(3))
    assert codes(settings) == {"run-missed"}
    record_run(settings, Run("a", Job.BACKUP, ago(0.1), ago(0.1), 0))
    assert codes(settings) == set()
    record_run(settings, Run("b", Job.BACKUP, ago(0.1), ago(0.1), 37, failures=(VmFailure("web", "vm-busy", "held"),)))
    (failed,) = (each for each in schedule_findings(settings) if str(each.code) == "run-failed")
    assert "web: held [vm-busy]" in failed.message
    assert failed.severity is Severity.PROBLEM
    record_run(settings, Run("c", Job.BACKUP, ago(2), ago(2), 37, code="no-space", untold=(Untold("ping", "no"),)))
    assert codes(settings) == {"run-missed", "run-failed", "run-untold"}


@pytest.mark.parametrize("text", ["", "[]", '{"runs": [{}]}', '{"runs": 7}', '{"runs": [null]}', "[" * 100_000])
def test_record_that_says_nothing_is_told_and_written_anew(settings: Settings, text: str) -> None:
    settings.schedule_dir.mkdir(mode=0o700)
    path = settings.schedule_dir / "backup.runs.json"
    path.write_text(text)
    with pytest.raises(CatalogDamaged):
        read_runs(settings, Job.BACKUP)
    (finding,) = schedule_findings(settings)
    assert (str(finding.code), finding.path) == ("schedule-broken", str(path))
    record_run(settings, Run("a", Job.BACKUP, ago(0)))
    assert len(read_runs(settings, Job.BACKUP)) == 1


@pytest.mark.parametrize(
    "value", [{}, {"calendar": "daily", "delay_seconds": 1, "gap_seconds": 1, "since": "yesterday"}, {"since": 7}]
)
def test_record_of_a_schedule_that_says_nothing_is_told(settings: Settings, value: dict[str, object]) -> None:
    settings.schedule_dir.mkdir(mode=0o700)
    (settings.schedule_dir / "backup.json").write_text(json.dumps(value))
    assert [str(each.code) for each in schedule_findings(settings)] == ["schedule-broken"]
