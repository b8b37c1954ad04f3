"""Images of a QEMU that its guest took over, as files: what is looked at is data, or an error of ours with a hint.

The header alone is in test_image_headers.py; here is what follows a chain on its words, and what reads a state file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.foreign import damaged, outcome
from vmkeep.statefiles.capture import capture, needs_another_file
from vmkeep.transfer import imagegrounds
from vmkeep.transfer.imagefile import describe_image, internal_snapshots, look_at, names_in_chain
from vmkeep.transfer.imageheader import KNOWN_FORMATS

_CLUSTER = 1 << 12


def qcow2(backing: bytes = b"", data_file: bytes = b"", *, version: int = 3) -> bytes:
    """Return a small image with all that a header can hold: a bitmap, an internal snapshot, names."""
    directory = struct.pack(">QIIBBHI", 1 << 20, 1, 2, 1, 16, 4, 0) + b"base"
    snapshots = struct.pack(">QIHHIIQII", 0, 0, 1, 4, 0, 0, 0, 7, 16) + struct.pack(">QQ", 9, 0) + b"1snap"
    extensions = struct.pack(">II", 0x23852875, 24) + struct.pack(">IIQQ", 1, 0, len(directory), _CLUSTER)
    if backing:
        extensions += struct.pack(">II", 0xE2792ACA, 5) + b"qcow2" + bytes(3)
    if data_file:
        extensions += struct.pack(">II", 0x44415441, len(data_file)) + data_file + bytes(-len(data_file) % 8)
    extensions += bytes(8)
    header_bytes = 104 if version == 3 else 72
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        header_bytes + len(extensions) if backing else 0,
        len(backing),
        12,
        1 << 20,
        0,
        1,
        _CLUSTER * 3,
        _CLUSTER * 4,
        1,
        1,
        _CLUSTER * 2,
    )
    if version == 3:
        head += struct.pack(">QQQII", 4 if data_file else 0, 0, 1, 4, 104)
    first = (head + extensions + backing).ljust(_CLUSTER, b"\0")
    return first + directory.ljust(_CLUSTER, b"\0") + snapshots.ljust(_CLUSTER, b"\0") + bytes(_CLUSTER * 2)


OTHERS = [
    b"KDMV" + struct.pack("<IIQQQQ", 1, 3, 2048, 128, 1, 20) + bytes(600),
    b"QED\0" + struct.pack("<IIIQQQQQII", 65536, 4, 1, 0, 0, 0, 65536, 1 << 20, 0, 0) + bytes(500),
    b"LUKS\xba\xbe\0\1" + bytes(96) + struct.pack(">I", 1) + bytes(2000),
    bytes(64) + b"\x7f\x10\xda\xbe" + bytes(0x170 - 68) + struct.pack("<Q", 1 << 20) + bytes(100),
    b"conectix" + bytes(40) + struct.pack(">QHBBI", 1 << 20, 20, 4, 17, 3) + bytes(448),
    bytes(5000),
]
NAMES = [
    b"base.qcow2",
    b"vda.qcow2",
    b"/etc/passwd",
    b"../x",
    b"nbd://127.0.0.1/x",
    b"json:{}",
    b"\xff\x1b[2J",
    b"/proc/self/fd/0",
]
GOOD = [
    *(qcow2(backing=name) for name in NAMES),
    *(qcow2(data_file=name) for name in NAMES[:4]),
    qcow2(),
    qcow2(version=2),
    *OTHERS,
]


class Nobody:
    """What libvirt would say: nothing of any of these files."""

    def user(self, _image: str) -> None:
        return None

    def listed(self, _image: str, _path: str) -> bool:
        return False

    def listed_format(self, _image: str, _path: str) -> str | None:
        return None

    def used_by(self, _image: str, _path: str, *, chains: bool) -> str | None:  # noqa: ARG002
        return None

    def in_pool(self, _path: str) -> bool:
        return False


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    before = imagegrounds.grounds()
    imagegrounds.ask(Nobody())
    yield
    imagegrounds.ask(before)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="vmkeep-images-") as directory:
        (Path(directory) / "base.qcow2").write_bytes(qcow2())
        yield Path(directory)


def look(folder: Path, content: bytes, image_format: str) -> None:
    image = folder / "vda.qcow2"
    image.write_bytes(content)
    outcome(lambda: look_at(image, image_format))
    outcome(lambda: internal_snapshots(image, image_format))
    outcome(lambda: names_in_chain(image, image_format))
    for layer in outcome(lambda: describe_image(image, image_format)) or ():
        assert layer.size_bytes < 1 << 63
        assert Path(layer.path).parent == folder, "a name was followed out of the folder of the image"


@given(
    st.sampled_from(GOOD).flatmap(damaged), st.sampled_from(["qcow2", "qcow2", "qcow2", *sorted(KNOWN_FORMATS), "x"])
)
def test_image_that_is_damaged(folder: Path, content: bytes, image_format: str) -> None:
    look(folder, content, image_format)


@st.composite
def fields(draw: st.DrawFn) -> bytes:
    """Return a qcow2 image in which some numbers of its header, extensions and tables are others."""
    content = bytearray(draw(st.sampled_from(GOOD[:14])))
    number = st.sampled_from([0, 1, 2, 3, 104, 4096, 1 << 16, (1 << 31) - 1, (1 << 32) - 1]) | st.integers(0, 1 << 32)
    wide = st.sampled_from([0, 1 << 20, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]) | st.integers(0, 1 << 40)
    begins = st.sampled_from([0, 104, 112, _CLUSTER, _CLUSTER * 2])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(begins) + draw(st.integers(0, 30)) * 4
        value = draw(number).to_bytes(5, "big")[1:] if draw(st.booleans()) else draw(wide).to_bytes(8, "big")
        content[at : at + len(value)] = value
    return bytes(content)


@given(fields())
def test_image_with_other_fields(folder: Path, content: bytes) -> None:
    look(folder, content, "qcow2")


@given(
    st.sampled_from(GOOD).flatmap(damaged) | fields() | st.binary(max_size=200).map(lambda data: data * 50),
    st.sampled_from(["tpm", "nvram"]),
    st.booleans(),
)
def test_state_file(folder: Path, content: bytes, kind: str, qcow2: bool) -> None:
    state = folder / "state"
    state.write_bytes(content)
    needs_another_file(content)
    read = outcome(lambda: capture("tpm" if kind == "tpm" else "nvram", state, file="f", vm="a", qcow2=qcow2))
    if read is not None:
        assert read.content == content
        assert not (qcow2 and needs_another_file(content))


def test_what_is_changed_is_good_before(folder: Path) -> None:
    image = folder / "good.qcow2"
    image.write_bytes(qcow2(backing=b"base.qcow2"))
    top, below = describe_image(image, "qcow2")
    assert [bitmap.name for bitmap in top.bitmaps] == ["base"]
    assert [(snapshot.name, snapshot.memory_bytes) for snapshot in top.snapshots] == [("snap", 9)]
    assert below.path == str(folder / "base.qcow2")
