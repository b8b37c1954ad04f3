"""What happens to the images of a VM that is off, by QEMU's own tools."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import Vm
from tests.rig.images import luks_object, luks_options


def qemu_img(*arguments: str | Path | int) -> str:
    """Run qemu-img and return what it printed."""
    return subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def bitmaps(path: Path) -> list[str]:
    """Return the names of the bitmaps in an image, also while it is in use."""
    info = json.loads(qemu_img("info", "-U", "--output=json", path))
    return [bitmap["name"] for bitmap in info.get("format-specific", {}).get("data", {}).get("bitmaps", ())]


@contextlib.contextmanager
def loop_device(path: Path, content: bytes, *options: str) -> Iterator[Path]:
    """A block device for QEMU, whose content lies in a new file at ``path``."""
    path.write_bytes(content)
    made = subprocess.run(["losetup", *options, "-f", "--show", str(path)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop device to be had: {made.stderr}")
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", str(device)], check=True)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """An image that a program which is no VM has open for writing; yields its process."""
    socket = path.with_suffix(".sock")
    process = subprocess.Popen(["qemu-nbd", "-f", "qcow2", "-t", "-k", str(socket), str(path)])
    try:
        deadline = time.monotonic() + 60
        while not socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        process.wait()
        socket.unlink(missing_ok=True)


def write_offline(vm: Vm, target: str, content: bytes, *, start: int) -> None:
    """Write bytes to a disk of a VM that is off, as a tool of QEMU's does: bitmaps record it."""
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(content)
        stream.flush()
        _qemu_io(vm, target, f"write -s {stream.name} {start} {len(content)}")


def zero_offline(vm: Vm, target: str, *, start: int, length: int) -> None:
    _qemu_io(vm, target, f"write -zu {start} {length}")


def _qemu_io(vm: Vm, target: str, command: str) -> None:
    disk, passphrase = vm.disk(target), vm.passphrase(target)
    assert disk.path is not None
    opened = ["-f", disk.format, str(disk.path)]
    if passphrase is not None:
        opened = ["--object", luks_object(passphrase), "--image-opts", luks_options(disk.path, disk.format)]
    subprocess.run(["qemu-io", "-c", command, *opened], check=True, capture_output=True)
