"""A storage whose clock is not this host's: what is written just now is not taken for left."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.environment.faketime import Clock
from tests.integration.cli.command_line import COMMAND, Answer, environment, vmkeep
from vmkeep.config import load_settings
from vmkeep.flows.installation import Premises

_NOWHERE = ("-c", "qemu+unix:///system?socket=/nowhere/libvirt-sock")
_HOUR = 3600.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    assert vmkeep(home, "init").status == 0
    return home


def staged(home: Path, *, age_seconds: float = 0.0) -> Path:
    """Make a file as a put makes it, with an age by the storage's clock."""
    path = home / "repository" / "packs" / "ab" / "abcdef#1"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    written = time.time() - age_seconds
    os.utime(path, (written, written))
    return path


def doctor(home: Path, clock: Clock) -> dict[str, Any]:
    ended = subprocess.run(
        [*COMMAND, "--json", *_NOWHERE, "doctor", "--fix"],
        env={**environment(home), **clock.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = Answer(ended.returncode, ended.stdout, ended.stderr).document()["doctor"]
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize("offset", ["+2h", "-2h"])
def test_file_on_a_storage_with_another_clock_is_as_old_as_its_storage_says(
    home: Path, tmp_path: Path, offset: str
) -> None:
    clock = Clock.at(tmp_path / "clock", offset)
    fresh = staged(home)
    assert doctor(home, clock)["fixed"] == []
    assert fresh.exists()
    old = staged(home, age_seconds=1.5 * _HOUR)
    assert [fixed["path"] for fixed in doctor(home, clock)["fixed"]] == [str(old)]
    assert not old.exists()
    assert not list((home / "repository").rglob("*#*"))


def test_what_a_writer_that_may_live_has_staged_is_spared_however_old_it_seems(home: Path, tmp_path: Path) -> None:
    clock = Clock.at(tmp_path / "clock")
    place = Premises(load_settings(home=home, environ={}))
    old = staged(home, age_seconds=30 * _HOUR)
    writer = place.repository.begin(purpose="point of another host", host="beta", cache=tmp_path / "cache")
    try:
        assert doctor(home, clock)["fixed"] == []
        assert old.exists()
    finally:
        writer.abort()
        place.close()
    assert [fixed["path"] for fixed in doctor(home, clock)["fixed"]] == [str(old)]
