"""Whole images: read through QEMU's own tools, compared byte for byte."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.rig.errors import RigError

_CHUNK_BYTES = 1 << 20


def random_bytes(seed: int, length: int) -> bytes:
    """Return ``length`` incompressible bytes, always the same for the same seed."""
    return random.Random(seed).randbytes(length)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def convert_to_raw(source: Path, raw: Path, image_format: str | None = None, passphrase: str | None = None) -> None:
    """Write what a guest would see in an image that no VM uses as a raw file. A passphrase opens an encrypted one."""
    if passphrase is not None:
        opened = ["--object", luks_object(passphrase), "--image-opts", luks_options(source, image_format or "qcow2")]
    else:
        opened = [*([] if image_format is None else ["-f", image_format]), str(source)]
    command = ["qemu-img", "convert", "-O", "raw", *opened, str(raw)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RigError(f"qemu-img cannot read {source}: {result.stderr.strip()}")


def luks_object(passphrase: str) -> str:
    """Return what gives QEMU's tools the passphrase, as ``key``."""
    return f"secret,id=key,data={passphrase}"


def luks_options(path: Path, image_format: str) -> str:
    """Return the ``--image-opts`` of an encrypted image: qcow2 with LUKS in it, or what libvirt calls raw."""
    if image_format == "qcow2":
        return f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,file.filename={path}"
    return f"driver=luks,key-secret=key,file.filename={path}"


_templates: dict[tuple[str, int, str, tuple[str, ...]], bytes] = {}
_TEMPLATE_BYTES = 1 << 20


def make_empty(path: Path, image_format: str, size_bytes: int, options: Sequence[str] = ()) -> None:
    """Make an empty image. The second of its kind is a copy, because starting qemu-img takes 30 ms of a processor."""
    kind = (image_format, size_bytes, "", tuple(options))
    if kind in _templates:
        path.write_bytes(_templates[kind])
        return
    if image_format == "raw" and not options:
        with path.open("xb") as file:
            file.truncate(size_bytes)
        return
    words = ["-o", ",".join(options)] if options else []
    command = ["qemu-img", "create", "-q", "-f", image_format, *words, str(path), str(size_bytes)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RigError(f"qemu-img cannot make {path}: {result.stderr.strip()}")
    if image_format == "qcow2" and path.is_file() and path.stat().st_size <= _TEMPLATE_BYTES:
        _templates[kind] = path.read_bytes()


def make_luks(path: Path, image_format: str, size_bytes: int, passphrase: str, options: Sequence[str] = ()) -> None:
    """Make an empty encrypted image. The second of its kind is a copy, because each takes qemu-img 2 s."""
    kind = (image_format, size_bytes, passphrase, tuple(options))
    if kind not in _templates:
        prefix = "encrypt." if image_format == "qcow2" else ""
        words = [f"{prefix}key-secret=key", f"{prefix}iter-time=10", *options]
        words += ["encrypt.format=luks"] if prefix else []
        command = ["qemu-img", "create", "-q", "--object", luks_object(passphrase)]
        command += ["-f", "qcow2" if prefix else "luks", "-o", ",".join(words), str(path), str(size_bytes)]
        # It times the key derivation, and gives up when the clock of its thread did not move meanwhile.
        attempts = (subprocess.run(command, check=False, capture_output=True).returncode == 0 for _ in range(40))
        if not any(attempts):
            raise RigError(f"qemu-img cannot make the encrypted image {path}")
        _templates[kind] = path.read_bytes()
    path.write_bytes(_templates[kind])


def read_offline_image(source: Path, image_format: str | None = None, passphrase: str | None = None) -> bytes:
    """Return what a guest would see in an image that no VM uses, whole. The format is probed unless given."""
    with tempfile.TemporaryDirectory(prefix="vmkeep-rig-image-") as directory:
        raw = Path(directory) / "image.raw"
        convert_to_raw(source, raw, image_format, passphrase)
        return raw.read_bytes()


def assert_images_equal(actual: bytes | Path, expected: bytes | Path, what: str = "image") -> None:
    """Fail unless both are the same bytes; raw files are compared without loading them whole.

    The message names the first range that differs, (start, length), and how many MiB-sized pieces differ.
    """
    actual_size, expected_size = _size(actual), _size(expected)
    assert actual_size == expected_size, f"{what}: {actual_size} bytes, expected {expected_size}"
    first: int | None = None
    different = 0
    for start in range(0, actual_size, _CHUNK_BYTES):
        if _piece(actual, start) != _piece(expected, start):
            different += 1
            first = start if first is None else first
    if first is not None:
        raise AssertionError(f"{what}: {_describe(actual, expected, first)}; {different} pieces of 1 MiB differ")


def assert_sparse_files_equal(actual: Path, expected: Path, what: str = "image") -> None:
    """Fail unless two raw files are the same bytes, reading only where one of them has data."""
    size = expected.stat().st_size
    assert actual.stat().st_size == size, f"{what}: {actual.stat().st_size} bytes, expected {size}"
    for start, length in {*_data(actual), *_data(expected)}:
        for piece in range(start, start + length, _CHUNK_BYTES):
            same = _piece(actual, piece) == _piece(expected, piece)
            assert same, f"{what}: {_describe(actual, expected, piece)}"


def _data(path: Path) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    end = 0
    with path.open("rb") as file:
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return found
                raise
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, end - start))


def _size(image: bytes | Path) -> int:
    return len(image) if isinstance(image, bytes) else image.stat().st_size


def _piece(image: bytes | Path, start: int) -> bytes:
    if isinstance(image, bytes):
        return image[start : start + _CHUNK_BYTES]
    with image.open("rb") as file:
        file.seek(start)
        return file.read(_CHUNK_BYTES)


def _describe(actual: bytes | Path, expected: bytes | Path, chunk_start: int) -> str:
    left, right = _piece(actual, chunk_start), _piece(expected, chunk_start)
    begin = next(i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b)
    end = next((i for i in range(begin, len(left)) if left[i] == right[i]), len(left))
    shown = f"got {left[begin : begin + 8].hex(' ')}, expected {right[begin : begin + 8].hex(' ')}"
    return f"first difference at start={chunk_start + begin} length={end - begin} ({shown})"
