"""Images of the zoo: made by QEMU's tools of bytes that are known, and read back by them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.rig import KiB, random_bytes
from tests.rig.images import luks_object, luks_options, make_luks, read_offline_image
from tests.zoo.row import Image

PASSPHRASE = "open sesame"  # noqa: S105 -- of images that live for seconds


@dataclass(slots=True)
class Laid:
    """A disk of a VM: what it must hold now, and where. The path is the top image's, which snapshots move."""

    image: Image
    path: Path
    content: bytearray
    top: str  # the format of the top image: a snapshot lays qcow2 over a raw one
    overlaid: bool = False  # a snapshot has laid another image over it

    @property
    def passphrase(self) -> str | None:
        return PASSPHRASE if self.image.encrypted else None

    @property
    def _begin(self) -> int:
        """Where the disk begins in its top image: a slice is of the image at the bottom only."""
        return 0 if self.overlaid else self.image.slice_at

    def opened(self) -> list[str]:
        """Return how QEMU's tools are told to open it."""
        if self.passphrase is None:
            return ["-f", self.top, str(self.path)]
        options = luks_options(Path(str(self.path).replace(",", ",,")), self.top)
        return ["--object", luks_object(self.passphrase), "--image-opts", options]

    def write_off(self, start: int, data: bytes, scratch: Path) -> None:
        """Write as a tool does while no VM uses the image."""
        scratch.write_bytes(data)
        at = start + self._begin
        command = ["qemu-io", "-c", f"write -s {scratch} {at} {len(data)}", *self.opened()]
        subprocess.run(command, check=True, capture_output=True)
        self.content[start : start + len(data)] = data

    def read_off(self) -> bytes:
        return read_offline_image(self.path, self.top, self.passphrase)[self._begin :]


def lay(image: Image, path: Path, seed: int) -> Laid:
    """Make an image and what lies below it. libvirt 9.0 gives QEMU no right to what lies below, so it is readable."""
    content = _first_content(image, seed)
    laid = Laid(image, path, content, image.format)
    if image.encrypted:
        make_luks(path, image.format, image.size_bytes, PASSPHRASE, image.options)
        if image.format == "raw":  # a guest reads noise where nothing was written: zeros of the file, decrypted
            content[:] = laid.read_off()
        return laid
    formats = [*image.layers, image.format]
    below: tuple[Path, str] | None = None
    for number, each in enumerate(formats):
        top = number == len(formats) - 1
        here = path if top else path.with_name(f"below{number}-{path.name}")
        _make(image, here, each, content, below, top=top)
        if below is not None:
            _write_into_layer(image, here, each, content, seed + number)
        below = (here, each)
    for words in image.prepared:
        _run("qemu-img", *(word.replace("{image}", str(path)) for word in words))
    return laid


def _first_content(image: Image, seed: int) -> bytearray:
    content = bytearray(image.size_bytes)
    if image.looks_like_qcow2:
        head = _header_of_an_image()
        content[: len(head)] = head
        return content
    if image.full:
        return bytearray(random_bytes(seed, image.size_bytes))
    if image.filled and not image.encrypted and image.size_bytes >= 512 * KiB:
        for number in range(3):
            start = number * (image.size_bytes // 3) // (64 * KiB) * (64 * KiB)
            content[start : start + 160 * KiB] = random_bytes(seed + number, 160 * KiB)
    return content


def _header_of_an_image() -> bytes:
    """Return a qcow2 image as a hostile guest writes one: whoever believes it reads a file of the host."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "image"
        _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/hostname", "-F", "raw", str(path), "1M")
        return path.read_bytes()


def _make(
    image: Image, path: Path, image_format: str, content: bytearray, below: tuple[Path, str] | None, *, top: bool
) -> None:
    options = ["-o", ",".join(image.options).replace("{image}", str(path))] if top and image.options else []
    if below is not None:
        lower = ["-b", str(below[0]), "-F", below[1]]
        _run("qemu-img", "create", "-q", "-f", image_format, *options, *lower, str(path), str(len(content)))
        return
    raw = path.with_name(f"{path.name[:60]}.content")
    raw.write_bytes(bytes(image.slice_at) + content)
    if image_format == "raw":
        _run("cp", "--sparse=never" if image.full else "--sparse=always", str(raw), str(path))
    else:
        how = ["-c"] if image.compressed else []
        _run("qemu-img", "convert", *how, "-f", "raw", "-O", image_format, *options, str(raw), str(path))
    raw.unlink()
    for data in path.parent.glob(f"{path.name}.data"):
        shutil.chown(data, "libvirt-qemu")


def _write_into_layer(image: Image, path: Path, image_format: str, content: bytearray, seed: int) -> None:
    start = (seed * 96 * KiB) % (len(content) - 128 * KiB) // image.block_bytes * image.block_bytes
    fill = seed % 255 + 1
    _run("qemu-io", "-f", image_format, "-c", f"write -P {fill} {start} {96 * KiB}", str(path))
    content[start : start + 96 * KiB] = bytes([fill]) * (96 * KiB)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
