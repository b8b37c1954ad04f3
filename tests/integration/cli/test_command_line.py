"""The command as a user runs it: what goes where, and with which exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.catalog.examples import WEB, WIN11, example_point, example_state, number
from tests.integration.cli.command_line import COMMAND, environment, vmkeep
from vmkeep.catalog import SqlCatalog
from vmkeep.config import load_settings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose catalogue has a branching chain of one VM and a point of another."""
    place = tmp_path / "home"
    place.mkdir(mode=0o700)
    with SqlCatalog.open(load_settings(home=place, environ={}).catalog_path) as catalog:
        state = example_state("tpm", 1)
        catalog.record_point(example_point("a", labels={"why": "[bold]x\x1b[31m"}, states=(state,)), [state])
        catalog.record_point(example_point("b", parent=number("a"), minute=1))
        catalog.record_point(example_point("c", parent=number("a"), minute=2))
        catalog.record_point(example_point("d", parent=number("b"), minute=3))
        catalog.record_point(example_point("w", vm=WEB, vm_name='we"b ü', minute=4))
    return place


@pytest.mark.parametrize("arguments", [("--json", "points"), ("points", "--json")])
def test_json_is_accepted_before_and_after_the_command(home: Path, arguments: tuple[str, ...]) -> None:
    answer = vmkeep(home, *arguments)
    assert (answer.status, answer.err) == (0, "")
    points = answer.document()["points"]
    assert [point["id"] for point in points] == [number(name) for name in "abcdw"]
    assert points[0]["state"]["tpm"]["present"]
    assert points[0]["disks"][0]["bytes_stored"] == 1024 * 1024


def test_points_are_listed_as_text_without_steering_the_terminal(home: Path) -> None:
    answer = vmkeep(home, "points", "win11")
    assert answer.status == 0
    lines = answer.out.splitlines()
    assert len(lines) == 5
    assert number("a")[:8] in lines[1]
    assert "2026-03-01 10:00:00" in lines[1]
    assert "3.0 MiB" in lines[1]
    assert "why=[bold]x\\x1b[31m" in lines[1]
    assert "\x1b" not in answer.out


def test_tree_keeps_a_chain_in_its_column_and_moves_a_branch_to_the_right(home: Path) -> None:
    lines = vmkeep(home, "points", "--tree").out.splitlines()
    shown = [line.split("  ")[0] for line in lines]
    short = {name: number(name)[:8] for name in "abcdw"}
    assert shown == [
        f"win11 ({WIN11})",
        f"● {short['a']}",
        f"├─● {short['b']}",
        f"│ ● {short['d']}",
        f"● {short['c']}",
        f'we"b ü ({WEB})',
        f"● {short['w']}",
    ]


def test_short_ids_are_long_enough_to_be_unique(tmp_path: Path) -> None:
    with SqlCatalog.open(tmp_path / "catalog.sqlite") as catalog:
        for digit in "01":
            catalog.record_point(example_point("p", point_id="a" * 10 + digit * 22))
    lines = vmkeep(tmp_path, "points").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["a" * 10 + "0", "a" * 10 + "1"]


def test_point_is_shown_with_all_details(home: Path) -> None:
    shown = vmkeep(home, "point", "show", number("a")[:6], "--json").document()["point"]
    assert shown["id"] == number("a")
    assert shown["children"] == [number("b"), number("c")]
    assert shown["disks"][0]["source"] == "/images/vda.qcow2"
    text = vmkeep(home, "point", "show", "win11@latest").out
    assert number("d") in text
    assert "/images/vda.qcow2" in text


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("points", "nobody"), 3, "vm-not-found"),
        (("point", "show", "ffffffff"), 4, "point-not-found"),
        (("point", "delete", "win11@latest"), 2, "invalid-request"),
        (("restore", "win11@latest"), 2, "invalid-request"),
        (("restore", "win11@latest", "--output", "x", "--as", "y"), 2, "invalid-request"),
        (("restore", "win11@latest", "--output", "x", "--tpm", "new"), 2, "invalid-request"),
        (("restore", "win11@latest", "--as", "x", "--format", "raw"), 2, "invalid-request"),
        (("restore", "nobody@latest", "--as", "x"), 4, "point-not-found"),
        (("backup",), 2, "invalid-request"),
        (("backup", "win11", "--all"), 2, "invalid-request"),
        (("backup", "win11", "--label", "novalue"), 2, "invalid-request"),
        (("verify",), 2, "invalid-request"),
        (("verify", "--all", "--sample", "0"), 2, "invalid-request"),
        (("verify", "win11"), 5, "repository-not-found"),
        (("key", "export"), 5, "repository-not-found"),
        (("key", "import", "/absent"), 7, "host-file-missing"),
        (("nonsense",), 2, "invalid-request"),
        (("points", "--nonsense"), 2, "invalid-request"),
        (("point",), 2, "invalid-request"),
        ((), 2, "invalid-request"),
    ],
)
def test_error_is_one_json_object_on_standard_error_and_nothing_on_standard_output(
    home: Path, arguments: tuple[str, ...], status: int, code: str
) -> None:
    answer = vmkeep(home, *arguments, "--json")
    assert answer.out == ""
    assert answer.status == status
    error = answer.error()
    assert set(error) == {"code", "message", "hint", "vm", "disk", "path"}
    assert error["code"] == code
    assert error["message"]
    assert error["hint"]


