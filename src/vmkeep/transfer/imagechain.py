"""The images of a disk, opened by us: what each is, and a descriptor of each, from the same moment.

QEMU's tools are given the descriptors, so that what was looked at is what they open; and a node for each layer, so that
they read no name out of a header.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import field
from typing import Final

from vmkeep.errors import DiskUnsupported, HeaderRefused, HostFileMissing, PermissionRefused, TransferError, VmkeepError
from vmkeep.paths import ForeignLink, open_place, reopen
from vmkeep.planning.images import ImageLayer
from vmkeep.planning.imagetrust import (
    FOLLOWED_FORMATS,
    Doubt,
    NamedFile,
    Role,
    doubt_of,
    doubt_of_format,
    doubt_of_name,
)
from vmkeep.transfer.imagegrounds import grounds
from vmkeep.transfer.imageheader import KNOWN_FORMATS, HeaderError, ImageHeader, read_header
from vmkeep.values import dataclass

_MAX_LAYERS: Final = 200
"""libvirt's limit for a chain of backing files."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file or block device that is open for reading (``descriptor``)."""

    path: str
    descriptor: int
    is_device: bool

    @property
    def handed(self) -> str:
        """Return the name by which a process that inherits the descriptor opens the file."""
        return f"/proc/self/fd/{self.descriptor}"


@dataclass(frozen=True, slots=True)
class OpenLayer:
    """An image of a chain with what holds it."""

    layer: ImageLayer
    file: OpenFile
    data: OpenFile | None = None


@dataclasses.dataclass(slots=True)
class OpenChain:
    """The images of a disk, the top one first, for as long as ``open_chain`` keeps them open."""

    layers: list[OpenLayer] = field(default_factory=list)

    @property
    def files(self) -> list[OpenFile]:
        return [file for each in self.layers for file in (each.file, each.data) if file is not None]

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Return what a tool must inherit."""
        return tuple(file.descriptor for file in self.files)

    def close(self) -> None:
        for file in self.files:
            with suppress(OSError):
                os.close(file.descriptor)
        self.layers.clear()


@contextmanager
def open_chain(path: str, image_format: str, *, chain: bool = True) -> Iterator[OpenChain]:
    """Open an image with all that it stands on, the top one alone without ``chain``; see ``describe_image``."""
    opened = OpenChain()
    try:
        _open_into(opened, path, image_format, chain=chain)
        yield opened
    finally:
        opened.close()


def named_chain(path: str, image_format: str) -> tuple[str, ...]:
    """Return the paths of the images of a chain, and of the first that its image names and that is not followed.

    For the question what stands on an image, to which such an image counts too. Raises as ``describe_image``.
    """
    opened = OpenChain()
    try:
        _open_into(opened, path, image_format, chain=True)
    except HeaderRefused:
        if not opened.layers:
            raise
    finally:
        layers = [each.layer for each in opened.layers]
        opened.close()
    last = layers[-1].backing
    return (*(layer.path for layer in layers), *(() if last is None else (last,)))


def look_at_image(path: str, image_format: str) -> ImageLayer:
    """Return what the top image says, with no other file opened or asked for.

    Raises HeaderRefused for a name in it that is none of a file, and otherwise as ``describe_image``.
    """
    file = _open(path, "the disk image")
    try:
        header = _header_of(file, image_format)
    finally:
        os.close(file.descriptor)
    for role, name in ((Role.BACKING, header.backing), (Role.DATA, header.data_file)):
        if name is not None:
            _refuse(doubt_of_name(path, role, name), path)
    return _layer(path, header)


def _open_into(opened: OpenChain, top: str, image_format: str, *, chain: bool) -> None:
    path, role = top, "the disk image"
    seen: set[tuple[int, int]] = set()
    file = _open(top, role)
    while True:
        try:
            about = os.fstat(file.descriptor)
            identity = (about.st_rdev, 0) if file.is_device else (about.st_dev, about.st_ino)
            if identity in seen or len(seen) == _MAX_LAYERS:
                raise TransferError(
                    f"the backing files of {top} go in a circle or are more than {_MAX_LAYERS}", path=top
                )
            seen.add(identity)
            header = _header_of(file, image_format)
            layer = _layer(path, header)
            data = _open_data_file(top, path, header)
        except BaseException:
            os.close(file.descriptor)
            raise
        opened.layers.append(OpenLayer(layer, file, data))
        if not chain or layer.backing is None:
            return
        assert header.backing is not None
        _refuse(doubt_of_name(path, Role.BACKING, header.backing), path)
        listed_format, backing_format = None, header.backing_format
        if backing_format not in FOLLOWED_FORMATS:
            listed_format = grounds().listed_format(top, layer.backing)
            backing_format = backing_format or listed_format
        _refuse(doubt_of_format(path, layer.backing, backing_format, listed_format), path)
        assert backing_format is not None
        file = _open_named(top, path, Role.BACKING, layer.backing)
        path, image_format = layer.backing, backing_format


def _open_data_file(top: str, path: str, header: ImageHeader) -> OpenFile | None:
    if not header.has_data_file:
        return None
    if header.data_file is None:
        raise TransferError(f"{path} has its content in a data file, and does not say in which", path=path)
    _refuse(doubt_of_name(path, Role.DATA, header.data_file), path)
    return _open_named(top, path, Role.DATA, _beside(path, header.data_file))


def _open_named(top: str, image: str, role: Role, path: str) -> OpenFile:
    """Open a file that a header names: first as QEMU's user, and by our own rights where more speaks for it."""
    known, user = grounds(), grounds().user(top)
    file: OpenFile | None = None
    if user is not None:
        with suppress(OSError):
            file = _as_file(path, user.open(path, os.O_RDWR if role is Role.DATA else os.O_RDONLY), f"the {role}")
    try:
        named = NamedFile(
            image=image,
            role=role,
            path=path,
            listed=file is None and known.listed(top, path),
            reachable=file is not None,
            beside=file is None and (_lie_together(image, path) or known.in_pool(path)),
            # Of what QEMU's user may read nobody is kept; what is written must be nobody else's.
            used_by=known.used_by(top, path, chains=role is Role.DATA) if file is None or role is Role.DATA else None,
            user="QEMU's user" if user is None else user.name,
        )
        if file is None and not os.path.lexists(path):
            raise HostFileMissing(f"the {role} of {image}, {path}, is not there", path=path)
        _refuse(doubt_of(named), image)
    except BaseException:
        if file is not None:
            os.close(file.descriptor)
        raise
    return file or _open(path, f"the {role} of {image}")


