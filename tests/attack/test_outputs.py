"""Files that a restore makes in a folder of another user, who swaps names while root writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.attack.conftest import QEMU_USER, Ground
from tests.rig import KiB, MiB
from vmkeep.errors import PermissionRefused
from vmkeep.filesystem import file_errors
from vmkeep.transfer import images, newfile
from vmkeep.transfer.images import RawImage, create_image
from vmkeep.transfer.qcow2 import Qcow2File
from vmkeep.transfer.tools import run_tool


def swap(path: Path, ground: Ground) -> None:
    """What the folder's owner does: its file goes, and a link to a file of root's has its name."""
    path.unlink()
    path.symlink_to(ground.secret_file)
    os.lchown(path, path.parent.stat().st_uid, -1)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_name_that_becomes_a_link_while_an_image_is_made_is_not_written_through(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    image = ground.folder_of(QEMU_USER) / "vda.img"

    def passes_cache(path: Path) -> bool:
        swap(path, ground)
        return True

    monkeypatch.setattr(newfile, "passes_cache", passes_cache)
    made = RawImage(image, MiB, 64 * KiB) if kind == "raw" else Qcow2File(image, MiB)
    with made:
        made.writer().write_blocks([(0, b"\xaa" * 64 * KiB)])
        made.finish()
    ground.assert_untouched()
    assert image.is_symlink()


def test_name_that_becomes_a_link_before_qemu_img_makes_an_image_is_not_written_through(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = ground.folder_of(QEMU_USER) / "vda.qcow2"

    def run(name: str, *arguments: str, **options: Any) -> str:
        swap(image, ground)
        return run_tool(name, *arguments, **options)

    monkeypatch.setattr(images, "run_tool", run)
    create_image(image, "qcow2", MiB)
    ground.assert_untouched()


MAKERS: dict[str, Callable[[Path], object]] = {
    "raw": lambda path: RawImage(path, MiB, 64 * KiB),
    "qcow2": lambda path: Qcow2File(path, MiB),
    "qemu-img": lambda path: create_image(path, "qcow2", MiB),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_folder_that_became_a_link_of_its_owner_is_refused(ground: Ground, kind: str) -> None:
    folder = ground.folder_of(QEMU_USER) / "out"
    folder.symlink_to(ground.secret_file.parent)
    os.lchown(folder, folder.parent.stat().st_uid, -1)
    with pytest.raises(PermissionRefused, match=str(folder)), file_errors(folder / "vda"):
        MAKERS[kind](folder / "vda")
    ground.assert_untouched()


def test_folder_behind_a_link_of_roots_is_written(ground: Ground) -> None:
    folder = ground.top / "link"
    folder.symlink_to(ground.images)
    with RawImage(folder / "vda", MiB, 64 * KiB) as made:
        made.writer().write_blocks([(64 * KiB, b"\xaa" * 64 * KiB)])
        made.finish()
    create_image(folder / "vdb", "qcow2", MiB)
    assert (ground.images / "vda").read_bytes()[64 * KiB : 128 * KiB] == b"\xaa" * 64 * KiB
    assert (ground.images / "vdb").stat().st_mode & 0o777 == 0o600
