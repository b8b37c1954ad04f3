"""The header of a disk image, read by us before any tool of QEMU's sees the file. Pure: bytes in, values out.

What stands in an image was written by whoever could write to it, which includes a QEMU that its guest took over. QEMU's
tools follow what a header names (backing files, data files, servers, extents of a VMDK) with the rights of whoever runs
them. So everything here is bounded, nothing is followed, and the format is told by the caller: it comes from the
definition, or from the header of the image above, never from the content.

Layouts: qcow2 and its bitmaps and snapshots from QEMU's specification (docs/interop/qcow2.txt), LUKS from its on-disk
format 1.1, the others as QEMU's drivers read them (block/vmdk.c, vdi.c, qed.c, vpc.c; 7.2 and 10.0).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

from vmkeep.planning.images import ImageBitmap, ImageSnapshot
from vmkeep.values import dataclass

ReadAt = Callable[[int, int], bytes]
"""Returns the bytes at (offset, length) of an image, fewer at its end."""

SECTOR_BYTES: Final = 512
RAW: Final = "raw"
QCOW2: Final = "qcow2"
LUKS: Final = "luks"
KNOWN_FORMATS: Final = frozenset({RAW, QCOW2, LUKS, "vmdk", "vdi", "qed", "vpc"})
"""What can be read at all; other formats that libvirt has a word for are told to be converted."""

# QEMU's own limits (block/qcow2.h) but for the tables: those of 64 MiB that it allows nobody has.
_MAX_NAME_BYTES: Final = 1023
_MAX_FORMAT_BYTES: Final = 15
_MAX_DATA_FILE_BYTES: Final = 4096
_MAX_BITMAPS: Final = 65535
_MAX_SNAPSHOTS: Final = 65536
_MAX_TABLE_BYTES: Final = 8 << 20
_MAX_EXTENSIONS: Final = 256
_MAX_SIZE_BYTES: Final = (1 << 63) - 1

_QCOW2_MAGIC: Final = b"QFI\xfb"
# magic, version, backing file (place, length), cluster bits, size, encryption, first-level table (entries, place),
# reference count table (place, clusters), snapshots (number, place).
_QCOW2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
# From version 3 on: incompatible, compatible and autoclear features, order of the reference counts, header's length.
_QCOW2_V3: Final = struct.Struct(">QQQII")
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_FEATURES: Final = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_AUTOCLEAR_BITMAPS: Final = 1
_EXTENSION: Final = struct.Struct(">II")
_EXTENSION_BACKING_FORMAT: Final = 0xE2792ACA
_EXTENSION_DATA_FILE: Final = 0x44415441
_EXTENSION_BITMAPS: Final = 0x23852875
_BITMAPS: Final = struct.Struct(">IIQQ")
# table (place, entries), flags, type, granularity bits, length of the name, length of what else there is.
_BITMAP: Final = struct.Struct(">QIIBBHI")
_BITMAP_IN_USE, _BITMAP_RECORDING = 1, 2
# first-level table (place, entries), lengths of id and name, date, clock, memory (small), length of what else there is.
_SNAPSHOT: Final = struct.Struct(">QIHHIIQII")

_SIGNS: Final = (
    (0, _QCOW2_MAGIC, "a qcow or qcow2 image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"COWD", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD (vpc) image"),
    (64, b"\x7f\x10\xda\xbe", "a VDI image"),
    (0, b"QED\x00", "a QED image"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"WithouFreSpacExt", "a Parallels image"),
    (0, b"LUKS\xba\xbe", "a LUKS image"),
    (0, b"Bochs Virtual HD Image", "a Bochs image"),
)


class HeaderError(ValueError):
    """An image that cannot be what it is said to be; the message goes on after the image's name: "is …"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What an image says of itself. ``backing`` and ``data_file`` are the words in it, believed by nobody yet.

    ``has_data_file``: its content is in another file, which ``data_file`` names, or nobody does.
    """

    format: str
    size_bytes: int
    backing: str | None = None
    backing_format: str | None = None
    has_data_file: bool = False
    data_file: str | None = None
    encrypted: bool = False
    corrupt: bool = False
    holds_bitmaps: bool = False
    bitmaps: tuple[ImageBitmap, ...] = ()
    snapshots: tuple[ImageSnapshot, ...] = ()


def read_header(image_format: str, read: ReadAt, file_bytes: int) -> ImageHeader:
    """Return what an image of that format says of itself. ``file_bytes`` is the length of its file or device.

    Raises HeaderError for what is no such image, or one that nobody could have made.
    """
    match image_format:
        case "raw":
            # QEMU counts in sectors, and begins one for what is left over.
            return ImageHeader(format=RAW, size_bytes=-(-file_bytes // SECTOR_BYTES) * SECTOR_BYTES)
        case "qcow2":
            return _Qcow2(read).header()
        case "luks":
            return _read_luks(read, file_bytes)
        case "vmdk":
            return _read_vmdk(read)
        case "vdi":
            return _read_vdi(read)
        case "qed":
            return _read_qed(read)
        case "vpc":
            return _read_vpc(read, file_bytes)
    raise HeaderError(f"of the format {image_format}, which vmkeep does not read")


def recognised(beginning: bytes) -> str | None:
    """Return what a file looks like, for people: to say what it is in place of what it should be, and for no more."""
    return next((what for place, sign, what in _SIGNS if beginning[place : place + len(sign)] == sign), None)


def _exactly(read: ReadAt, offset: int, length: int, what: str) -> bytes:
    data = read(offset, length) if offset + length < _MAX_SIZE_BYTES else b""
    if len(data) != length:
        raise HeaderError(f"cut off in {what}")
    return data


def _refuse_other(read: ReadAt, wanted: str) -> NoReturn:
    found = recognised(read(0, 128))
    raise HeaderError(f"no {wanted} image" + ("" if found is None else f", but {found}"))


def _name(data: bytes, what: str) -> str:
    """Return a file name of a header. QEMU takes it up to the first NUL; what hides behind one is nothing good."""
    if not data or b"\0" in data:
        raise HeaderError(f"a qcow2 image with {what} that is no name")
    return os.fsdecode(data)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="backslashreplace")


def _size(size_bytes: int) -> int:
    if size_bytes > _MAX_SIZE_BYTES:
        raise HeaderError("of a size that no image has")
    return size_bytes // SECTOR_BYTES * SECTOR_BYTES


class _Qcow2:
    """A qcow2 image while it is read. Its name extensions stand in the first cluster, its tables anywhere."""

    def __init__(self, read: ReadAt) -> None:
        self._read = read
        if read(0, 4) != _QCOW2_MAGIC:
            _refuse_other(read, "qcow2")
        fields = _QCOW2.unpack(_exactly(read, 0, _QCOW2.size, "its header"))
        _magic, version, backing_at, backing_length, cluster_bits, size_bytes, encryption = fields[:7]
        if version not in (2, 3):
            raise HeaderError(f"qcow2 of version {version}, which nobody knows")
        if not 9 <= cluster_bits <= 21:
            raise HeaderError(f"a qcow2 image with clusters of 2^{cluster_bits} bytes")
        if encryption not in (0, 1, 2):
            raise HeaderError(f"encrypted in the unknown way {encryption}")
        self._version: int = version
        self._backing: tuple[int, int] = (backing_at, backing_length)
        self._cluster_bytes: int = 1 << cluster_bits
        self._size_bytes = _size(size_bytes)
        self._encrypted = encryption != 0
        self._snapshots: tuple[int, int] = fields[11:13]
        self._incompatible = self._autoclear = 0
        self._header_bytes = _QCOW2.size
        if version == 3:
            more = _QCOW2_V3.unpack(_exactly(read, _QCOW2.size, _QCOW2_V3.size, "its header"))
            self._incompatible, _compatible, self._autoclear, _order, self._header_bytes = more
            if not _QCOW2.size + _QCOW2_V3.size <= self._header_bytes <= self._cluster_bytes:
                raise HeaderError(f"a qcow2 image with a header of {self._header_bytes} bytes")
            if unknown := self._incompatible & ~_KNOWN_FEATURES:
                raise HeaderError(f"a qcow2 image with features that nobody knows ({unknown:#x})")

    def header(self) -> ImageHeader:
        extensions = dict(self._extensions())
        backing = self._backing_name()
        has_data_file = bool(self._incompatible & _DATA_FILE)
        return ImageHeader(
            format=QCOW2,
            size_bytes=self._size_bytes,
            backing=backing,
            backing_format=None if backing is None else self._backing_format(extensions),
            has_data_file=has_data_file,
            data_file=self._data_file(extensions) if has_data_file else None,
            encrypted=self._encrypted,
            corrupt=bool(self._incompatible & _CORRUPT),
            holds_bitmaps=self._version >= 3,
            bitmaps=tuple(self._bitmaps(extensions)),
            snapshots=tuple(self._stored_snapshots()),
        )

    def _backing_name(self) -> str | None:
        place, length = self._backing
        if place == 0:
            return None
        if length > _MAX_NAME_BYTES or place + length > self._cluster_bytes:
            raise HeaderError("a qcow2 image with a backing file whose name is too long or too far off")
        return _name(_exactly(self._read, place, length, "the name of its backing file"), "a backing file")

    def _extensions(self) -> Iterator[tuple[int, bytes]]:
        """Yield the extensions of the header, type and content; of two of a type QEMU takes the last one too."""
        end = min(self._backing[0] or self._cluster_bytes, self._cluster_bytes)
        place = self._header_bytes
        for _ in range(_MAX_EXTENSIONS):
            if place + _EXTENSION.size > end:
                return
            head = self._read(place, _EXTENSION.size)
            if len(head) < _EXTENSION.size:
                return
            kind, length = _EXTENSION.unpack(head)
            if kind == 0:
                return
            place += _EXTENSION.size
            if length > end - place:
                raise HeaderError("a qcow2 image with a header extension that is too long")
            yield kind, _exactly(self._read, place, length, "its header")
            place += -(-length // 8) * 8
        raise HeaderError("a qcow2 image with too many header extensions")

    def _backing_format(self, extensions: dict[int, bytes]) -> str | None:
        data = extensions.get(_EXTENSION_BACKING_FORMAT)
        if data is None:
            return None
        if len(data) > _MAX_FORMAT_BYTES:
            raise HeaderError("a qcow2 image with a format of its backing file that is too long")
        return _text(data)

    def _data_file(self, extensions: dict[int, bytes]) -> str | None:
        data = extensions.get(_EXTENSION_DATA_FILE)
        if data is None:
            return None
        if len(data) > _MAX_DATA_FILE_BYTES:
            raise HeaderError("a qcow2 image with a data file whose name is too long")
        return _name(data, "a data file")

    def _bitmaps(self, extensions: dict[int, bytes]) -> Iterator[ImageBitmap]:
        data = extensions.get(_EXTENSION_BITMAPS)
        # Without the flag a program that knows no bitmaps wrote to the image: QEMU takes it as one without any.
        if data is None or self._version < 3 or not self._autoclear & _AUTOCLEAR_BITMAPS:
            return
        if len(data) != _BITMAPS.size:
            raise HeaderError("a qcow2 image with a list of bitmaps of a wrong length")
        number, _reserved, length, place = _BITMAPS.unpack(data)
        if number > _MAX_BITMAPS or length > min(_MAX_TABLE_BYTES, number * 2048):
            raise HeaderError("a qcow2 image with more bitmaps than anybody has")
        directory = _exactly(self._read, place, length, "the list of its bitmaps")
        at = 0
        for _ in range(number):
            if at + _BITMAP.size > len(directory):
                raise HeaderError("a qcow2 image whose list of bitmaps is too short")
            _table, _entries, flags, kind, granularity_bits, name_length, extra = _BITMAP.unpack_from(directory, at)
            name_at = at + _BITMAP.size + extra
            if name_at + name_length > len(directory):
                raise HeaderError("a qcow2 image whose list of bitmaps is too short")
            if kind != 1 or not 9 <= granularity_bits <= 31 or not 1 <= name_length <= _MAX_NAME_BYTES:
                raise HeaderError("a qcow2 image with a bitmap of an unknown kind")
            yield ImageBitmap(
                name=_text(directory[name_at : name_at + name_length]),
                granularity_bytes=1 << granularity_bits,
                in_use=bool(flags & _BITMAP_IN_USE),
                recording=bool(flags & _BITMAP_RECORDING),
            )
            at += -(-(name_at + name_length - at) // 8) * 8

    def _stored_snapshots(self) -> Iterator[ImageSnapshot]:
        number, place = self._snapshots
        if number > _MAX_SNAPSHOTS:
            raise HeaderError("a qcow2 image with more internal snapshots than anybody has")
        begin = place
        for _ in range(number):
            place = -(-place // 8) * 8
            head = _exactly(self._read, place, _SNAPSHOT.size, "the list of its internal snapshots")
            _table, _entries, id_length, name_length, _s, _ns, _clock, memory_bytes, extra = _SNAPSHOT.unpack(head)
            if extra > 1024 or place - begin > _MAX_TABLE_BYTES:
                raise HeaderError("a qcow2 image with an internal snapshot that is too large")
            place += _SNAPSHOT.size
            rest = _exactly(self._read, place, extra + id_length + name_length, "the list of its internal snapshots")
            if extra >= 8:
                (memory_bytes,) = struct.unpack_from(">Q", rest)
            yield ImageSnapshot(name=_text(rest[extra + id_length :]), memory_bytes=memory_bytes)
            place += len(rest)


# -- formats that a definition may name; none of them may name another file ---------------------------------------


def _read_luks(read: ReadAt, file_bytes: int) -> ImageHeader:
    if read(0, 6) != b"LUKS\xba\xbe":
        _refuse_other(read, "LUKS")
    head = _exactly(read, 0, 108, "its header")
    (version,) = struct.unpack_from(">H", head, 6)
    if version != 1:
        raise HeaderError(f"LUKS of version {version}, which QEMU does not know")
    (payload_sectors,) = struct.unpack_from(">I", head, 104)
    if payload_sectors * SECTOR_BYTES > file_bytes:
        raise HeaderError("cut off before its content")
    sectors = -(-file_bytes // SECTOR_BYTES)
    return ImageHeader(format=LUKS, size_bytes=(sectors - payload_sectors) * SECTOR_BYTES, encrypted=True)


def _read_vmdk(read: ReadAt) -> ImageHeader:
    """Read a VMDK that holds its content itself. The others are text that names any files as their extents."""
    if read(0, 4) != b"KDMV":
        _refuse_other(read, "VMDK (monolithicSparse)")
    _magic, _version, _flags, sectors, _grain, text_at, text_sectors = struct.unpack(
        "<4sIIQQQQ", _exactly(read, 0, 44, "its header")
    )
    if sectors == 0 or text_sectors > 40:
        raise HeaderError("a VMDK whose content is in other files")
    text = read(text_at * SECTOR_BYTES, text_sectors * SECTOR_BYTES) if text_at < 1 << 40 else b""
    # QEMU finds the parent's name by this word alone, wherever it stands.
    if b"parentFileNameHint" in text:
        raise HeaderError("a VMDK that stands on another image")
    return ImageHeader(format="vmdk", size_bytes=_size(sectors * SECTOR_BYTES))


def _read_vdi(read: ReadAt) -> ImageHeader:
    if read(64, 4) != b"\x7f\x10\xda\xbe":
        _refuse_other(read, "VDI")
    (size_bytes,) = struct.unpack("<Q", _exactly(read, 0x170, 8, "its header"))
    return ImageHeader(format="vdi", size_bytes=_size(size_bytes + -size_bytes % SECTOR_BYTES))


def _read_qed(read: ReadAt) -> ImageHeader:
    if read(0, 4) != b"QED\0":
        _refuse_other(read, "QED")
    fields = struct.unpack("<4sIIIQQQQQII", _exactly(read, 0, 64, "its header"))
    features, size_bytes = fields[4], fields[8]
    if features & 1:
        raise HeaderError("a QED image that stands on another image")
    return ImageHeader(format="qed", size_bytes=_size(size_bytes))


def _read_vpc(read: ReadAt, file_bytes: int) -> ImageHeader:
    footer = read(0, 512)
    if footer[:8] != b"conectix" and file_bytes >= 512:
        footer = read(file_bytes - 512, 512)  # of a fixed size: all that is there of it
    if footer[:8] != b"conectix" or len(footer) != 512:
        _refuse_other(read, "VHD (vpc)")
    creator = footer[28:32]
    (current_bytes,) = struct.unpack_from(">Q", footer, 48)
    cylinders, heads, sectors_each, kind = struct.unpack_from(">HBBI", footer, 56)
    if kind not in (2, 3):
        raise HeaderError("a VHD that stands on another image")
    sectors = cylinders * heads * sectors_each
    # By whom a program says that it was made QEMU tells which of the two sizes is meant.
    by_size = creator in (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS") or sectors == 65535 * 16 * 255
    return ImageHeader(format="vpc", size_bytes=_size(current_bytes if by_size else sectors * SECTOR_BYTES))
