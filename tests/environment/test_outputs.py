"""Outputs that are closed, full, or without a reader: the work counts, and the other output tells of it."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cli.command_line import COMMAND, Answer, environment, typed, vmkeep
from tests.integration.cli.test_every_command import NAMES
from vmkeep.cli.main import main
from vmkeep.cli.outputs import OutputLost

_NOWHERE = ("-c", "qemu+unix:///system?socket=/nowhere/libvirt-sock")


def run(home: Path, streams: str, *arguments: str) -> Answer:
    """Run a command line with streams as a shell makes them: ">&-", "2>/dev/full"; what is left of them is returned."""
    return typed(f"exec {{command}} {streams}", *arguments, env=environment(home))


def without_reader(home: Path, *arguments: str) -> Answer:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [*COMMAND, *arguments],
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    return Answer(ended.returncode, "", ended.stderr)


class Full(io.TextIOBase):
    """Standard output as ``make_whole`` leaves it, on a full disk."""

    def write(self, _text: str) -> int:
        raise OutputLost(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("installation") / "home"
    assert vmkeep(home, "init").status == 0
    return home


@pytest.mark.parametrize("streams", [">&-", ">/dev/full"])
def test_work_whose_result_cannot_be_printed_was_done_and_is_told_as_done(tmp_path: Path, streams: str) -> None:
    home = tmp_path / "home"
    ended = run(home, streams, "init")
    assert ended.status == 50
    assert "What was asked for was done, but standard output cannot be written" in ended.err
    assert "need not be run again" in ended.err
    assert vmkeep(home, "points").out == "no points\n"
    ended = run(home, streams, "--json", "points")
    assert (ended.status, ended.error()["code"]) == (50, "output-failed"), ended


def test_reader_that_went_away_is_told_of_work_and_not_of_a_list(home: Path, tmp_path: Path) -> None:
    assert without_reader(home, "points") == Answer(141, "", "")
    ended = without_reader(tmp_path / "home", "--json", "init")
    assert (ended.status, ended.error()["code"]) == (141, "output-failed")


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full"])
def test_what_standard_error_does_not_take_is_printed_on_standard_output(home: Path, streams: str) -> None:
    ended = run(home, streams, "points")
    assert ended.status == 0  # nothing was to be said there
    failed = run(home, streams, *_NOWHERE, "vm", "list")
    assert failed.status == 31
    assert "[hypervisor-unavailable]" in failed.out
    failed = run(home, streams, "--json", *_NOWHERE, "vm", "list")
    assert (failed.status, json.loads(failed.out)["error"]["code"]) == (31, "hypervisor-unavailable")


def test_with_all_streams_closed_the_exit_status_is_left_and_no_file_gets_what_is_printed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run(home, "<&- >&- 2>&-", "init").status == 50
    assert run(home, "<&- >&- 2>&-", *_NOWHERE, "vm", "list").status == 31
    assert vmkeep(home, "verify", "--all").status == 0


@pytest.mark.parametrize("name", sorted(name for name in NAMES if not hasattr(NAMES[name], "commands")))
def test_help_of_every_command_on_a_full_disk(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    assert main([*name.split()[1:], "--help"]) == 50
    assert "[output-failed]" in capfd.readouterr().err


def test_help_in_a_process_of_its_own(home: Path) -> None:
    assert run(home, ">/dev/full", "--help").status == 50
    assert run(home, ">&-", "--version").status == 50
    assert without_reader(home, "backup", "--help").status == 141
