"""Every command beside a libvirtd that answers nothing: it says so, and Ctrl-C ends the wait."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.environment.mute import MuteLibvirtd, mute_libvirtd
from tests.integration.cli.command_line import COMMAND, Answer, environment, vmkeep

_COMMANDS = (
    ("vm", "list"),
    ("checkpoint", "delete", "guest", "some", "--yes"),
    ("snapshot", "create", "guest", "some"),
    ("backup", "guest"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("installation") / "home"
    assert vmkeep(home, "init").status == 0
    return home


@pytest.fixture(scope="module")
def impatient_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation that waits for one second only, with what the commands before have left to put right."""
    home = tmp_path_factory.mktemp("impatient") / "home"
    assert vmkeep(home, "init").status == 0
    (home / "vmkeep.toml").write_text("stalled_after_seconds = 1\n")
    return home


@pytest.fixture
def libvirtd(tmp_path: Path) -> Iterator[MuteLibvirtd]:
    with mute_libvirtd(tmp_path) as mute:
        yield mute


@contextmanager
def started(home: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answered(process: subprocess.Popen[str]) -> Answer:
    out, err = process.communicate(timeout=20)
    return Answer(process.returncode, out, err)


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("command", _COMMANDS, ids=lambda words: "-".join(words[:2]))
def test_daemon_that_hangs_is_told_and_given_up(
    libvirtd: MuteLibvirtd, impatient_home: Path, command: tuple[str, ...]
) -> None:
    ended = vmkeep(impatient_home, "--json", "-c", libvirtd.uri, *command)
    said = json.loads(ended.err)
    assert (ended.status, said["error"]["code"]) == (31, "hypervisor-hangs"), ended
    assert "connect to" in said["error"]["message"]
    assert any("libvirt has answered nothing" in notice for notice in said["notices"])


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        (("vm", "list"), signal.SIGINT, 130),
        (("backup", "guest"), signal.SIGTERM, 143),
        (("doctor",), signal.SIGINT, 130),
    ],
    ids=["vm", "backup", "doctor"],
)
def test_signal_ends_the_wait_at_once(
    libvirtd: MuteLibvirtd, home: Path, command: tuple[str, ...], number: signal.Signals, status: int
) -> None:
    with started(home, "--json", "-c", libvirtd.uri, *command) as process:
        libvirtd.wait_for_client()
        sent = time.monotonic()
        process.send_signal(number)
        ended = answered(process)
    assert time.monotonic() - sent < 2
    assert ended.status == status, ended
    said = json.loads(ended.err)
    assert "libvirt" in said["error"]["hint"]
    assert any("libvirt has answered nothing" in note for note in said["notes"])


def test_doctor_finds_a_daemon_that_hangs_and_looks_at_the_rest(libvirtd: MuteLibvirtd, impatient_home: Path) -> None:
    found = vmkeep(impatient_home, "--json", "-c", libvirtd.uri, "doctor")
    messages = {finding["code"]: finding["message"] for finding in found.document()["doctor"]["findings"]}
    assert "answered nothing" in messages["libvirt-unreachable"]
    assert "key-place" in messages
    assert found.status == 37


def test_people_are_told_at_once_when_the_wait_is_long_and_not_at_its_end(
    libvirtd: MuteLibvirtd, impatient_home: Path
) -> None:
    with started(impatient_home, "-c", libvirtd.uri, "vm", "list") as process:
        assert process.stderr is not None
        assert "has answered nothing for 1 s, asked to connect" in process.stderr.readline()
        assert "[hypervisor-hangs]" in process.stderr.readline()