def test_error_for_people_has_a_hint_and_no_traceback(home: Path) -> None:
    answer = vmkeep(home, "points", "nobody")
    assert answer.out == ""
    assert answer.err.splitlines()[0] == "vmkeep: error: No point was ever taken of a VM 'nobody' [vm-not-found]"
    assert "hint:" in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    "arguments", [("--quiet", "points"), ("points", "-q"), ("point", "show", "win11@latest", "-q")]
)
def test_quiet_reports_nothing(home: Path, arguments: tuple[str, ...]) -> None:
    answer = vmkeep(home, *arguments)
    assert (answer.status, answer.out, answer.err) == (0, "", "")


def test_quiet_leaves_errors_and_their_status(home: Path) -> None:
    loud, quiet = (vmkeep(home, "points", "nobody", *options) for options in ((), ("--quiet",)))
    assert (quiet.status, quiet.out, quiet.err) == (3, "", loud.err)
    assert "[vm-not-found]" in quiet.err


def test_quiet_and_json_are_one_or_the_other(home: Path) -> None:
    for arguments in (("--quiet", "points", "--json"), ("--json", "points", "--quiet")):
        answer = vmkeep(home, *arguments)
        assert (answer.status, answer.error()["code"]) == (2, "invalid-request")


def test_wrong_setting_ends_the_command_with_its_name(home: Path) -> None:
    (home / "vmkeep.toml").write_text("colour = 3\n")
    error = vmkeep(home, "points", "--json").error()
    assert (error["code"], error["path"]) == ("invalid-request", str(home / "vmkeep.toml"))


def test_fault_of_vmkeep_itself_is_an_error_and_its_traceback_is_in_the_debug_log(home: Path) -> None:
    """A home in which the catalogue's text is not what vmkeep wrote: nothing foresees that."""
    import sqlite3

    connection = sqlite3.connect(home / "catalog.sqlite")
    connection.execute("UPDATE points SET summary = 'not json'")
    connection.commit()
    connection.close()
    answer = vmkeep(home, "points", "--json", "--debug")
    assert (answer.status, answer.out) == (1, "")
    value = json.loads(answer.err)
    assert value["error"]["code"] == "internal-error"
    log = Path(value["debug_log"])
    assert log.stat().st_mode & 0o777 == 0o600
    assert any("Traceback" in json.loads(line).get("exception", "") for line in log.read_text().splitlines())


def test_version_is_printed_as_text_and_as_json(home: Path) -> None:
    assert vmkeep(home, "--version").out.startswith("vmkeep ")
    assert set(vmkeep(home, "--version", "--json").document()) == {"version"}


def test_reader_that_goes_away_is_no_fault(home: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [*COMMAND, "points", "--json"], env=environment(home), stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_result_that_cannot_be_written_is_a_failure(home: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*COMMAND, "points"], env=environment(home), stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert ended.returncode == 50
    assert b"Standard output cannot be written" in ended.stderr


@pytest.mark.parametrize(
    ("number_", "status", "code"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signal_ends_a_command_as_an_error_does(home: Path, number_: signal.Signals, status: int, code: str) -> None:
    fifo = home / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [*COMMAND, "--json", "key", "import", str(fifo)],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Opening the other end returns once the command reads: it waits for input from then on.
    with fifo.open("w"):
        process.send_signal(number_)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, "")
    assert json.loads(err)["error"]["code"] == code


def test_listing_points_imports_nothing_heavy(home: Path) -> None:
    probe = (
        "import sys; from vmkeep.cli.main import main; main(['points', '--json']); "
        "heavy = {'dbos', 'libvirt', 'nbd', 'lxml', 'cryptography', 'obstore', 'alembic', 'structlog', 'rich'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", probe], env=environment(home), capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
