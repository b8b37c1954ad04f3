"""A home that other users own or may write: nothing of it is used, whoever asks, and doctor says what is wrong."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.attack.conftest import as_user, command
from tests.rig.way import opened
from vmkeep.config import load_settings, prepare_home
from vmkeep.errors import HomeExposed
from vmkeep.flows.installation import Premises
from vmkeep.flows.standin import StandIn
from vmkeep.ownership import exposures

NOBODY, NUMBER = "nobody", "65534"


@dataclass(frozen=True, slots=True)
class Place:
    """``home`` lies two folders below one that everybody may enter."""

    top: Path
    home: Path

    @property
    def key(self) -> Path:
        (key,) = (self.home / "keys").glob("*.key")
        return key


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A folder with an installation that has all files and folders that there can be."""
    if os.geteuid() != 0:
        pytest.skip("only root can become the users who attack")
    top = Path(tempfile.mkdtemp(prefix="vmkeep-strict-", dir="/var/tmp"))
    try:
        top.chmod(0o755)
        home = top / "kept" / "above" / "home"
        home.parent.mkdir(parents=True)
        settings = load_settings(home=home, environ={})
        with Premises(settings) as premises:
            premises.initialise()
            premises.prepare_to_sign()
            for name in ("cache", "guards", "locks", "logs", "owners", "restores", "schedule", "snapshots"):
                (home / name).mkdir(mode=0o700, exist_ok=True)
            shutil.copytree(home, top / "open" / "home")  # while the catalogue is open: with its journal
        shutil.copytree(top / "open" / "home", home, dirs_exist_ok=True)
        shutil.rmtree(top / "open")
        for name in ("flows.sqlite", "flows.sqlite-wal", "host.key.old"):
            (home / name).touch(0o600)
        yield top
    finally:
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
def place(made: Path) -> Iterator[Place]:
    copy = made / "played"
    shutil.copytree(made / "kept", copy)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755 if path in (copy, copy / "above") else 0o700 if path.is_dir() else 0o600)
    yield Place(copy, copy / "above" / "home")
    shutil.rmtree(copy)


def give(path: Path, user: str = NOBODY) -> None:
    shutil.chown(path, user)


