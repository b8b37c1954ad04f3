"""What the QEMU of a VM has open, as the kernel tells (proc(5)): /proc/PID/fd and the flags in fdinfo.

libvirt's definition says what QEMU should have open; when libvirtd was killed at the wrong moment it has other images.
The kernel is asked because it needs no command to QEMU. Only root sees a process of another user.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vmkeep.values import dataclass

# Where libvirt's system daemon (libvirtd, virtqemud) writes the number of a VM's QEMU, at its start and never again.
_PID_FILES: Final = Path("/run/libvirt/qemu")


@dataclass(frozen=True, slots=True)
class OpenImage:
    """A file or device that QEMU has open. ``path`` is the kernel's name for it, ``way`` opens it again by any name.

    ``writable``: for writing; ``readable`` with it: not for writing alone, as logs and the file of the process's
    number.
    """

    path: str
    way: str
    file_id: tuple[int, int]
    writable: bool
    readable: bool = True


@dataclass(frozen=True, slots=True)
class OpenImages:
    """All files and devices that a QEMU, the process of that number, has open."""

    process: int
    images: tuple[OpenImage, ...]

    def of(self, path: str) -> tuple[OpenImage, ...]:
        """Return what is open of the file or device at a path, by whatever name QEMU knows it."""
        wanted = file_id(path)
        real = os.path.realpath(path)
        # The name as well, because a file system may number a file anew (some of FUSE do).
        return tuple(image for image in self.images if image.file_id == wanted or image.path == real)

    def has(self, path: str) -> bool:
        """Return whether it is open at all."""
        return bool(self.of(path))

    def writes(self, path: str) -> bool:
        """Return whether it is open for writing."""
        return any(image.writable for image in self.of(path))


def open_images(name: str, uuid: str, uri: str) -> OpenImages | None:
    """Return what the QEMU of a VM has open; None when there is none, and where it cannot be seen.

    That is: by another user than root, of a VM of a user's own libvirt (session), of another host.
    """
    process = _process(name, uuid, uri)
    if process is None:
        return None
    try:
        return OpenImages(int(process.name), tuple(_images(process)))
    except OSError:
        return None


def file_id(path: str) -> tuple[int, int] | None:
    """Return what tells a file or device of this host from others, whatever name it goes by."""
    try:
        return _id(Path(path).stat())
    except OSError:
        return None


def _id(about: os.stat_result) -> tuple[int, int]:
    # One device may have several nodes.
    return (-1, about.st_rdev) if stat.S_ISBLK(about.st_mode) else (about.st_dev, about.st_ino)


def _process(name: str, uuid: str, uri: str) -> Path | None:
    """Return the directory of the VM's QEMU in /proc."""
    parts = urlsplit(uri)
    if parts.hostname or not parts.path.rstrip("/").endswith("system"):
        return None
    try:
        process = Path("/proc") / str(int((_PID_FILES / f"{name}.pid").read_text(encoding="ascii")))
        words = (process / "cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return process if uuid.encode() in words else None


def _images(process: Path) -> Iterator[OpenImage]:
    for way in (process / "fd").iterdir():
        try:
            about = way.stat()
            if not (stat.S_ISREG(about.st_mode) or stat.S_ISBLK(about.st_mode)):
                continue
            lines = (process / "fdinfo" / way.name).read_text(encoding="ascii").splitlines()
            flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
            path = str(way.readlink())
        except (FileNotFoundError, StopIteration):
            continue  # closed meanwhile
        access = flags & os.O_ACCMODE
        yield OpenImage(path, str(way), _id(about), access != os.O_RDONLY, access != os.O_WRONLY)