def _lie_together(image: str, path: str) -> bool:
    return os.path.realpath(os.path.dirname(image)) == os.path.realpath(os.path.dirname(path))  # noqa: PTH120


def _refuse(doubt: Doubt | None, path: str) -> None:
    if doubt is not None:
        raise HeaderRefused(doubt.message, path=path, hint=doubt.hint)


def _open(path: str, role: str) -> OpenFile:
    """Open a file or device for reading with our own rights, without waiting for anybody."""
    try:
        place = open_place(path)
        try:
            mode = os.fstat(place).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise TransferError(f"{role}, {path}, is neither a file nor a block device", path=path)
            descriptor = reopen(place, os.O_RDONLY)
        finally:
            os.close(place)
    except ForeignLink as error:
        raise HeaderRefused(
            f"{role}, {path}, is reached through {error.filename}, a link that a user other than root made",
            path=path,
            hint="Nothing was read. Put the file in the place of the link, or make the link as root.",
        ) from error
    except OSError as error:
        raise _unopened(error, path, role) from error
    return _as_file(path, descriptor, role)


def _as_file(path: str, descriptor: int, role: str) -> OpenFile:
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(descriptor)
        raise TransferError(f"{role}, {path}, is neither a file nor a block device", path=path)
    return OpenFile(path, descriptor, stat.S_ISBLK(mode))


def _unopened(error: OSError, path: str, role: str) -> VmkeepError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV):
        return HostFileMissing(f"{role}, {path}, is not there", path=path)
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionRefused(f"{path} cannot be looked at: {error.strerror}", path=path)
    return TransferError(f"{role}, {path}, cannot be opened: {error.strerror}", path=path)


def _header_of(file: OpenFile, image_format: str) -> ImageHeader:
    if image_format not in KNOWN_FORMATS:
        raise DiskUnsupported(
            f"{file.path} is an image of the format {image_format}, which vmkeep does not read by itself",
            path=file.path,
            hint="Make it qcow2 while the VM is off (`qemu-img convert -O qcow2`), or leave the disk out by name with "
            "--exclude TARGET.",
        )
    try:
        file_bytes = os.lseek(file.descriptor, 0, os.SEEK_END)
        return read_header(image_format, lambda offset, length: _read_at(file.descriptor, offset, length), file_bytes)
    except HeaderError as error:
        raise TransferError(
            f"{file.path} is {error}",
            path=file.path,
            hint="Put the right image there, or correct the format in the VM's definition. Earlier points are as "
            "they were.",
        ) from error
    except OSError as error:
        raise TransferError(f"{file.path} cannot be read: {error.strerror}", path=file.path) from error


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = os.pread(descriptor, length - len(parts), offset + len(parts))
        if not part:
            break
        parts += part
    return bytes(parts)


def _beside(path: str, name: str) -> str:
    """Return where a name in a header leads: a relative one is from the folder of the image."""
    return os.path.join(os.path.dirname(path), name)  # noqa: PTH118, PTH120  a name stays as it is written


def _layer(path: str, header: ImageHeader) -> ImageLayer:
    plain_backing = header.backing is not None and doubt_of_name(path, Role.BACKING, header.backing) is None
    return ImageLayer(
        path=path,
        format=header.format,
        size_bytes=header.size_bytes,
        bitmaps=header.bitmaps,
        encrypted=header.encrypted,
        data_file=None if header.data_file is None else _beside(path, header.data_file),
        backing=_beside(path, header.backing) if plain_backing and header.backing is not None else header.backing,
        holds_bitmaps=header.holds_bitmaps,
        snapshots=header.snapshots,
        corrupt=header.corrupt,
        backing_format=header.backing_format,
    )
