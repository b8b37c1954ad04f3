"""The reader of image headers: whatever the bytes, it returns data or a HeaderError, and reads little."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from vmkeep.transfer.imageheader import KNOWN_FORMATS, HeaderError, ImageHeader, read_header

_READ_LIMIT = 24 << 20
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_MORE = struct.Struct(">QQQII")
_FORMATS = st.sampled_from(sorted(KNOWN_FORMATS))
_SIGNS = [
    b"QFI\xfb\0\0\0\3",
    b"QFI\xfb\0\0\0\2",
    b"KDMV",
    b"QED\0",
    b"LUKS\xba\xbe\0\1",
    b"conectix",
    b"\x7f\x10\xda\xbe",
]


class _File:
    """Bytes at places, zeroes between them and up to a length; counts what is read of it."""

    def __init__(self, length: int, pieces: dict[int, bytes]) -> None:
        self.length = length
        self._pieces = pieces
        self.read_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        length = max(0, min(length, self.length - offset))
        self.read_bytes += length
        assert self.read_bytes < _READ_LIMIT, "reads without bounds"
        found = bytearray(length)
        for start, piece in self._pieces.items():
            for at in range(max(start, offset), min(start + len(piece), offset + length)):
                found[at - offset] = piece[at - start]
        return bytes(found)


def _judged(image_format: str, file: _File) -> ImageHeader | None:
    try:
        header = read_header(image_format, file.read, file.length)
    except HeaderError:
        return None
    assert header.format == image_format
    assert header.size_bytes >= 0
    assert header.size_bytes % 512 == 0
    for name in (header.backing, header.data_file):
        assert name is None or (0 < len(name) <= 4096 and "\0" not in name)
    return header


@given(_FORMATS, st.binary(max_size=700), st.integers(0, 1 << 62), st.sampled_from(_SIGNS), st.sampled_from([0, 64]))
def test_any_bytes_are_data_or_an_error(image_format: str, noise: bytes, length: int, sign: bytes, place: int) -> None:
    content = bytearray(noise.ljust(place + len(sign), b"\0"))
    content[place : place + len(sign)] = sign
    for candidate in (noise, bytes(content)):
        _judged(image_format, _File(max(length, len(candidate)), {0: candidate}))


_NUMBERS = st.one_of(
    st.integers(0, 1 << 20), st.sampled_from([2**31 - 1, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 2**40]), st.just(0)
)
_SMALL = st.one_of(st.integers(0, 4096), st.sampled_from([2**16 - 1, 2**31, 2**32 - 1]))
_EXTENSIONS = st.lists(
    st.tuples(
        st.sampled_from([0, 0xE2792ACA, 0x44415441, 0x23852875, 0x6803F857, 0x0537BE77, 7]),
        st.one_of(st.none(), _SMALL),
        st.one_of(
            st.binary(max_size=40),
            st.builds(lambda n, size, at: struct.pack(">IIQQ", n, 0, size, at), _SMALL, _NUMBERS, _NUMBERS),
        ),
    ),
    max_size=6,
)


@st.composite
def _qcow2(draw: st.DrawFn) -> _File:
    """Return an image that begins as a qcow2 image does, with anything in its fields, extensions and tables."""
    version = draw(st.sampled_from([2, 3, 3, 3, 1, 4]))
    fields = [draw(_NUMBERS), draw(_SMALL), draw(st.sampled_from([9, 12, 16, 21, 8, 22, 63])), draw(_NUMBERS)]
    fields += [draw(st.sampled_from([0, 1, 2, 3])), draw(_SMALL), draw(_NUMBERS), draw(_NUMBERS), draw(_SMALL)]
    fields += [draw(_SMALL), draw(st.one_of(_NUMBERS, st.just(4096)))]
    fields[1] &= 0xFFFFFFFF
    head = _HEADER.pack(b"QFI\xfb", version, *fields)
    features = draw(st.sampled_from([0, 1, 2, 4, 8, 16, 31, 32, 2**63]))
    head += _MORE.pack(
        features,
        draw(_NUMBERS),
        draw(st.sampled_from([0, 1, 2, 3])),
        4,
        draw(st.sampled_from([104, 112, 72, 0, 2**32 - 1])),
    )
    for kind, length, data in draw(_EXTENSIONS):
        head += struct.pack(">II", kind, len(data) if length is None else length) + data + bytes(-len(data) % 8)
    tables = draw(st.binary(max_size=400))
    return _File(draw(st.sampled_from([len(head), 1 << 16, 1 << 40])), {0: head, 4096: tables})


@settings(max_examples=examples(150))
@given(_qcow2())
def test_any_qcow2_image_is_data_or_an_error(file: _File) -> None:
    _judged("qcow2", file)


_ENTRIES = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=30), st.integers(9, 31), st.booleans(), st.booleans(), st.binary(max_size=9)
    ),
    max_size=5,
)


@given(
    _ENTRIES,
    st.lists(
        st.tuples(st.text(max_size=10), st.text(max_size=20), st.integers(0, 2**64 - 1), st.booleans()), max_size=4
    ),
    st.one_of(st.none(), st.binary(min_size=1, max_size=60).filter(lambda name: b"\0" not in name)),
)
@example([], [], b"a")
def test_what_is_written_by_the_specification_is_read_back(
    bitmaps: list[tuple[bytes, int, bool, bool, bytes]],
    snapshots: list[tuple[str, str, int, bool]],
    backing: bytes | None,
) -> None:
    directory = b""
    for name, bits, in_use, recording, extra in bitmaps:
        entry = struct.pack(">QIIBBHI", 1 << 20, 1, in_use | recording << 1 | 4, 1, bits, len(name), len(extra))
        directory += (entry + extra + name).ljust(-(-(len(entry) + len(extra) + len(name)) // 8) * 8, b"\0")
    table = b""
    for id_, name_, memory, large in snapshots:
        extra = struct.pack(">QQ", memory, 0) if large else b""
        small = 0 if large else memory & 0xFFFFFFFF
        entry = struct.pack(">QIHHIIQII", 0, 0, len(id_.encode()), len(name_.encode()), 0, 0, 0, small, len(extra))
        entry += extra + id_.encode() + name_.encode()
        table += entry.ljust(-(-len(entry) // 8) * 8, b"\0")
    extensions = b""
    if bitmaps:
        extensions += struct.pack(">II", 0x23852875, 24) + struct.pack(
            ">IIQQ", len(bitmaps), 0, len(directory), 1 << 17
        )
    if backing is not None:
        extensions += struct.pack(">II", 0xE2792ACA, 3) + b"raw" + bytes(5)
    extensions += bytes(8)
    name_at = 104 + len(extensions) if backing is not None else 0
    head = _HEADER.pack(
        b"QFI\xfb", 3, name_at, len(backing or b""), 16, 1 << 30, 0, 0, 0, 0, 0, len(snapshots), 1 << 18
    )
    head += _MORE.pack(0, 0, 1 if bitmaps else 0, 4, 104) + extensions + (backing or b"")
    header = _judged("qcow2", _File(1 << 19, {0: head, 1 << 17: directory, 1 << 18: table}))
    assert header is not None
    assert [(bitmap.granularity_bytes, bitmap.in_use, bitmap.recording) for bitmap in header.bitmaps] == [
        (1 << bits, in_use, recording) for _name, bits, in_use, recording, _extra in bitmaps
    ]
    assert [(found.name, found.memory_bytes) for found in header.snapshots] == [
        (name_, memory if large else memory & 0xFFFFFFFF) for _id, name_, memory, large in snapshots
    ]
    assert (header.backing, header.backing_format) == (
        (None, None) if backing is None else (backing.decode(errors="surrogateescape"), "raw")
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"KDMV" + bytes(600), "a VMDK image"),
        (b"# Disk DescriptorFile\n" + bytes(600), "a VMDK descriptor"),
        (b"vhdxfile" + bytes(600), "a VHDX image"),
        (bytes(64) + b"\x7f\x10\xda\xbe" + bytes(600), "a VDI image"),
        (b"QED\0" + bytes(600), "a QED image"),
        (b"LUKS\xba\xbe" + bytes(600), "a LUKS image"),
        (bytes(600), "no qcow2 image"),
        (b"", "no qcow2 image"),
        (b"QFI\xfb\0\0\0\3", "cut off"),
    ],
)
def test_what_is_no_qcow2_image_is_named(content: bytes, said: str) -> None:
    with pytest.raises(HeaderError, match=said):
        read_header("qcow2", _File(len(content), {0: content}).read, len(content))


def test_vmdk_that_has_its_content_elsewhere_is_refused() -> None:
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 0, 128, 1, 20)
    for content in (head, b'# Disk DescriptorFile\nRW 1 FLAT "/etc/shadow" 0\n'):
        file = _File(1 << 20, {0: content})
        with pytest.raises(HeaderError):
            read_header("vmdk", file.read, file.length)
    parent = _File(
        1 << 20, {0: struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 2048, 128, 1, 20), 512: b'parentFileNameHint="/x"'}
    )
    with pytest.raises(HeaderError, match="stands on another"):
        read_header("vmdk", parent.read, parent.length)
