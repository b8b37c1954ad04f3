"""What a command loads before it does anything, which is most of the time of a short one.

Time depends on the machine, so modules are counted. A number that rises needs a reason
(docs/adr/0029-what-a-command-loads.md).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests.integration.cli.command_line import environment, vmkeep
from vmkeep.cli.main import app
from vmkeep.cli.ondemand import ON_DEMAND

# `python -c pass` has about 30, with what the venv adds at its start.
MOST_TO_LIST, MOST_TO_HELP, MOST_TO_BACK_UP, MOST_TO_GUARD = 220, 210, 680, 225
FOR_NO_LIST = {
    *("alembic", "asyncio", "cryptography", "dbos", "libvirt", "lxml", "nbd", "obstore", "pydantic", "rich"),
    *("hvac", "kmip", "pkcs11", "requests", "segno", "vmkeep.keys", "vmkeep.providers"),
    *("sqlalchemy", "structlog", "vmkeep.flows", "vmkeep.host.tasks", "vmkeep.repository"),
}
FOR_NO_BACKUP = {
    *("alembic", "asyncio", "click", "croniter", "dateutil", "psycopg", "pydantic", "rich", "structlog", "yaml"),
    *("sqlalchemy.dialects.postgresql", "sqlalchemy.ext.asyncio", "sqlalchemy.orm"),
    # What holds keys elsewhere, and what draws them for paper.
    *("hvac", "kmip", "pkcs11", "requests", "segno", "vmkeep.keys.provider", "vmkeep.keys.paper", "vmkeep.providers"),
    *("importlib.metadata", "zipfile", "vmkeep.host.tasks.restores"),
    # What restores, reverts, makes snapshots, looks at the whole host, or changes moments.
    *(
        "vmkeep.fitting",
        "vmkeep.flows.check_up",
        "vmkeep.host.checkup",
        "vmkeep.host.restores.in_place",
        "vmkeep.host.restores.as_vm",
    ),
    *("vmkeep.flows.restore_vm", "vmkeep.flows.revert_snapshot", "vmkeep.flows.take_snapshot"),
    *("vmkeep.host.records.snapshot", "vmkeep.host.tasks.reverts", "vmkeep.host.tasks.snapshots"),
    *("vmkeep.host.snapshots", "vmkeep.host.reverts.revert", "vmkeep.cli.restore", "vmkeep.cli.snapshot"),
}
_PROBE = """
import json, os, sys

def end(status):
    sys.stdout.flush()
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
    leave(status)

leave, os._exit = os._exit, end
sys.argv[0] = "vmkeep"
from vmkeep.cli.main import run
run()
"""


def loaded(home: Path, *arguments: str) -> set[str]:
    """Return the modules that a command has loaded when it ends; what it printed stands before them."""
    command = [sys.executable, "-c", _PROBE, *arguments]
    ended = subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=60, check=False)
    return set(json.loads(ended.stderr.splitlines()[-1]))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home


@pytest.fixture
def installed(home: Path) -> Path:
    """A home whose catalogue and repository are there: what makes them first loads more, once."""
    assert vmkeep(home, "init").status == 0
    return home


@pytest.mark.parametrize("options", [(), ("--tree",), ("--json",)])
def test_list_of_points_loads_little(installed: Path, options: tuple[str, ...]) -> None:
    modules = loaded(installed, "points", *options)
    assert modules & FOR_NO_LIST == set()
    assert len(modules) <= MOST_TO_LIST


def test_help_loads_no_command(home: Path) -> None:
    modules = loaded(home, "--help")
    assert modules & {*FOR_NO_LIST, *(command.module for command in ON_DEMAND.values())} == set()
    assert len(modules) <= MOST_TO_HELP


def test_backup_loads_what_a_point_needs(installed: Path) -> None:
    # libvirt's test driver refuses in the middle of the flow, as it has no jobs: nearly all was loaded by then.
    modules = loaded(installed, "--connect", "test:///default", "backup", "test")
    assert {"dbos", "vmkeep.host.points.point", "vmkeep.host.points.examination", "vmkeep.flows.take_point"} <= modules
    assert modules & FOR_NO_BACKUP == set()
    assert len(modules) <= MOST_TO_BACK_UP


def test_guardian_loads_what_a_rescue_needs() -> None:
    probe = "import sys, json, vmkeep.host.guard.guardian; print(json.dumps(sorted(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    modules = set(json.loads(told.stdout))
    assert (
        modules & {*FOR_NO_BACKUP, "dbos", "sqlalchemy", "obstore", "cryptography", "logging", "vmkeep.repository"}
        == set()
    )
    assert len(modules) <= MOST_TO_GUARD


@pytest.mark.parametrize("name", sorted(ON_DEMAND))
def test_line_of_a_command_in_the_help_is_its_own(name: str) -> None:
    command = typer.main.get_command(app)
    with typer.Context(command) as context:
        made = command.get_command(context, name)  # type: ignore[attr-defined]  # a group, which typer does not say
        own = made.get_short_help_str(limit=200)
    assert own == ON_DEMAND[name].line


@pytest.mark.parametrize("text", ["win11", "", "ä", "--", "a\nb"])
def test_text_reaches_a_command_as_it_was_typed(installed: Path, text: str) -> None:
    answer = vmkeep(installed, "--json", "points", "--", text)
    assert answer.error()["vm"] == text
