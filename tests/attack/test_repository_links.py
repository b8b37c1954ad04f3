"""Links that the owner of the storage puts into a repository: through none of them root reads, writes or removes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.attack.conftest import as_user, command
from vmkeep.errors import PermissionRefused, RepositoryForeign, StoreError
from vmkeep.filesystem import aligned_buffer
from vmkeep.repository.directory import LARGE_BYTES
from vmkeep.repository.layout import FOLDERS
from vmkeep.repository.store import ObjectStore, create_store, open_store

OWNER = "65534"


@dataclass(frozen=True, slots=True)
class Storage:
    """``repository`` belongs to another user; ``precious`` is a folder of root's with a file that all may read."""

    top: Path
    repository: Path
    precious: Path

    def link(self, name: str, target: Path | None = None) -> None:
        """What the storage's owner does: a link is where something was, or nothing."""
        path = self.repository / name
        if path.exists():
            as_user(OWNER, "mv", path, f"{path}.away", check=True)
        as_user(OWNER, "ln", "-s", target or self.precious, path, check=True)

    def state(self) -> list[tuple[str, int, int, int]]:
        paths = [self.precious, *self.precious.rglob("*")]
        return [(path.name, path.stat().st_mode, path.stat().st_uid, path.stat().st_mtime_ns) for path in paths]


@pytest.fixture
def storage() -> Iterator[Storage]:
    if os.geteuid() != 0:
        pytest.skip("only root can become the users who attack")
    top = Path(tempfile.mkdtemp(prefix="vmkeep-links-", dir="/var/tmp"))
    try:
        top.chmod(0o755)
        made = Storage(top, top / "repository", top / "precious")
        made.precious.mkdir(mode=0o755)
        (made.precious / "x").write_text("root's")
        (made.precious / "x").chmod(0o644)
        store = create_store(str(made.repository))
        for name in (*(f"{folder}first" for folder in FOLDERS), "packs/ab/first", "format"):
            store.put(name, b"content")
        for path in (made.repository, *made.repository.rglob("*")):
            shutil.chown(path, int(OWNER), int(OWNER))
        yield made
    finally:
        shutil.rmtree(top, ignore_errors=True)


@pytest.mark.parametrize("name", [*(folder.rstrip("/") for folder in FOLDERS), "packs/ab", "packs/cd"])
def test_folder_that_is_a_link_is_refused_by_name_when_the_repository_is_opened(storage: Storage, name: str) -> None:
    storage.link(name)
    for opening in (open_store, create_store):
        with pytest.raises(RepositoryForeign) as refused:
            opening(str(storage.repository))
        assert refused.value.path == str(storage.repository / name)
        assert "is a link to" in refused.value.message
        assert f"mount --bind {storage.precious} {storage.repository / name}" in refused.value.hint


PUTS: dict[str, Callable[[ObjectStore], object]] = {
    "new object": lambda store: store.put("points/y", b"content"),
    "object in the place of one": lambda store: store.put("points/x", b"content", replace=True),
    "small pack": lambda store: store.put("packs/ab/y", b"content", durable=False),
    "large pack": lambda store: store.put_pack("packs/ab/y", [memoryview(aligned_buffer(LARGE_BYTES))]),
    "deletion": lambda store: store.delete("points/x"),
    "sync": lambda store: store.make_durable("points/x"),
    "list": lambda store: list(store.list("points/")),
    "what a put left": lambda store: store.remove_staged(Path(store.location) / "points" / "x#1"),
}


@pytest.mark.parametrize("how", PUTS)
@pytest.mark.parametrize("deep", [True, False])
def test_folder_that_becomes_a_link_under_way_is_not_written_or_listed_through(
    storage: Storage, how: str, deep: bool
) -> None:
    (storage.precious / "x#1").write_text("root's")
    store = open_store(str(storage.repository))
    folder = "packs" if "pack" in how else "points"
    storage.link("packs/ab" if folder == "packs" and deep else folder)
    before = storage.state()
    with pytest.raises(RepositoryForeign, match="is a link to"):
        PUTS[how](store)
    assert storage.state() == before


