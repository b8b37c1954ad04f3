"""`vmkeep schedule`: timers in a place of their own, and runs that are recorded whatever becomes of their command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.command_line import COMMAND, environment, vmkeep
from vmkeep.locks import FileLock

TEST = ("-c", "test:///default")
TEST_VM = "6695eb01-f6a4-8304-79aa-97f2502e193f"
UNITS = "/etc/systemd/system"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of an installation with an empty repository."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    assert vmkeep(home, "init").status == 0
    return home


def job(home: Path, name: str) -> dict[str, Any]:
    """Return how a job stands."""
    jobs = vmkeep(home, "schedule", "show", "--json").document()["jobs"]
    (found,) = (each for each in jobs if each["job"] == name)
    assert isinstance(found, dict)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has mounts of its own")
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_schedule_is_set_and_removed_with_its_units(tmp_path: Path, home: Path) -> None:
    units = tmp_path / "units"
    units.mkdir()
    lines = (
        "set -eu",
        f"mount --bind {units} {UNITS}",
        "vmkeep schedule set --backup '*-*-* 02:30' --verify 'Sun 05:00' --delay 10m --json",
        f"cp -a {UNITS} {tmp_path}/written",
        "vmkeep schedule show --json",
        "vmkeep schedule remove --json",
    )
    installed = Path(sys.executable).parent
    env = {**environment(home), "PATH": f"{installed}:{os.environ['PATH']}"}
    command = ["unshare", "-m", "--propagation", "private", "/bin/sh", "-c", "\n".join(lines)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr

    decoder, documents, rest = json.JSONDecoder(), [], ended.stdout.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        documents.append(document)
        rest = rest[end:].strip()
    made, shown, removed = documents
    # A night on which the clock is changed may be among them.
    gaps = [(each["job"], round(each["gap_seconds"] / 86400), each["delay_seconds"]) for each in made["set"]]
    assert gaps == [("backup", 1, 600), ("verify", 7, 600)]
    assert made["checked"] is True
    assert [(each["job"], each["standing"]) for each in shown["jobs"]] == [("backup", "waiting"), ("verify", "waiting")]
    assert all(each["next"] for each in shown["jobs"])
    written = {path.name: path for path in (tmp_path / "written").iterdir()}
    assert len(written) == 4
    (timer,) = (path for name, path in written.items() if name.startswith("vmkeep-backup") and name.endswith("timer"))
    assert "OnCalendar=*-*-* 02:30\n" in timer.read_text()
    assert timer.stat().st_mode & 0o777 == 0o644
    (service,) = (path for name, path in written.items() if name.startswith("vmkeep-verify") and "service" in name)
    assert f"ExecStart={installed}/vmkeep schedule run verify\n" in service.read_text()
    assert f"VMKEEP_HOME={home}" in service.read_text()
    assert removed == {"removed": ["backup", "verify"]}
    assert list(units.iterdir()) == []


@pytest.mark.parametrize("options", [(), ("--delay", "1h"), ("--backup", "daily", "--delay", "soon"), ("--backup=",)])
def test_schedule_that_cannot_be_meant_is_refused(home: Path, options: tuple[str, ...]) -> None:
    answer = vmkeep(home, "schedule", "set", *options, "--json")
    assert (answer.status, answer.error()["code"]) == (2, "invalid-request")
    assert not (home / "schedule").exists()


def test_run_that_failed_is_recorded_with_its_vms_and_told_by_doctor(home: Path) -> None:
    (home / "vmkeep.toml").write_text('[tell]\nwebhook_url_file = "/nowhere/hook"\n')
    answer = vmkeep(home, "schedule", "run", "backup", "--json", *TEST)
    assert (answer.status, json.loads(answer.err)["error"]["code"]) == (37, "incomplete")
    run = answer.document()["run"]
    # libvirt's test driver has no jobs, and no QEMU, which doctor calls a problem.
    assert (run["status"], [each["vm"] for each in run["failures"]]) == (37, ["test"])
    assert run["problems"]
    assert [each["way"] for each in run["untold"]] == ["webhook"]
    stands = job(home, "backup")
    assert (stands["standing"], stands["runs"]) == ("failed", [run])
    doctor = vmkeep(home, "doctor", "--json", *TEST)
    found = {each["code"]: each for each in doctor.document()["doctor"]["findings"]}
    assert doctor.status == 37
    assert "test: " in found["run-failed"]["message"]
    assert found["run-untold"]["severity"] == "warning"


def test_repository_that_is_away_is_recorded(tmp_path: Path, home: Path) -> None:
    (home / "repository").rename(tmp_path / "away")
    answer = vmkeep(home, "schedule", "run", "verify", "--json", *TEST)
    run = answer.document()["run"]
    assert answer.status == run["status"] != 0
    assert answer.error()["code"] == run["code"] == "repository-not-found"


@contextmanager
def in_its_command(home: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a run, and yield it and its command, which waits for its VM as long as the block lasts."""
    lock = FileLock.try_acquire(home / "locks" / f"{TEST_VM}.lock", note=f"a test (process {os.getpid()})")
    assert lock is not None
    with lock:
        process = subprocess.Popen(
            [*COMMAND, "schedule", "run", "backup", "--json", *TEST],
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: child_of(process.pid) is not None)
        child = child_of(process.pid)
        assert child is not None
        yield process, child


def child_of(parent: int) -> int | None:
    """Return the process of the command, when its engine has started, and signals are handed to it."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with suppress(OSError):
            if any(os.path.realpath(each).endswith("flows.sqlite") for each in Path(f"/proc/{pid}/fd").glob("*")):
                return int(pid)
    return None


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.crash
def test_run_that_is_killed_is_interrupted_and_takes_its_command_with_it(home: Path) -> None:
    with in_its_command(home) as (process, child):
        assert job(home, "backup")["standing"] == "running"
        again = vmkeep(home, "schedule", "run", "backup", "--json", *TEST)
        assert again.error()["code"] == "operation-runs"
        process.kill()
        process.communicate()
        wait_until(lambda: is_dead(child))
    stands = job(home, "backup")
    assert (stands["standing"], stands["runs"][0]["ended"]) == ("interrupted", None)


def test_run_that_is_ended_lets_its_command_end_and_says_so(home: Path) -> None:
    with in_its_command(home) as (process, child):
        process.terminate()
        wait_until(lambda: is_dead(child))
        out, err = process.communicate(timeout=60)
    assert process.returncode == json.loads(out)["run"]["status"] == 143
    assert json.loads(err)["error"]["code"] == "terminated"
