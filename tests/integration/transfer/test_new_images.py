"""New images: QEMU finds them in order, and they hold what was written and zeros elsewhere."""

from __future__ import annotations

import json
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.rig import GiB, KiB, MiB
from vmkeep.transfer.images import NewImage, RawImage
from vmkeep.transfer.qcow2 import CLUSTER_BYTES, Qcow2File

_TiB = 1024 * GiB


def _image(path: Path, image_format: str, size_bytes: int, block_bytes: int) -> NewImage:
    return RawImage(path, size_bytes, block_bytes) if image_format == "raw" else Qcow2File(path, size_bytes)


def _qemu_img(*words: str) -> str:
    return subprocess.run(["qemu-img", *words], check=True, capture_output=True, text=True).stdout


def _assert_in_order(path: Path) -> None:
    report = json.loads(_qemu_img("check", "--output=json", "-f", "qcow2", str(path)))
    assert report["check-errors"] == 0
    assert "leaks" not in report
    assert "corruptions" not in report


def _read(path: Path, image_format: str, start: int, length: int, beside: Path) -> bytes:
    # qemu-img dd counts in blocks of its own; --image-opts gives a window of the disk.
    window = f"driver=raw,offset={start},size={length},file.driver={image_format},file.file.driver=file"
    _qemu_img("convert", "--image-opts", "-O", "raw", f"{window},file.file.filename={path}", str(beside))
    return beside.read_bytes()


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
@pytest.mark.parametrize("block_bytes", [64 * KiB, 256 * KiB])
@pytest.mark.parametrize("size_bytes", [512, 64 * KiB, MiB, 5 * MiB + 512, 512 * MiB + 3 * KiB])
def test_image_holds_what_was_written(tmp_path: Path, size_bytes: int, block_bytes: int, image_format: str) -> None:
    source = random.Random(size_bytes + block_bytes)
    blocks = -(-size_bytes // block_bytes)
    chosen = sorted({0, blocks - 1, *source.sample(range(blocks), min(blocks, 40))})
    written = [
        (block * block_bytes, source.randbytes(min(block_bytes, size_bytes - block * block_bytes))) for block in chosen
    ]
    truth = tmp_path / "truth"
    with truth.open("wb") as file:
        file.truncate(size_bytes)
        for start, data in written:
            file.seek(start)
            file.write(data)
    path = tmp_path / "image"
    with _image(path, image_format, size_bytes, block_bytes) as image, ThreadPoolExecutor(3) as pool:
        groups = [written[at : at + 5] for at in range(0, len(written), 5)]
        list(pool.map(lambda group: image.writer().write_blocks(group), groups))
        image.finish()
    assert path.stat().st_mode & 0o777 == 0o600
    if image_format == "qcow2":
        _assert_in_order(path)
        assert json.loads(_qemu_img("info", "--output=json", str(path)))["virtual-size"] == size_bytes
    else:
        assert path.stat().st_size == size_bytes
    _qemu_img("compare", "-f", "raw", "-F", image_format, str(truth), str(path))


@pytest.mark.parametrize("block_bytes", [512, 1024, 6 * KiB])
def test_raw_image_of_blocks_that_are_no_whole_pages(tmp_path: Path, block_bytes: int) -> None:
    source = random.Random(block_bytes)
    content = source.randbytes(20 * block_bytes)
    path = tmp_path / "image"
    with RawImage(path, len(content), block_bytes) as image:
        for parity in (1, 0):
            starts = range(parity * block_bytes, len(content), 2 * block_bytes)
            image.writer().write_blocks([(start, content[start : start + block_bytes]) for start in starts])
        image.finish()
    assert path.read_bytes() == content


def test_huge_disk_takes_the_space_of_what_was_written(tmp_path: Path) -> None:
    source = random.Random(1)
    path = tmp_path / "image"
    places = [0, 511 * MiB, 512 * MiB, _TiB, 2 * _TiB - CLUSTER_BYTES]
    written = [(start, source.randbytes(CLUSTER_BYTES)) for start in places]
    with Qcow2File(path, 2 * _TiB) as image:
        image.writer().write_blocks(written)
        image.finish()
    _assert_in_order(path)
    assert path.stat().st_size < 2 * MiB
    for start, data in written:
        assert _read(path, "qcow2", start, CLUSTER_BYTES, tmp_path / "read") == data


def test_reference_counts_go_on_in_a_second_cluster(tmp_path: Path) -> None:
    clusters = 3 * GiB // CLUSTER_BYTES
    path = tmp_path / "image"
    with Qcow2File(path, 3 * GiB) as image:
        image.map(0, image.allocate(clusters), clusters)  # nothing written: holes of the file, which read as zero
        image.finish()
    _assert_in_order(path)


def test_image_takes_bitmaps_and_writes_as_any_other(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with Qcow2File(path, 64 * MiB) as image:
        image.writer().write_blocks([(0, b"a" * CLUSTER_BYTES), (8 * MiB, b"b" * CLUSTER_BYTES)])
        image.finish()
    _qemu_img("bitmap", "--add", "-f", "qcow2", str(path), "since")
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -q -P 99 32k 64k", "-c", "write -q -P 99 16M 1M", str(path)], check=True
    )
    _qemu_img("resize", "-q", "-f", "qcow2", str(path), "3G")
    _assert_in_order(path)
    content = _read(path, "qcow2", 0, 128 * KiB, tmp_path / "read")
    assert content == b"a" * (32 * KiB) + b"c" * (64 * KiB) + bytes(32 * KiB)
    (bitmap,) = json.loads(_qemu_img("info", "--output=json", str(path)))["format-specific"]["data"]["bitmaps"]
    assert bitmap["name"] == "since"


def test_image_that_was_not_finished_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with Qcow2File(path, 64 * MiB) as image:
        image.writer().write_blocks([(0, b"a" * CLUSTER_BYTES)])
    with pytest.raises(subprocess.CalledProcessError):
        _qemu_img("info", "-f", "qcow2", str(path))
