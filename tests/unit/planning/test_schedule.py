"""How a job stands, what systemd's times say, and what the units hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.planning.schedule import (
    MARGIN_SECONDS,
    Job,
    Run,
    Scheduled,
    Standing,
    is_overdue,
    longest_gap_seconds,
    moment_text,
    service_unit,
    standing,
    timer_unit,
    told_times,
    unit_name,
)
from vmkeep.spans import span_seconds, span_text

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
DAY = 86400


def ago(seconds: float) -> str:
    return moment_text(NOW - timedelta(seconds=seconds))


def scheduled(since: float = 30 * DAY, gap: int | None = DAY) -> Scheduled:
    return Scheduled(Job.BACKUP, "daily", 900, gap, ago(since))


def run(ended: float | None, status: int | None = 0) -> Run:
    if ended is None:
        return Run("a", Job.BACKUP, ago(60))
    return Run("a", Job.BACKUP, ago(ended + 10), ago(ended), status)


@pytest.mark.parametrize(
    ("what", "last", "running", "stands"),
    [
        (scheduled(), run(3600), False, Standing.DONE),
        (scheduled(), run(3600, 37), False, Standing.FAILED),
        (scheduled(), run(None), False, Standing.INTERRUPTED),
        (scheduled(), run(None), True, Standing.RUNNING),
        (scheduled(), run(3600), True, Standing.RUNNING),
        (scheduled(), run(DAY + 900 + MARGIN_SECONDS - 1), False, Standing.DONE),
        (scheduled(), run(DAY + 900 + MARGIN_SECONDS + 1), False, Standing.MISSED),
        (scheduled(since=3600), run(9 * DAY), False, Standing.DONE),
        (scheduled(since=3600), None, False, Standing.WAITING),
        (scheduled(), None, False, Standing.MISSED),
        (scheduled(gap=None), run(3600), False, Standing.UNKNOWN),
        (None, run(3600), False, Standing.UNKNOWN),
        (scheduled(), run(-7200), False, Standing.UNKNOWN),
    ],
)
def test_job_stands_by_its_last_run_and_what_is_old_is_never_good(
    what: Scheduled | None, last: Run | None, running: bool, stands: Standing
) -> None:
    assert standing(what, last, running=running, now=NOW) is stands


def test_failure_does_not_hide_that_the_next_run_did_not_come() -> None:
    assert is_overdue(scheduled(), run(9 * DAY, 37), NOW)
    assert not is_overdue(scheduled(), run(60, 37), NOW)


def test_times_are_those_in_utc_whatever_the_zone_of_the_machine() -> None:
    told = """  Original form: 02:30
Normalized form: *-*-* 02:30:00
    Next elapse: Sat 2026-10-24 02:30:00 CEST
       (in UTC): Sat 2026-10-24 00:30:00 UTC
       From now: 4h 52min left
       Iter. #2: Sun 2026-10-25 02:30:00 CEST
       (in UTC): Sun 2026-10-25 00:30:00 UTC
       From now: 1 day 4h left
   Iteration #3: Mon 2026-10-26 02:30:00 CET
       (in UTC): Mon 2026-10-26 01:30:00 UTC
"""
    times = told_times(told)
    assert [each.isoformat() for each in times] == [
        "2026-10-24T00:30:00+00:00",
        "2026-10-25T00:30:00+00:00",
        "2026-10-26T01:30:00+00:00",
    ]
    assert longest_gap_seconds(times) == 25 * 3600  # the night on which the clock goes back


def test_what_comes_once_or_never_has_no_gap() -> None:
    assert told_times("    Next elapse: never\n") == ()
    assert longest_gap_seconds(told_times("    Next elapse: Thu 2026-12-24 10:00:00 UTC\n")) is None


def test_service_runs_the_job_and_needs_the_home_alone() -> None:
    unit = service_unit(Job.BACKUP, "/usr/local/bin/vmkeep", "/var/lib/vmkeep")
    assert "ExecStart=/usr/local/bin/vmkeep schedule run backup\n" in unit
    assert "RequiresMountsFor=/var/lib/vmkeep\n" in unit
    assert "KillMode=mixed\n" in unit


def test_places_with_odd_names_are_one_word_of_which_nothing_is_expanded() -> None:
    unit = service_unit(Job.VERIFY, "/opt/my $tools/vmkeep", '/srv/100% "ours"')
    assert 'ExecStart="/opt/my $tools/vmkeep" schedule run verify\n' in unit  # the program itself is no variable
    assert 'Environment="VMKEEP_HOME=/srv/100%% \\"ours\\""\n' in unit


def test_timer_makes_up_for_what_was_missed() -> None:
    unit = timer_unit(Scheduled(Job.BACKUP, "Mon..Fri 02:30", 600, DAY, ago(0)))
    assert "OnCalendar=Mon..Fri 02:30\n" in unit
    assert "Persistent=true\n" in unit
    assert "RandomizedDelaySec=600\n" in unit


def test_each_home_has_units_of_its_own() -> None:
    assert unit_name(Job.BACKUP, "/var/lib/vmkeep", "/var/lib/vmkeep", "ab" * 32) == "vmkeep-backup"
    assert unit_name(Job.BACKUP, "/srv/other", "/var/lib/vmkeep", "ab" * 32) == "vmkeep-backup-abababab"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("26h", 93600), ("7d", 604800), ("2w", 1209600), ("0s", 0)]
)
def test_lengths_of_time_are_read(text: str, seconds: int) -> None:
    assert span_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "m", "1.5h", "-1h", "1h30m", "１5m", "9" * 9 + "d", "1 h"])  # noqa: RUF001
def test_what_is_no_length_of_time_is_none(text: str) -> None:
    assert span_seconds(text) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119, "119 s"), (900, "15 min"), (93600, "26 h"), (604800, "7 days")]
)
def test_lengths_of_time_are_told_in_their_largest_unit(seconds: float, text: str) -> None:
    assert span_text(seconds) == text
