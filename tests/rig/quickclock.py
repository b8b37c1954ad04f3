"""A qemu-img that makes and opens LUKS images at once: the real one, with a clock that runs fast (quick_clock.c)."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SOURCE = Path(__file__).with_name("quick_clock.c")


@contextmanager
def quick_qemu_img() -> Iterator[None]:
    """Let this process, and the hosts that it has, find that one first; for who makes encrypted images by vmkeep."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{_directory()}:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


@functools.cache
def _directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="vmkeep-quick-", dir="/var/tmp"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o755)
    library, program = directory / "quick_clock.so", directory / "qemu-img"
    build = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(build, check=True)
    program.write_text(f'#!/bin/sh\nLD_PRELOAD={library} exec {shutil.which("qemu-img")} "$@"\n')
    program.chmod(0o755)
    return directory
