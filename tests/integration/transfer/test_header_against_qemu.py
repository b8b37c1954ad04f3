"""Our reader of image headers against qemu-img: of sound images both say the same."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.integration.transfer.images import qemu_img, qemu_io
from vmkeep.transfer.imagefile import look_at
from vmkeep.transfer.imageheader import HeaderError, ReadAt, read_header

_SIZES = (512, 1_000_448, 1 << 20, (1 << 40) + 512)


def _said(path: Path, image_format: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(qemu_img("info", "--output=json", "-U", "-f", image_format, path))
    return said


def _reading(content: bytes) -> ReadAt:
    return lambda offset, length: content[offset : offset + length]


@pytest.mark.parametrize(
    "options",
    [
        "compat=0.10",
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=2M,extended_l2=on",
        "compression_type=zstd",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "preallocation=metadata",
    ],
)
def test_qcow2_of_every_make(tmp_path: Path, options: str) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "5M")
    old = options == "compat=0.10"
    if not old:
        qemu_img("bitmap", "--add", "-g", "65536", path, "blåbær")
        qemu_img("bitmap", "--add", "--disable", path, "x" * 1023)
    if options != "refcount_bits=1":
        qemu_io(path, "write -P 1 0 64k")
        for name in ("then", "a b", "ü" * 20):
            qemu_img("snapshot", "-c", name, path)
    said, layer = _said(path, "qcow2"), look_at(path, "qcow2")
    specific = said["format-specific"]["data"]
    assert (layer.size_bytes, layer.encrypted, layer.corrupt) == (said["virtual-size"], False, False)
    assert [(b.name, b.granularity_bytes, b.recording, b.in_use) for b in layer.bitmaps] == [
        (b["name"], b["granularity"], "auto" in b["flags"], "in-use" in b["flags"]) for b in specific.get("bitmaps", [])
    ]
    assert [(each.name, each.memory_bytes) for each in layer.snapshots] == [
        (each["name"], each["vm-state-size"]) for each in said.get("snapshots", [])
    ]
    assert layer.holds_bitmaps is not old


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk", "vdi", "qed", "vpc"])
@pytest.mark.parametrize("size", _SIZES)
def test_size_of_every_format(tmp_path: Path, image_format: str, size: int) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", image_format, path, str(size))
    assert look_at(path, image_format).size_bytes == _said(path, image_format)["virtual-size"]


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513])
def test_size_of_a_raw_file_of_any_length(tmp_path: Path, length: int) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * length)
    assert look_at(path, "raw").size_bytes == _said(path, "raw")["virtual-size"]


def test_vpc_of_a_size_of_its_own(tmp_path: Path) -> None:
    for number, options in enumerate(("subformat=fixed", "force_size=on", "subformat=fixed,force_size=on")):
        path = tmp_path / f"{number}.vpc"
        qemu_img("create", "-q", "-f", "vpc", "-o", options, path, "10M")
        assert look_at(path, "vpc").size_bytes == _said(path, "vpc")["virtual-size"], options


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_vmdk_of_several_files_is_refused(tmp_path: Path, subformat: str) -> None:
    path = tmp_path / "disk.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", path, "1M")
    content = path.read_bytes()
    with pytest.raises(HeaderError):
        read_header("vmdk", _reading(content), len(content))


def test_vmdk_and_qed_over_another_image_are_refused(tmp_path: Path) -> None:
    for image_format in ("vmdk", "qed"):
        base, top = tmp_path / f"base.{image_format}", tmp_path / f"top.{image_format}"
        qemu_img("create", "-q", "-f", image_format, base, "1M")
        qemu_img("create", "-q", "-f", image_format, "-F", image_format, "-b", base, top)
        content = top.read_bytes()
        with pytest.raises(HeaderError, match="stands on another image"):
            read_header(image_format, _reading(content), len(content))


def test_luks_image_has_the_size_that_its_guest_sees(tmp_path: Path) -> None:
    """Made by hand, because qemu-img measures the processor for seconds to make one; it is asked for the size."""
    path = tmp_path / "disk.luks"
    head = b"LUKS\xba\xbe" + struct.pack(
        ">H32s32s32sIII20s32sI40s",
        1,
        b"aes",
        b"xts-plain64",
        b"sha256",
        4096,
        64,
        1000,
        b"",
        b"",
        1000,
        b"00000000-0000-0000-0000-000000000000",
    )
    slots = b"".join(struct.pack(">II32sII", 0xDEAD, 1000, b"", 8 + 504 * slot, 4000) for slot in range(8))
    path.write_bytes(
        (head[:104] + struct.pack(">I", 4096) + head[108:] + slots).ljust(4096 * 512, b"\0") + bytes(3 << 20)
    )
    layer = look_at(path, "luks")
    assert (layer.size_bytes, layer.encrypted) == (3 << 20, True)
