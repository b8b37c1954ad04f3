"""A home that is full or read-only: what reads and restores works, and what must write says why it cannot."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.bed import Zygote
from tests.environment.injector import FOREVER, Fault, Injector
from tests.environment.installation import NEWEST_OPERATION, Installation
from tests.rig import Host

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def made(session_host: Host, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation.make(session_host, zygote, tmp_path_factory.mktemp("installation"))
    yield installation
    installation.clear()
    session_host.clear()


@pytest.fixture
def installation(made: Installation) -> Iterator[Installation]:
    yield made
    made.clear()


def _full(installation: Installation) -> None:
    installation.restock(logged=True)
    installation.fill()


def _read_only(installation: Installation) -> None:
    installation.restock(logged=True)
    installation.inside("mount", "-o", "remount,ro", installation.home)


def _out_of_inodes(installation: Installation) -> None:
    installation.restock(home_size="size=24m,nr_inodes=40", logged=True)
    command = f"i=0; while touch {installation.home}/filler-$i; do i=$((i+1)); done 2>/dev/null; true"
    installation.host.run(["sh", "-c", command], check=True)


@pytest.mark.in_turn(1)
@pytest.mark.parametrize(
    ("broken", "code", "why"),
    [
        (_full, "no-space", "is full"),
        (_read_only, "permission-denied", "is read-only"),
        (_out_of_inodes, "no-space", "inodes"),
    ],
    ids=["full", "read-only", "no-inodes"],
)
def test_home_that_cannot_be_written_is_read_and_restored_from(
    installation: Installation, broken: Callable[[Installation], None], code: str, why: str
) -> None:
    broken(installation)
    home = _files(installation)

    assert {point["id"] for point in installation.done("points")["points"]} == set(installation.points)
    operations = installation.done("log")["operations"]
    assert operations[-1]["id"] == NEWEST_OPERATION, "the newest commit is in the log of the database only"
    assert installation.done("verify", "--all")["ok"]
    exported = installation.work / "out-key"
    exported.mkdir()
    (exported / "pass").write_text("a good passphrase\n")
    installation.done("key", "export", "--output", exported / "key", "--passphrase-file", exported / "pass")
    assert installation.restored(0, "one") == installation.images(0)

    for command in (
        ("backup", "demo"),
        ("point", "delete", installation.points[1], "--yes"),
        ("restore", installation.points[0], "--in-place", "--yes"),
    ):
        failure = installation.fails(*command)
        assert (failure.error["code"], failure.error["path"]) == (code, str(installation.home)), command
        assert why in failure.error["message"]

    looked = installation.fails("doctor")
    assert looked.document is not None
    findings = looked.document["doctor"]["findings"]
    (told,) = [finding for finding in findings if finding["code"] == "home-unusable"]
    assert why in told["message"]
    assert not [finding for finding in findings if finding["code"] in ("catalogue-unusable", "flows-unusable")]
    _assert_nothing_is_moved_away(findings)
    assert _files(installation) == home
    assert not [path for path in installation.host.path("/run").iterdir() if path.name.startswith("vmkeep-home-")]


def test_room_again_and_everything_goes_on(installation: Installation) -> None:
    _full(installation)
    installation.fails("point", "delete", installation.points[1], "--yes")
    installation.inside("rm", installation.home / "filler")
    installation.done("point", "delete", installation.points[1], "--yes")
    assert [point["id"] for point in installation.done("points")["points"]] == [installation.points[0]]
    assert installation.restored(0, "again") == installation.images(0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errno.EIO, "store-error"),
        (errno.EDQUOT, "no-space"),
        (errno.ENOSPC, "no-space"),
        (errno.EROFS, "permission-denied"),
        (errno.EMFILE, "host-exhausted"),
        (errno.ENOMEM, "host-exhausted"),
    ],
)
def test_error_of_the_system_under_the_catalogue_is_told_as_what_it_is(
    installation: Installation, injector: Injector, error: int, code: str
) -> None:
    """Whatever SQLite calls it."""
    installation.restock(logged=True)
    kinds = ("write", "sync", "create", "mkdir", "unlink", "rename")
    env = injector.environment(Fault((installation.home,), error, at=1, times=FOREVER, kinds=kinds))
    failure = installation.fails("point", "delete", installation.points[1], "--yes", env=env)
    assert failure.error["code"] == code
    assert str(installation.home) in failure.error["path"]
    _assert_nothing_is_moved_away([failure.error])
    if code != "host-exhausted":
        assert len(installation.done("points", env=env)["points"]) == 2
    assert len(installation.done("points")["points"]) == 2


def test_damaged_catalogue_of_a_home_that_cannot_be_written_is_told_as_damaged(installation: Installation) -> None:
    installation.restock()
    catalogue = installation.home / "catalog.sqlite"
    installation.inside("sh", "-c", f"rm -f {catalogue}-*; yes damaged | dd of={catalogue} bs=4k count=8 conv=notrunc")
    installation.inside("mount", "-o", "remount,ro", installation.home)
    assert installation.fails("points").error["code"] == "catalog-damaged"
    looked = installation.fails("doctor")
    assert looked.document is not None
    codes = {finding["code"] for finding in looked.document["doctor"]["findings"]}
    assert {"home-unusable", "catalogue-unusable"} <= codes


def test_storage_that_fails_at_reading_makes_no_damaged_catalogue(
    installation: Installation, injector: Injector
) -> None:
    installation.restock()
    databases = (installation.home / "catalog.sqlite", installation.home / "flows.sqlite")
    env = injector.environment(Fault(databases, errno.EIO, at=1, times=FOREVER, kinds=("read",)))
    failure = installation.fails("points", env=env)
    assert failure.error["code"] == "store-error"
    _assert_nothing_is_moved_away([failure.error])
    looked = installation.fails("doctor", env=env)
    assert looked.document is not None
    _assert_nothing_is_moved_away(looked.document["doctor"]["findings"])
    assert len(installation.done("points")["points"]) == 2


def _assert_nothing_is_moved_away(told: list[dict[str, Any]]) -> None:
    """Fail when somebody is sent to move, delete or make anew what is sound."""
    for each in told:
        advice = f"{each.get('hint') or ''} {each.get('remedy') or ''}"
        assert "mv " not in advice, each
        assert "rm " not in advice, each
        assert "move" not in advice, each
        assert "init" not in advice, each


def _files(installation: Installation) -> dict[str, int]:
    """Return the files of the home, as they are inside the host, but for what SQLite makes anew each time."""
    home = Path(f"/proc/{installation.host.init_pid}/root{installation.home}")
    sizes = {str(path): path.stat().st_size for path in home.rglob("*") if path.is_file()}
    return {name: size for name, size in sizes.items() if not name.endswith("-shm") and size > 0}
