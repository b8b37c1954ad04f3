"""Whatever the umask, and wherever a command is started: what is made is its owner's, and paths are where they were."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.integration.cli.command_line import Answer, environment, typed
from tests.integration.cli.test_doctor_of_the_installation import premises, take

_NOWHERE = ("-c", "qemu+unix:///system?socket=/nowhere/libvirt-sock")


def open_to_others(directory: Path) -> Iterator[str]:
    """Yield whatever below a directory others may read, write or enter."""
    for path in (directory, *directory.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if not path.is_symlink() and mode & 0o077:
            yield f"{path} {mode:o}"


def in_shell(home: Path, before: str, *arguments: str) -> Answer:
    """Run a command line after something that the shell does."""
    env = {**environment(home), "HOME": str(home.parent), "SHELL": "/bin/bash"}
    return typed(f"{before}; exec {{command}}", *arguments, env=env)


def test_home_is_private_whatever_the_umask(tmp_path: Path) -> None:
    home = tmp_path / "above" / "home"
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("open sesame\n")
    before = "umask 000"
    assert in_shell(home, before, "--debug", "init").status == 0
    outer = os.umask(0)
    try:
        with premises(home) as place:
            point = take(place, 1)
    finally:
        os.umask(outer)
    output = str(tmp_path / "out")
    key = str(tmp_path / "key")
    assert in_shell(home, before, "restore", point.id, "--decrypt", "--output", output).status == 0
    assert in_shell(home, before, "key", "export", "--output", key, "--passphrase-file", str(passphrase)).status == 0
    assert in_shell(home, before, *_NOWHERE, "doctor", "--fix").status == 37
    assert in_shell(home, before, "point", "delete", point.id, "--yes").status == 0
    assert [*open_to_others(home), *open_to_others(tmp_path / "out"), *open_to_others(tmp_path / "key")] == []
    assert stat.S_IMODE(home.parent.stat().st_mode) & 0o022 == 0


def test_what_others_may_read_they_may_not_write(tmp_path: Path) -> None:
    assert in_shell(tmp_path / "home", "umask 000", "--install-completion", "bash").status == 0
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert made
    assert [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o022] == []


def test_folder_that_was_deleted_is_no_place_for_relative_paths_and_no_trouble_for_others(tmp_path: Path) -> None:
    home = tmp_path / "home"
    gone = "mkdir -p '{0}' && cd '{0}' && rmdir '{0}'".format(tmp_path / "gone")
    assert in_shell(home, gone, "init").status == 0
    with premises(home) as place:
        point = take(place, 1)
    assert in_shell(home, gone, "restore", point.id, "--decrypt", "--output", str(tmp_path / "out")).status == 0
    for reading in (["points"], ["verify", "--all"], ["log"], ["--help"]):
        assert in_shell(home, gone, *reading).status == 0, reading
    assert in_shell(home, gone, *_NOWHERE, "doctor").status == 37
    for words in (["init", "--repository", "here"], ["restore", point.id, "--decrypt", "--output", "here"]):
        ended = in_shell(home, gone, "--json", *words)
        assert (ended.status, ended.error()["code"]) == (2, "invalid-request"), ended
        assert "current folder was deleted" in ended.error()["message"]
