"""State that belongs to no VM is looked at and deleted by root in folders of users who play tricks meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.attack.conftest import QEMU_USER, SWTPM_USER, Ground, as_user
from vmkeep.custody.orphans import Orphan
from vmkeep.errors import VmkeepError
from vmkeep.statefiles.remains import Removed, TooManyNames, delete, entries_of, inventory

_PROMPT_SECONDS = 3.0


@pytest.fixture
def root(ground: Ground) -> Path:
    """A directory of state that belongs to swtpm's user altogether, which is worse than libvirt's, root's own."""
    folder = ground.folder_of(SWTPM_USER) / "swtpm"
    as_user(SWTPM_USER, "mkdir", "-m", "755", folder, check=True)
    return folder


def tpm(root: Path) -> Path:
    directory = root / str(uuid4())
    as_user(SWTPM_USER, "mkdir", directory, directory / "tpm2", check=True)
    as_user(SWTPM_USER, "sh", "-c", f"echo state > {directory}/tpm2/tpm2-00.permall; : > {directory}/tpm2/.lock")
    return directory


def seen(path: Path) -> Orphan:
    """Look at it, and fail when that takes long."""
    answers: list[Orphan | None] = []
    looker = threading.Thread(target=lambda: answers.append(inventory(path.parent, path.name, "tpm")), daemon=True)
    looker.start()
    looker.join(_PROMPT_SECONDS)
    assert answers, "the look does not end"
    assert answers[0] is not None
    return answers[0]


def deleted(orphan: Orphan) -> Removed | str:
    try:
        return delete(orphan)
    except (OSError, VmkeepError) as error:
        return type(error).__name__


def test_directory_of_the_usual_kind_goes_whole(root: Path) -> None:
    directory = tpm(root)
    removed = delete(seen(directory))
    assert removed.left == ()
    assert set(removed.paths) == {
        f"{directory}/tpm2/tpm2-00.permall",
        f"{directory}/tpm2/.lock",
        f"{directory}/tpm2",
        str(directory),
    }
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("planted", ["link", "link to folder", "pipe", "socket", "deep", "huge", "many"])
def test_what_is_planted_in_it_is_told_and_nothing_is_followed_or_waited_for(
    root: Path, ground: Ground, planted: str
) -> None:
    directory = tpm(root)
    inner = directory / "tpm2" / "x"
    match planted:
        case "link":
            as_user(SWTPM_USER, "ln", "-s", ground.secret_file, inner, check=True)
        case "link to folder":
            as_user(SWTPM_USER, "ln", "-s", ground.secret_file.parent, inner, check=True)
        case "pipe":
            as_user(SWTPM_USER, "mkfifo", inner, check=True)
        case "socket":
            listen = f"import socket; socket.socket(socket.AF_UNIX).bind({str(inner)!r})"
            as_user(SWTPM_USER, "/usr/bin/python3", "-c", listen, check=True)
        case "deep":
            as_user(SWTPM_USER, "mkdir", "-p", inner / "y" / "z", check=True)
        case "huge":
            as_user(SWTPM_USER, "truncate", "-s", "1T", inner, check=True)
        case _:
            as_user(SWTPM_USER, "sh", "-c", f"for n in $(seq 100); do : > {inner}$n; done", check=True)
    orphan = seen(directory)
    if planted == "huge":
        assert [bool(file.problem) for file in orphan.files if file.name == "tpm2/x"] == [True]
        assert delete(orphan).left == ()
    else:
        assert orphan.strange, planted
        assert deleted(orphan).left, "what is not known stays"  # type: ignore[union-attr]
        assert directory.exists()
    ground.assert_untouched()


@pytest.mark.parametrize("swapped", ["the directory", "the inner one", "the file", "another file", "a new file"])
def test_what_was_swapped_between_look_and_deletion_is_left(root: Path, ground: Ground, swapped: str) -> None:
    directory = tpm(root)
    orphan = seen(directory)
    aside = root / "aside"
    target = ground.secret_file.parent
    match swapped:
        case "the directory":
            as_user(SWTPM_USER, "mv", directory, aside, check=True)
            as_user(SWTPM_USER, "ln", "-sn", target, directory, check=True)
        case "the inner one":
            as_user(SWTPM_USER, "mv", directory / "tpm2", aside, check=True)
            as_user(SWTPM_USER, "ln", "-sn", target, directory / "tpm2", check=True)
        case "the file":
            as_user(SWTPM_USER, "mv", directory / "tpm2" / "tpm2-00.permall", aside, check=True)
            as_user(SWTPM_USER, "ln", "-s", ground.secret_file, directory / "tpm2" / "tpm2-00.permall", check=True)
        case "another file":
            as_user(SWTPM_USER, "sh", "-c", f"echo other > {directory}/tpm2/tpm2-00.permall", check=True)
        case _:
            as_user(SWTPM_USER, "touch", directory / "tpm2" / "new", check=True)
    answer = deleted(orphan)
    assert not isinstance(answer, Removed) or answer.left, swapped
    assert os.path.lexists(directory)
    if swapped != "a new file":
        assert os.path.lexists(aside) or swapped == "another file"
        assert not isinstance(answer, Removed) or str(directory / "tpm2" / "tpm2-00.permall") not in answer.paths
    ground.assert_untouched()


def test_directory_that_is_swapped_all_the_time_takes_nothing_else_with_it(root: Path, ground: Ground) -> None:
    directory = tpm(root)
    victim = ground.images / "kept"
    victim.mkdir()
    (victim / "tpm2-00.permall").write_bytes(b"root's")
    (victim / ".lock").write_bytes(b"")
    inner, aside = directory / "tpm2", root / "aside"
    swap = f"while :; do mv -T {inner} {aside}; ln -sn {victim} {inner}; rm {inner}; mv -T {aside} {inner}; done"
    stop = threading.Event()

    def swapping() -> None:
        while not stop.is_set():
            as_user(SWTPM_USER, "timeout", "0.5", "sh", "-c", swap)

    swapper = threading.Thread(target=swapping, daemon=True)
    swapper.start()
    try:
        for _ in range(200):
            try:
                orphan: Any = inventory(root, directory.name, "tpm")
            except OSError:
                continue
            if orphan is None:
                break
            deleted(orphan)
    finally:
        stop.set()
        swapper.join()
    assert sorted(entry.name for entry in victim.iterdir()) == [".lock", "tpm2-00.permall"]
    ground.assert_untouched()


def test_root_that_is_a_link_of_others_and_a_million_names_are_errors(root: Path, ground: Ground) -> None:
    link = ground.folder_of(QEMU_USER) / "nvram"
    as_user(QEMU_USER, "ln", "-sn", ground.secret_file.parent, link, check=True)
    with pytest.raises(OSError, match="link"):
        entries_of(link)
    for number in range(10_001):
        (root / f"n{number}").touch()
    with pytest.raises(TooManyNames):
        entries_of(root)


def test_names_of_every_kind_are_told_and_deleted_as_they_are(ground: Ground) -> None:
    folder = ground.folder_of(QEMU_USER)
    for name in (b"new\nline", b"\x1b[2J", b"\xff\xfe", "\u202egnp".encode(), b"-rf", b"a b'\""):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"x")
    for entry in entries_of(folder):
        orphan = inventory(folder, entry.name, "nvram")
        assert orphan is not None
        assert delete(orphan) == Removed((str(folder / entry.name),), ())
    assert list(folder.iterdir()) == []
