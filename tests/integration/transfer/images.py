"""Images of every kind that a VM's disk can be, with the bytes that its guest sees, made without vmkeep."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmkeep.transfer.nbd import NbdSource

# Neither a multiple of 64 KiB nor of a MiB; QEMU knows sectors only.
SIZE_BYTES = 2_000_384
_BASE_BYTES = 1_000_448


@dataclass(frozen=True, slots=True)
class Image:
    """An image, its format, and the truth."""

    path: Path
    format: str
    content: bytes


def content_of(size_bytes: int, seed: int) -> bytes:
    """Return bytes of chance with ranges of zeroes among them."""
    chance = random.Random(seed)
    pieces: list[bytes] = []
    while sum(map(len, pieces)) < size_bytes:
        length = chance.randrange(1, 200_000)
        pieces.append(chance.randbytes(length) if chance.random() < 0.6 else bytes(length))
    return b"".join(pieces)[:size_bytes]


def qemu_img(*arguments: str | Path) -> str:
    done = subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True)
    return done.stdout


def file_node(path: Path) -> str:
    """Return QEMU's name for a local file of any name; of its own making, not vmkeep's."""
    return "json:" + json.dumps({"driver": "file", "filename": str(path)})


def make_raw(path: Path, size_bytes: int = SIZE_BYTES) -> Image:
    content = content_of(size_bytes, size_bytes)
    path.write_bytes(content)
    return Image(path, "raw", content)


def make_qcow2(path: Path, size_bytes: int = SIZE_BYTES) -> Image:
    raw = make_raw(path.parent / "content.raw", size_bytes)
    qemu_img("create", "-q", "-f", "qcow2", path, str(size_bytes))
    qemu_img("convert", "-n", "-f", "raw", "-O", "qcow2", raw.path, path)
    raw.path.unlink()
    return Image(path, "qcow2", raw.content)


def make_encrypted(path: Path) -> None:
    """Make an image with the old encryption, because making a LUKS one measures the processor for seconds."""
    options = "encrypt.format=aes,encrypt.key-secret=s"
    qemu_img("create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=secret", "-o", options, path, "1M")


def make_chain(directory: Path) -> Image:
    """Make a qcow2 image on a qcow2 image on a raw one that is shorter; each shows through the next."""
    base, middle, top = (directory / name for name in ("base.raw", "middle.qcow2", "top.qcow2"))
    content = bytearray(make_raw(base, _BASE_BYTES).content.ljust(SIZE_BYTES, b"\0"))
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, middle, str(SIZE_BYTES))
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", middle, top)
    for image, pattern, start, length in [(middle, 0xAA, 900_096, 200_192), (top, 0xBB, 950_272, 30_720)]:
        write_pattern(image, pattern, start, length)
        content[start : start + length] = bytes([pattern]) * length
    qemu_io(top, "write -z 0 65536")
    content[:65536] = bytes(65536)
    return Image(top, "qcow2", bytes(content))


def make_with_data_file(directory: Path, *, raw: bool) -> Image:
    image, data = directory / "disk.qcow2", directory / "disk.data"
    options = f"data_file={data},data_file_raw={'on' if raw else 'off'}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, str(SIZE_BYTES))
    source = make_raw(directory / "content.raw")
    qemu_img("convert", "-n", "-f", "raw", "-O", "qcow2", source.path, image)
    source.path.unlink()
    return Image(image, "qcow2", source.content)


@contextmanager
def block_device(file: Path) -> Iterator[Path]:
    """Attach a file as a block device, or skip the test with the reason."""
    made = subprocess.run(["losetup", "--find", "--show", file], check=False, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def qemu_io(image: Path, command: str, image_format: str = "qcow2") -> None:
    subprocess.run(["qemu-io", "-f", image_format, "-c", command, image], check=True, capture_output=True)


def write_pattern(image: Path, pattern: int, start: int, length: int) -> None:
    qemu_io(image, f"write -P {pattern} {start} {length}")


def read_whole(source: NbdSource) -> bytes:
    connection = source.connect()
    step = 1 << 20
    parts = [bytes(connection.read(at, min(step, source.size_bytes - at))) for at in range(0, source.size_bytes, step)]
    connection.close()
    return b"".join(parts)


def dirty_ranges(source: NbdSource) -> list[tuple[int, int]]:
    """Return the dirty ranges, neighbours joined."""
    ranges: list[tuple[int, int]] = []
    for start, length, flags in source.dirty_map():
        if not flags & 1:
            continue
        if ranges and sum(ranges[-1]) == start:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        else:
            ranges.append((start, length))
    return ranges


@contextmanager
def running_vm(image: Image, directory: Path) -> Iterator[None]:
    """Run a VM, its processor stopped, that has the image as a disk; CalledProcessError when it cannot start."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    driver = "host_device" if image.path.is_block_device() else "file"
    file = {"driver": driver, "filename": str(image.path)}
    disk = json.dumps({"driver": image.format, "node-name": "disk", "file": file})
    command = [program, "-M", "q35,accel=tcg", "-m", "64", "-nodefaults", "-display", "none", "-S", "-daemonize"]
    command += ["-pidfile", str(directory / "vm.pid"), "-blockdev", disk, "-device", "virtio-blk-pci,drive=disk"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    pid = int((directory / "vm.pid").read_text())
    try:
        yield
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Tell whether any thread of a process runs; one that is dead and not yet collected by its parent does not.

    The first thread can be gone before the others, which still hold the locks of the image.
    """
    tasks = Path(f"/proc/{pid}/task")
    threads: list[Path] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        threads += tasks.iterdir()
    for thread in threads:
        with suppress(FileNotFoundError, ProcessLookupError):
            if (thread / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                return True
    return False


def needs_root(reason: str) -> None:
    if os.geteuid() != 0:
        pytest.skip(f"only root can {reason}")
