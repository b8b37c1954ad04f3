"""Who writes to an image is told by its locks, and no lock is taken to tell it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    with _served(image) as process:
        assert writer_of(image) == f"qemu-nbd (process {process.pid})"
    assert writer_of(image) is None


def test_program_that_only_reads_an_image_is_none_and_may_go_on(image: Path) -> None:
    with _served(image, "-r"):
        assert writer_of(image) is None


def test_file_that_is_not_there_has_no_writer(tmp_path: Path) -> None:
    assert writer_of(tmp_path / "nothing") is None


@contextmanager
def _served(image: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Let qemu-nbd have the image open: it makes its socket before, and greets afterwards."""
    path = image.with_suffix(".sock")
    process = subprocess.Popen(["qemu-nbd", *options, "-f", "qcow2", "-t", "-k", str(path), str(image)])
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            deadline = time.monotonic() + 60
            while connection.connect_ex(str(path)) != 0:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert connection.recv(8) == b"NBDMAGIC"
        yield process
    finally:
        process.kill()
        process.wait()
