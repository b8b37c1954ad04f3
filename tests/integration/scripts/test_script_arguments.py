"""The scripts that install: what they are not asked for, they do not do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_PROJECT = Path(__file__).resolve().parents[3]
_SCRIPTS = ("scripts/install", "scripts/packages", "scripts/setup")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts in a directory of their own, where an installation would fail before it changes this machine."""
    shutil.copytree(_PROJECT / "scripts", tmp_path / "checkout/scripts")
    return tmp_path / "checkout"


def run(checkout: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script with a PATH whose dpkg-query knows of no package and whose sudo and apt-get tell that they ran."""
    tools = checkout.parent / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("dpkg-query", "sudo", "apt-get"):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >> "{checkout.parent}/ran"\nexit 1\n')
        tool.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PREFIX": str(checkout.parent / "opt"),
        "BINDIR": str(checkout.parent / "bin"),
    }
    return subprocess.run(
        [checkout / script, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def assert_nothing_was_done(checkout: Path) -> None:
    assert not (checkout.parent / "ran").exists()
    assert not (checkout.parent / "opt").exists()
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("script", _SCRIPTS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_says_how_a_script_is_used_and_does_nothing(checkout: Path, script: str, word: str) -> None:
    ended = run(checkout, script, word)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: {script}")
    assert_nothing_was_done(checkout)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("scripts/install", ("help",)),
        ("scripts/packages", ("--sign",)),
        ("scripts/install", ("--removed",)),
        ("scripts/install", ("--remove", "all")),
        ("scripts/install", ("",)),
        ("scripts/setup", ("help",)),
        ("scripts/setup", ("--venv",)),
        ("scripts/setup", ("--venv", "")),
        ("scripts/setup", ("--venv", "--dev")),
    ],
)
def test_word_that_a_script_does_not_know_ends_it_before_anything_is_done(
    checkout: Path, script: str, arguments: tuple[str, ...]
) -> None:
    ended = run(checkout, script, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"{script.removeprefix('scripts/')}: ")
    assert f"usage: {script}" in ended.stderr
    assert_nothing_was_done(checkout)


def test_removal_takes_the_installation_and_no_word_more(checkout: Path) -> None:
    prefix, bindir = checkout.parent / "opt", checkout.parent / "bin"
    (prefix / "releases/1").mkdir(parents=True)
    bindir.mkdir()
    (bindir / "vmkeep").symlink_to(prefix / "current/bin/vmkeep")
    (bindir / "other").write_text("")
    if os.geteuid() != 0:
        pytest.skip("it would ask for root")
    ended = run(checkout, "scripts/install", "--remove")
    assert ended.returncode == 0, ended.stderr
    assert not prefix.exists()
    assert [entry.name for entry in bindir.iterdir()] == ["other"]


def test_removal_leaves_a_directory_that_is_no_installation(checkout: Path) -> None:
    prefix = checkout.parent / "opt"
    prefix.mkdir()
    (prefix / "others").write_text("")
    if os.geteuid() != 0:
        pytest.skip("it would ask for root")
    ended = run(checkout, "scripts/install", "--remove")
    assert ended.returncode == 1
    assert str(prefix) in ended.stderr
    assert (prefix / "others").exists()
