"""What is said of images on the host, and bitmaps put into them and taken out, with the real qemu-img."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.transfer.images import (
    SIZE_BYTES,
    block_device,
    make_chain,
    make_encrypted,
    make_qcow2,
    make_raw,
    make_with_data_file,
    needs_root,
    qemu_img,
)
from vmkeep.errors import (
    HeaderRefused,
    HostFileMissing,
    PermissionRefused,
    TargetExists,
    TransferError,
    VmBusy,
)
from vmkeep.planning.images import ImageBitmap, ImageLayer
from vmkeep.transfer.imagefile import add_bitmap, describe_image, remove_bitmap
from vmkeep.transfer.server import ImageServer

# The header extension of qcow2 that holds the format of the backing file, and a number that nobody reads.
_BACKING_FORMAT, _UNREAD = bytes.fromhex("e2792aca"), bytes.fromhex("00facade")
_STRANGE_NAMES = ["a,b=c,,d", "nbd:x: y", 'it\'s "so"', "-rf", "json:{}", "100%s 50%", "blåbær\\n", "file:z", "#x"]


@pytest.fixture
def protected_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        image = make_qcow2(directory / "disk.qcow2").path
        image.chmod(0o600)
        yield image


@contextmanager
def nobody() -> Iterator[None]:
    needs_root("become another user")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_qcow2_image_is_described_with_its_bitmaps(tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "disk.qcow2")
    qemu_img("bitmap", "--add", image.path, "kept")
    qemu_img("bitmap", "--add", "--disable", "-g", "131072", image.path, "still")
    assert describe_image(image.path, "qcow2") == (
        ImageLayer(
            path=str(image.path),
            format="qcow2",
            size_bytes=SIZE_BYTES,
            bitmaps=(
                ImageBitmap("kept", 65536, in_use=False, recording=True),
                ImageBitmap("still", 131072, in_use=False, recording=False),
            ),
            encrypted=False,
            data_file=None,
            backing=None,
        ),
    )


def test_chain_is_described_from_the_top_with_relative_names_made_absolute(tmp_path: Path) -> None:
    top = make_chain(tmp_path).path
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "middle.qcow2", top)
    layers = describe_image(top, "qcow2")
    assert [(layer.path, layer.format, layer.backing) for layer in layers] == [
        (str(top), "qcow2", str(tmp_path / "middle.qcow2")),
        (str(tmp_path / "middle.qcow2"), "qcow2", str(tmp_path / "base.raw")),
        (str(tmp_path / "base.raw"), "raw", None),
    ]
    assert describe_image(top, "qcow2", chain=False) == layers[:1]


@pytest.mark.parametrize("missing", ["middle.qcow2", "base.raw"])
def test_missing_backing_file_is_named(tmp_path: Path, missing: str) -> None:
    top = make_chain(tmp_path).path
    (tmp_path / missing).unlink()
    with pytest.raises(HostFileMissing, match="backing file of") as caught:
        describe_image(top, "qcow2")
    assert caught.value.path == str(tmp_path / missing)
    assert describe_image(top, "qcow2", chain=False)[0].path == str(top)


def test_chain_that_goes_in_a_circle_is_an_error(tmp_path: Path) -> None:
    top = make_chain(tmp_path).path
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", top, tmp_path / "middle.qcow2")
    with pytest.raises(TransferError, match="circle"):
        describe_image(top, "qcow2")


def test_backing_format_that_is_not_named_is_never_guessed(tmp_path: Path) -> None:
    """Also where only a raw image is below: a guest can have written the header of another format into it."""
    top = make_chain(tmp_path).path
    middle = tmp_path / "middle.qcow2"
    middle.write_bytes(middle.read_bytes().replace(_BACKING_FORMAT, _UNREAD, 1))
    with pytest.raises(HeaderRefused, match="which format") as caught:
        describe_image(top, "qcow2")
    assert caught.value.path == str(middle)
    assert "qemu-img rebase" in caught.value.hint


def test_backing_file_of_a_format_that_may_name_files_is_refused(tmp_path: Path) -> None:
    """A VMDK descriptor is text that names any files as its extents."""
    qemu_img("create", "-q", "-f", "vmdk", tmp_path / "base.vmdk", "1M")
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-F", "vmdk", "-b", tmp_path / "base.vmdk", top)
    with pytest.raises(HeaderRefused, match="format 'vmdk'"):
        describe_image(top, "qcow2")
    assert describe_image(top, "qcow2", chain=False)[0].backing == str(tmp_path / "base.vmdk")


def test_format_is_never_guessed(tmp_path: Path) -> None:
    """A guest that writes a qcow2 header into its raw disk has a raw disk still."""
    image = make_chain(tmp_path).path
    (layer,) = describe_image(image, "raw")
    assert (layer.format, layer.size_bytes, layer.backing) == ("raw", image.stat().st_size, None)


def test_data_file_is_named_and_missed(tmp_path: Path) -> None:
    image = make_with_data_file(tmp_path, raw=True)
    assert describe_image(image.path, "qcow2")[0].data_file == str(tmp_path / "disk.data")
    (tmp_path / "disk.data").unlink()
    with pytest.raises(HostFileMissing, match="data file of") as caught:
        describe_image(image.path, "qcow2")
    assert caught.value.path == str(tmp_path / "disk.data")


def test_data_file_with_a_relative_name_lies_beside_its_image(tmp_path: Path) -> None:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=disk.data", "disk.qcow2", "1M"],
        cwd=tmp_path,
        check=True,
    )
    assert describe_image(tmp_path / "disk.qcow2", "qcow2")[0].data_file == str(tmp_path / "disk.data")
    add_bitmap(tmp_path / "disk.qcow2", "qcow2", "b")
    assert describe_image(tmp_path / "disk.qcow2", "qcow2")[0].bitmap("b") is not None


def test_encrypted_image_says_so_without_its_key(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    make_encrypted(image)
    (layer,) = describe_image(image, "qcow2")
    assert (layer.encrypted, layer.size_bytes) == (True, 1 << 20)


def test_block_device_is_described(tmp_path: Path) -> None:
    with block_device(make_raw(tmp_path / "disk.raw").path) as device:
        (layer,) = describe_image(device, "raw")
        assert (layer.path, layer.size_bytes) == (str(device), SIZE_BYTES)
    with block_device(make_qcow2(tmp_path / "disk.qcow2").path) as device:
        assert describe_image(device, "qcow2")[0].size_bytes == SIZE_BYTES


@pytest.mark.parametrize("name", _STRANGE_NAMES)
def test_any_name_is_only_a_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / name
    directory.mkdir()
    base, image = directory / "base", directory / name
    make_raw(base)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, tmp_path / "plain.qcow2")
    (tmp_path / "plain.qcow2").rename(image)
    monkeypatch.chdir(directory)
    add_bitmap(Path(name), "qcow2", "-p")
    top, below = describe_image(name, "qcow2")
    assert (top.path, below.path) == (str(image), str(base))
    assert top.bitmap("-p") is not None
    assert remove_bitmap(image, "qcow2", "-p")
    with ImageServer(image, "qcow2", tmp_path / "s") as server:
        assert server.source().size_bytes == SIZE_BYTES


def test_added_bitmap_is_like_libvirts_and_can_be_added_once(tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "disk.qcow2").path
    add_bitmap(image, "qcow2", "p1")
    assert describe_image(image, "qcow2")[0].bitmaps == (ImageBitmap("p1", 65536, in_use=False, recording=True),)
    with pytest.raises(TargetExists) as caught:
        add_bitmap(image, "qcow2", "p1")
    assert caught.value.path == str(image)


def test_removed_bitmap_is_gone_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "disk.qcow2").path
    add_bitmap(image, "qcow2", "p1")
    add_bitmap(image, "qcow2", "p2")
    assert remove_bitmap(image, "qcow2", "p1")
    assert not remove_bitmap(image, "qcow2", "p1")
    assert [bitmap.name for bitmap in describe_image(image, "qcow2")[0].bitmaps] == ["p2"]


def test_image_with_data_file_holds_bitmaps_too(tmp_path: Path) -> None:
    image = make_with_data_file(tmp_path, raw=True).path
    add_bitmap(image, "qcow2", "p1")
    assert describe_image(image, "qcow2")[0].bitmap("p1") is not None


def test_image_that_is_open_is_described_but_not_changed(tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "disk.qcow2").path
    add_bitmap(image, "qcow2", "p1")
    with ImageServer(image, "qcow2", tmp_path / "s", writable=True):
        assert describe_image(image, "qcow2")[0].bitmaps == (ImageBitmap("p1", 65536, in_use=True, recording=True),)
        with pytest.raises(VmBusy) as caught:
            add_bitmap(image, "qcow2", "p2")
        assert caught.value.path == str(image)
        with pytest.raises(VmBusy):
            remove_bitmap(image, "qcow2", "p1")
    assert describe_image(image, "qcow2")[0].bitmaps == (ImageBitmap("p1", 65536, in_use=False, recording=True),)


def test_raw_image_takes_no_bitmap(tmp_path: Path) -> None:
    image = make_raw(tmp_path / "disk.raw").path
    with pytest.raises(TransferError, match="add the bitmap p1"):
        add_bitmap(image, "raw", "p1")
    assert not remove_bitmap(image, "raw", "p1")


def test_missing_image_wrong_format_and_pipe_are_errors_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(HostFileMissing) as missing:
        describe_image(tmp_path / "none.qcow2", "qcow2")
    assert missing.value.path == str(tmp_path / "none.qcow2")
    raw = make_raw(tmp_path / "disk.raw").path
    with pytest.raises(TransferError, match="is no qcow2 image") as unfit:
        describe_image(raw, "qcow2")
    assert unfit.value.path == str(raw)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TransferError, match="neither a file"):
        describe_image(tmp_path / "pipe", "raw")


def test_refused_permission_is_said_as_such(protected_file: Path) -> None:
    with nobody(), pytest.raises(PermissionRefused) as caught:
        describe_image(protected_file, "qcow2")
    assert caught.value.path == str(protected_file)


def test_directory_that_may_not_be_entered_is_refused_permission(protected_file: Path) -> None:
    protected_file.parent.chmod(0o700)
    with nobody(), pytest.raises(PermissionRefused):
        describe_image(protected_file, "qcow2")
