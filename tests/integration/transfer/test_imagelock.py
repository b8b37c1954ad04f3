"""Who writes to an image is told by its locks, and no lock is taken to tell it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from vmkeep.transfer.imagelock import writer_of


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    return path


def test_program_that_has_an_image_open_for_writing_is_named_until_it_ends(image: Path) -> None:
    assert writer_of(image) is None
    process = _serve(image)
    assert writer_of(image) == f"qemu-nbd (process {process.pid})"
    process.kill()
    process.wait()
    assert writer_of(image) is None


def test_program_that_only_reads_an_image_is_none_and_may_go_on(image: Path) -> None:
    process = _serve(image, "-r")
    assert writer_of(image) is None
    process.kill()
    process.wait()


def test_file_that_is_not_there_has_no_writer(tmp_path: Path) -> None:
    assert writer_of(tmp_path / "nothing") is None


def _serve(image: Path, *options: str) -> subprocess.Popen[bytes]:
    socket = image.with_suffix(".sock")
    process = subprocess.Popen(["qemu-nbd", *options, "-f", "qcow2", "-t", "-k", str(socket), str(image)])
    deadline = time.monotonic() + 60
    while not socket.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process
