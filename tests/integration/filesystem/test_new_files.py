"""New files are whole or not there, and take no other's place."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from vmkeep.filesystem import write_new_file


@pytest.fixture(params=[True, False], ids=["without a name", "with a name beside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system can write a file that has no name yet; NFS cannot."""
    if not request.param:
        plain = os.open

        def refusing(path: Any, flags: int, *more: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return plain(path, flags, *more)

        monkeypatch.setattr(os, "open", refusing)
    return bool(request.param)


@pytest.mark.usefixtures("way")
def test_new_file_is_for_its_owner_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a name: with # signs"
    write_new_file(path, b"content")
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["file", "directory", "link that leads nowhere"])
def test_what_is_there_is_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "taken"
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        write_new_file(path, b"content")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]
    assert kind != "file" or path.read_bytes() == b"precious"


@pytest.mark.usefixtures("way")
def test_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_new_file(tmp_path / "no" / "where", b"content")
