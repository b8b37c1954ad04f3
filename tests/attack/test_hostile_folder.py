"""Modules of Python that somebody has put into the current folder or the environment: no process of vmkeep has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.cli import COMMAND
from vmkeep.host.guard import standby
from vmkeep.host.guard.standby import Standby

_PROJECT = Path(__file__).resolve().parents[2]
_MODULES = ("json", "socket", "typer", "vmkeep", "sitecustomize", "usercustomize", "encodings")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with modules that make a file when they are imported."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in _MODULES:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'mark')!r}, 'w'); raise SystemExit('hostile {name}')\n")
    return folder


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The command as scripts/install makes it."""
    command = tmp_path / "vmkeep"
    shutil.copy(COMMAND, command)
    subprocess.run([_PROJECT / "scripts" / "isolate", command], check=True)
    return command


def test_installed_command_imports_nothing_of_the_current_folder_or_the_environment(
    hostile: Path, installed: Path
) -> None:
    (hostile / "bin").mkdir()
    places = {"PYTHONPATH": str(hostile), "PYTHONHOME": str(hostile), "PYTHONUSERBASE": str(hostile)}
    others = {"PYTHONSTARTUP": str(hostile / "json.py"), "PYTHONINSPECT": "", "PYTHONPLATLIBDIR": "bin"}
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(hostile),
        "VMKEEP_HOME": str(hostile / "home"),
        **places,
        **others,
    }
    ended = subprocess.run(
        [installed, "--version"], cwd=hostile, env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout.split()[0]) == (0, "vmkeep"), ended.stderr
    assert not (hostile / "mark").exists()


def test_command_of_a_checkout_imports_nothing_of_the_current_folder(hostile: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "VMKEEP_HOME": str(hostile / "home")}
    ended = subprocess.run(
        [COMMAND, "--version"], cwd=hostile, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert not (hostile / "mark").exists()


@pytest.mark.parametrize("isolated", ["-P", "-I"])
def test_guardian_imports_nothing_of_the_current_folder(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, isolated: str
) -> None:
    """With -P also when the root directory, in which it is started, were somebody else's."""
    monkeypatch.chdir(hostile)
    monkeypatch.setattr(standby, "_ISOLATED", isolated)
    real = subprocess.Popen

    def started_there(*arguments: object, **options: object) -> object:
        assert options["cwd"] == "/"
        return real(*arguments, **{**options, "cwd": hostile})  # type: ignore[call-overload]  # as it came

    monkeypatch.setattr(subprocess, "Popen", started_there)
    if isolated == "-I":
        monkeypatch.setenv("PYTHONPATH", str(hostile))
    guardian = Standby(hostile)
    guardian.socket.close()  # there is no job
    assert guardian.process.wait(timeout=30) == 0
    assert guardian.process.args == [sys.executable, isolated, "-m", "vmkeep.host.guard.guardian", str(hostile)]
    assert not (hostile / "mark").exists()


def test_command_that_is_isolated_starts_its_guardian_so(installed: Path) -> None:
    python = installed.read_text().splitlines()[0].removeprefix("#!").split()
    assert python[1:] == ["-I"]
    script = "from vmkeep.host.guard import standby; print(standby._ISOLATED)"
    told = subprocess.run([*python, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "-I\n"


def test_script_that_is_no_command_of_pips_is_not_called_isolated(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho\n")
    ended = subprocess.run([_PROJECT / "scripts" / "isolate", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, "import from anywhere" in ended.stderr) == (1, True)