def test_object_that_becomes_a_link_changes_no_file_of_roots(storage: Storage) -> None:
    """Seen before: the mode was set by the object's path, after it was there."""
    store = open_store(str(storage.repository))
    store.put("points/new", b"content", durable=False)
    storage.link("points/new", storage.precious / "x")
    before = storage.state()
    with pytest.raises(StoreError):
        store.make_durable("points/new")
    store.put("points/new", b"content", replace=True)
    assert storage.state() == before
    assert not (storage.repository / "points" / "new").is_symlink()


def test_folder_among_the_objects_that_is_a_link_is_not_walked_through(storage: Storage) -> None:
    store = open_store(str(storage.repository))
    storage.link("points/all", Path("/"))
    with pytest.raises(RepositoryForeign, match="points/all is a link to /,"):
        list(store.list("points/"))


def test_repository_behind_a_link_of_another_user_is_refused(storage: Storage) -> None:
    shared = storage.top / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    as_user(OWNER, "ln", "-s", storage.precious, shared / "link", check=True)
    before = storage.state()
    for place in (shared / "link", shared / "link" / "below"):
        with pytest.raises(PermissionRefused, match=f"{shared}/link, a link that a user other than root made"):
            create_store(str(place))
    with pytest.raises(PermissionRefused, match="a link that a user other than root made"):
        open_store(str(shared / "link"))
    assert storage.state() == before


# -- what must go on working --------------------------------------------------------------------------------------


def test_repository_behind_links_of_roots_is_used(storage: Storage) -> None:
    (storage.top / "far").symlink_to(".")
    (storage.top / "link").symlink_to("far/repository")
    store = open_store(str(storage.top / "link"))
    store.put("points/y", b"content")
    store.put_pack("packs/cd/y", [memoryview(aligned_buffer(LARGE_BYTES)), b"tail"])
    store.make_durable("packs/cd/y")
    assert {item.name for item in store.list("packs/")} == {"packs/ab/first", "packs/first", "packs/cd/y"}
    assert (storage.repository / "points" / "y").stat().st_mode & 0o777 == 0o600
    assert (storage.repository / "packs" / "cd").stat().st_mode & 0o777 == 0o700
    store.delete("points/y")
    assert not (storage.repository / "points" / "y").exists()


def test_link_to_no_folder_is_one_object_that_cannot_be_read(storage: Storage) -> None:
    storage.link("points/dead", storage.top / "nowhere")
    store = open_store(str(storage.repository))
    assert "points/first" in {item.name for item in store.list("points/")}


@pytest.mark.parametrize("mask", [0, 0o077, 0o777])
def test_what_is_put_has_its_mode_under_any_umask_from_its_first_moment(storage: Storage, mask: int) -> None:
    store = open_store(str(storage.repository))
    before = os.umask(mask)
    try:
        store.put("states/y", b"content", durable=False)
        store.put("packs/ef/y", b"content", durable=False)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (storage.repository / "packs").glob("ef")}
    assert modes == {0o700}
    assert (storage.repository / "states" / "y").stat().st_mode & 0o177 == 0


def test_commands_name_the_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    assert command(home, capsys, "init")[0] == 0
    (home / "repository" / "points").mkdir(exist_ok=True)
    (home / "repository" / "points").rename(tmp_path / "points")
    (home / "repository" / "points").symlink_to(tmp_path / "points")
    status, _, error = command(home, capsys, "verify", "--all")
    assert (status, error["code"]) == (22, "repository-foreign")
    assert error["path"] == str(home / "repository" / "points")
    _, document, _ = command(home, capsys, "doctor")
    assert "repository-foreign" in {finding["code"] for finding in document["doctor"]["findings"]}