def run(place: Place, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    return command(place.home, capsys, *words)


# What is wrong, and which path is named for it.
def writable(name: str, mode: int) -> tuple[Callable[[Place], object], str]:
    return lambda place: (place.home / name).chmod(mode), name


def anothers(name: str) -> tuple[Callable[[Place], object], str]:
    return lambda place: give(place.home / name), name


EXPOSED: dict[str, tuple[Callable[[Place], object], str]] = {
    "home may be written by all": (lambda place: place.home.chmod(0o777), ""),
    "home may be written by a group": (lambda place: place.home.chmod(0o770), ""),
    "home is another user's": (lambda place: give(place.home), ""),
    "folder above may be written": (lambda place: place.home.parent.chmod(0o777), ".."),
    "folder above that is another user's": (lambda place: give(place.top), "../.."),
    **{
        f"{name} may be written": writable(name, 0o660)
        for name in (
            *("vmkeep.toml", "catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"),
            *("flows.sqlite", "flows.sqlite-wal", "host.key", "host.key.old"),
        )
    },
    **{
        f"{name} is another user's": anothers(name)
        for name in ("vmkeep.toml", "catalog.sqlite", "flows.sqlite", "host.key", "keys", "guards")
    },
    **{
        f"{name}/ may be written": writable(name, 0o777)
        for name in ("keys", "cache", "guards", "locks", "logs", "owners", "restores", "schedule", "snapshots")
    },
    "key may be written": (lambda place: place.key.chmod(0o620), "keys/*"),
    "key may be read by a group": (lambda place: place.key.chmod(0o640), "keys/*"),
    "key may be read by all": (lambda place: place.key.chmod(0o604), "keys/*"),
    "signing key may be read": (lambda place: (place.home / "host.key").chmod(0o644), "host.key"),
}


@pytest.mark.parametrize("wrong", EXPOSED)
def test_what_others_have_in_hand_is_refused_by_name_with_its_remedy(place: Place, wrong: str) -> None:
    (place.home / "vmkeep.toml").touch(0o600)
    load_settings(home=place.home, environ={})
    make, named = EXPOSED[wrong]
    make(place)
    with pytest.raises(HomeExposed) as refused:
        load_settings(home=place.home, environ={})
    path = str(place.key) if named == "keys/*" else os.path.normpath(place.home / named)
    assert (refused.value.path, refused.value.code, refused.value.exit_status) == (path, "home-exposed", 14)
    assert path in refused.value.message
    (exposure,) = exposures(place.home)
    assert exposure.remedy in str(refused.value.hint)
    if wrong == "folder above that is another user's":
        assert "`sudo -u nobody vmkeep`" in exposure.remedy
        return
    subprocess.run(["/bin/sh", "-c", exposure.remedy], check=True)
    load_settings(home=place.home, environ={})


@pytest.mark.parametrize(
    "words",
    [
        *(["points"], ["log"], ["vm", "list"], ["verify", "--all"], ["key", "export"], ["init"], ["backup", "--all"]),
        *(["restore", "x@latest", "--output", "/nowhere/out"], ["checkpoint", "list", "x"], ["point", "delete", "x"]),
    ],
    ids=" ".join,
)
def test_settings_and_databases_that_another_user_put_there_are_not_read(
    place: Place, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    place.home.chmod(0o777)
    flows, settings = place.home / "flows.sqlite", place.home / "vmkeep.toml"
    planted = f"rm -f {flows}; echo x > {flows}; rm -f {settings}; echo 'no = toml' > {settings}"
    as_user(NUMBER, "sh", "-c", planted, check=True)
    before = {path: path.lstat().st_mtime_ns for path in place.home.rglob("*")}
    status, _, error = run(place, capsys, *words)
    assert (status, error["code"], error["path"]) == (14, "home-exposed", str(place.home))
    assert error["hint"].endswith(f"chmod go-w -- {place.home}")
    assert {path: path.lstat().st_mtime_ns for path in place.home.rglob("*")} == before


def test_doctor_tells_all_of_it_as_problems_and_leaves_it_to_a_person(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.home.chmod(0o777)
    place.key.chmod(0o644)
    for options in ([], ["--fix"]):
        status, document, error = run(place, capsys, "doctor", *options)
        assert (status, document["doctor"]["fixed"]) == (37, [])
        told = [(finding["code"], finding["severity"], finding["path"]) for finding in document["doctor"]["findings"]]
        assert told == [
            ("home-exposed", "problem", str(place.home)),
            ("key-not-private", "problem", str(place.key)),
        ]
        assert "Nothing else was looked at" in error["hint"]
    assert (place.home.stat().st_mode & 0o777, place.key.stat().st_mode & 0o777) == (0o777, 0o644)
    place.home.chmod(0o700)
    give(place.home / "flows.sqlite")
    _, document, _ = run(place, capsys, "doctor", "--fix")
    left = [(finding["code"], finding["path"]) for finding in document["doctor"]["findings"]]
    assert left == [("home-exposed", str(place.home / "flows.sqlite")), ("key-not-private", str(place.key))]


def test_doctor_looks_at_everything_beside_a_key_that_others_may_read(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.home / "flows.sqlite").unlink()
    (place.home / "flows.sqlite-wal").unlink()
    readable = [place.key, place.home / "host.key", place.home / "host.key.old"]
    for path in readable:
        path.chmod(0o644)
    assert run(place, capsys, "points")[0] == 14
    status, document, _ = run(place, capsys, "doctor")
    told = [(finding["code"], finding["path"]) for finding in document["doctor"]["findings"]]
    assert {path for code, path in told if code == "key-not-private"} == set(map(str, readable))
    assert (status, "libvirt-unreachable" in dict(told)) == (37, True)
    run(place, capsys, "doctor", "--fix")
    assert run(place, capsys, "points")[0] == 0


def test_link_of_another_user_leads_nowhere(place: Place) -> None:
    shared = place.top / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    as_user(NUMBER, "ln", "-s", place.home, shared / "home", check=True)
    with pytest.raises(HomeExposed, match="a link that user nobody"):
        load_settings(home=shared / "home", environ={})
    (place.home / "locks").rmdir()
    (place.home / "locks").symlink_to(shared / "locks")
    as_user(NUMBER, "mkdir", shared / "locks", check=True)
    with pytest.raises(HomeExposed, match="belongs to user nobody"):
        load_settings(home=place.home, environ={})


def test_home_that_another_user_makes_first_is_refused(place: Place) -> None:
    shared = place.top / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    settings = load_settings(home=shared / "home", environ={})
    as_user(NUMBER, "mkdir", "-m", "777", shared / "home", check=True)
    with pytest.raises(HomeExposed, match="belongs to user nobody"):
        prepare_home(settings)


def test_copy_of_the_catalogue_is_made_in_no_folder_where_others_could_exchange_it(place: Place) -> None:
    exposed = place.top / "exposed"
    exposed.mkdir()
    settings = replace(load_settings(home=place.home, environ={}), run_dir=exposed / "run")
    for mode, taken in ((0o777, False), (0o1777, True), (0o755, True)):
        exposed.chmod(mode)
        made = StandIn.of(settings)
        assert (made.directory.parent == exposed) is taken
        assert exposures(made.directory) == ()
        made.close()


# -- what must go on working --------------------------------------------------------------------------------------

SOUND: dict[str, Callable[[Place], object]] = {
    "as it was made": lambda place: place.home.chmod(0o700),
    "home that others may enter": lambda place: place.home.chmod(0o755),
    "settings that others may read": lambda place: (place.home / "vmkeep.toml").chmod(0o644),
    "catalogue that others may read": lambda place: (place.home / "catalog.sqlite").chmod(0o644),
    "sticky folder above": lambda place: place.home.parent.chmod(0o1777),
    "repository of a user who owns the storage": lambda place: give(place.home / "repository"),
    "file that is nothing of vmkeep's": lambda place: give(place.home / "notes"),
    "home read only": lambda place: place.home.chmod(0o500),
}


@pytest.mark.parametrize("how", SOUND)
def test_sound_home_is_used(place: Place, capsys: pytest.CaptureFixture[str], how: str) -> None:
    for name in ("vmkeep.toml", "notes"):
        (place.home / name).touch(0o600)
    SOUND[how](place)
    assert run(place, capsys, "points")[0] == 0


def test_link_of_roots_is_followed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = place.top / "elsewhere"
    (place.home / "cache").rename(elsewhere)
    (place.home / "cache").symlink_to("../../elsewhere/./../elsewhere")
    (place.top / "link").symlink_to("above")
    assert run(Place(place.top, place.top / "link" / "home"), capsys, "points")[0] == 0


def test_home_that_is_not_there_is_made(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    new = Place(place.top, place.top / "new" / "home")
    assert run(new, capsys, "points")[0] == 0
    assert new.home.stat().st_mode & 0o777 == 0o700


def test_ordinary_user_has_an_own_home_and_none_of_others(place: Place) -> None:
    user = pwd.getpwnam(NOBODY)
    own = place.top / "of-nobody"
    own.mkdir(mode=0o700)
    give(own)
    become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", sys.executable, "-P"]
    script = (
        "import sys\n"
        "from vmkeep.cli.main import main\n"
        "import os\n"
        "def at(home, *words):\n"
        "    os.environ['VMKEEP_HOME'] = home\n"
        "    return main(['--json', *words])\n"
        "print([at(sys.argv[1], 'init'), at(sys.argv[1], 'points'), at(sys.argv[2], 'points')], file=sys.stderr)\n"
    )
    mallory = place.top / "of-mallory"
    mallory.mkdir(mode=0o755)
    shutil.chown(mallory, 54321)
    ended = subprocess.run(
        opened(*become, "-c", script, str(own / "home"), str(mallory)),
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin"},
    )
    assert ended.stderr.splitlines()[-1] == "[0, 0, 14]", ended.stderr
    assert "user 54321" in ended.stderr


def test_look_costs_no_time_that_is_felt(place: Place) -> None:
    """`vmkeep points` takes 0.3 s and more."""
    began = time.perf_counter()
    for _ in range(100):
        assert exposures(place.home) == ()
    assert (time.perf_counter() - began) / 100 < 0.003
