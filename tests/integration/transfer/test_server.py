"""Images served for reading and for writing in place, with the real qemu-nbd, judged byte for byte."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.transfer.images import (
    SIZE_BYTES,
    Image,
    block_device,
    content_of,
    dirty_ranges,
    is_alive,
    make_chain,
    make_encrypted,
    make_qcow2,
    make_raw,
    make_with_data_file,
    needs_root,
    qemu_img,
    read_whole,
    running_vm,
    wait_for_end,
    write_pattern,
)
from vmkeep.errors import DiskUnsupported, HostFileMissing, TransferError, VmBusy, WrongKey
from vmkeep.transfer.imagefile import add_bitmap, describe_image, remove_bitmap
from vmkeep.transfer.imagekey import ImageKey
from vmkeep.transfer.images import create_image
from vmkeep.transfer.server import ImageServer

_KINDS = ["qcow2", "chain", "data-file", "raw data-file", "raw", "block raw", "block qcow2"]
_BLOCK = 65536


@pytest.fixture
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Image]:
    match request.param:
        case "qcow2":
            yield make_qcow2(tmp_path / "disk.qcow2")
        case "chain":
            yield make_chain(tmp_path)
        case "data-file":
            yield make_with_data_file(tmp_path, raw=False)
        case "raw data-file":
            yield make_with_data_file(tmp_path, raw=True)
        case "raw":
            yield make_raw(tmp_path / "disk.raw")
        case "block raw":
            made = make_raw(tmp_path / "disk.raw")
            with block_device(made.path) as device:
                yield Image(device, "raw", made.content)
        case _:
            made = make_qcow2(tmp_path / "disk.qcow2")
            # A device does not grow, so there is room for what a test writes.
            os.truncate(made.path, 8 << 20)
            with block_device(made.path) as device:
                yield Image(device, "qcow2", made.content)


@pytest.mark.parametrize("image", _KINDS, indirect=True)
def test_image_is_read_as_its_guest_sees_it(image: Image, tmp_path: Path) -> None:
    with ImageServer(image.path, image.format, tmp_path / "s") as server:
        source = server.source()
        assert source.size_bytes == len(image.content) == SIZE_BYTES
        assert read_whole(source) == image.content
        for start, length, flags in source.zero_map():
            if flags & 2:
                assert not any(image.content[start : start + length])
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("image", _KINDS, indirect=True)
def test_image_is_written_in_place(image: Image, tmp_path: Path) -> None:
    wanted = bytearray(image.content)
    writer = ImageServer(image.path, image.format, tmp_path / "s", writable=True)
    with writer, writer.connect() as connection:
        assert connection.size_bytes == SIZE_BYTES
        for start, data in [(0, b"first"), (_BLOCK - 1, b"x" * 70_000), (SIZE_BYTES - 5, b"last.")]:
            connection.write(start, memoryview(data))
            wanted[start : start + len(data)] = data
        for start, length in [(300_001, 200_001), (SIZE_BYTES - 100_005, 100_000)]:
            connection.zero(start, length)
            wanted[start : start + length] = bytes(length)
        assert connection.read(_BLOCK - 10, 20) == wanted[_BLOCK - 10 : _BLOCK + 10]
        connection.flush()
    with ImageServer(image.path, image.format, tmp_path / "s") as server:
        assert read_whole(server.source()) == wanted
    if image.format == "qcow2":
        qemu_img("check", "-f", "qcow2", image.path)
    qemu_img("convert", "-f", image.format, "-O", "raw", image.path, tmp_path / "judge.raw")
    assert (tmp_path / "judge.raw").read_bytes() == wanted


def test_raw_image_that_is_no_multiple_of_a_sector_is_filled_up_with_zeroes(tmp_path: Path) -> None:
    image = make_raw(tmp_path / "disk.raw", 1_000_001)
    assert describe_image(image.path, "raw")[0].size_bytes == 1_000_448
    with ImageServer(image.path, "raw", tmp_path / "s") as server:
        assert read_whole(server.source()) == image.content.ljust(1_000_448, b"\0")
    assert image.path.stat().st_size == 1_000_001


def test_raw_image_with_the_header_of_another_format_is_raw(tmp_path: Path) -> None:
    image = make_chain(tmp_path)
    with ImageServer(image.path, "raw", tmp_path / "s") as server:
        assert read_whole(server.source()) == image.path.read_bytes()


@pytest.mark.parametrize("image", ["qcow2", "chain", "raw data-file", "block qcow2"], indirect=True)
def test_bitmap_is_exported_with_exactly_what_a_writable_server_wrote(image: Image, tmp_path: Path) -> None:
    add_bitmap(image.path, "qcow2", "p1")
    with ImageServer(image.path, "qcow2", tmp_path / "s", writable=True) as server:
        connection = server.connect()
        connection.write(2 * _BLOCK + 5, b"some")
        connection.zero(8 * _BLOCK, _BLOCK)
    add_bitmap(image.path, "qcow2", "p2")
    with ImageServer(image.path, "qcow2", tmp_path / "s", writable=True) as server:
        server.connect().write(SIZE_BYTES - 1, b"!")
    last = SIZE_BYTES // _BLOCK * _BLOCK
    end = (last, SIZE_BYTES - last)
    for bitmap, expected in [("p1", [(2 * _BLOCK, _BLOCK), (8 * _BLOCK, _BLOCK), end]), ("p2", [end])]:
        with ImageServer(image.path, "qcow2", tmp_path / "s", bitmap=bitmap) as server:
            assert dirty_ranges(server.source()) == expected
    assert all(not bitmap.in_use for bitmap in describe_image(image.path, "qcow2")[0].bitmaps)


def test_bitmap_that_is_not_in_the_top_image_is_refused(tmp_path: Path) -> None:
    """qemu-nbd would export the backing file's bitmap, which does not know what the overlay holds."""
    add_bitmap(make_qcow2(tmp_path / "base.qcow2").path, "qcow2", "p1")
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", tmp_path / "base.qcow2", top)
    for bitmap in ("p1", "none"):
        with pytest.raises(TransferError, match="has no bitmap") as caught:
            ImageServer(top, "qcow2", tmp_path / "s", bitmap=bitmap).__enter__()
        assert caught.value.path == str(top)


def test_killed_writable_server_leaves_its_bitmaps_in_use_and_they_can_be_removed(tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "disk.qcow2").path
    add_bitmap(image, "qcow2", "p1")
    server = ImageServer(image, "qcow2", tmp_path / "s", writable=True)
    server.__enter__()
    os.kill(server.pid, signal.SIGKILL)
    wait_for_end(server.pid)
    with pytest.raises(TransferError, match="died with the image open") as caught:
        server.__exit__(None, None, None)
    assert caught.value.path == str(image)
    assert not (tmp_path / "s").exists()
    (bitmap,) = describe_image(image, "qcow2")[0].bitmaps
    assert bitmap.in_use
    with pytest.raises(TransferError, match="bitmap p1"):
        ImageServer(image, "qcow2", tmp_path / "s", bitmap="p1").__enter__()
    assert remove_bitmap(image, "qcow2", "p1")
    assert describe_image(image, "qcow2")[0].bitmaps == ()
    add_bitmap(image, "qcow2", "p1")
    assert not describe_image(image, "qcow2")[0].bitmaps[0].in_use


def test_connection_to_a_dead_server_is_a_transfer_error_and_the_first_error_is_the_one_raised(tmp_path: Path) -> None:
    image = make_raw(tmp_path / "disk.raw").path

    def write_to_the_dead() -> None:
        with ImageServer(image, "raw", tmp_path / "s", writable=True) as server:
            connection = server.connect()
            os.kill(server.pid, signal.SIGKILL)
            wait_for_end(server.pid)
            connection.write(7, b"x" * 100_000)

    with pytest.raises(TransferError, match=r"writing .*disk\.raw at 7 failed") as caught:
        write_to_the_dead()
    assert caught.value.path == str(image)


@pytest.mark.parametrize("image", ["qcow2", "raw", "block raw"], indirect=True)
def test_reading_hinders_no_writer_and_writing_hinders_no_reader(image: Image, tmp_path: Path) -> None:
    with ImageServer(image.path, image.format, tmp_path / "r") as reader:
        source = reader.source()
        with ImageServer(image.path, image.format, tmp_path / "w", writable=True) as writer:
            with writer.connect() as connection:
                connection.write(0, b"written")
                connection.flush()
            with ImageServer(image.path, image.format, tmp_path / "r2") as second:
                assert read_whole(second.source())[7:] == image.content[7:]
        assert len(read_whole(source)) == SIZE_BYTES


@pytest.mark.parametrize("image", _KINDS, indirect=True)
def test_vm_cannot_start_while_its_image_is_written_in_place(image: Image, tmp_path: Path) -> None:
    with ImageServer(image.path, image.format, tmp_path / "s", writable=True):
        with pytest.raises(subprocess.CalledProcessError) as caught, running_vm(image, tmp_path):
            pass
        assert "lock" in caught.value.stderr
    with running_vm(image, tmp_path):
        pass


@pytest.mark.parametrize("image", _KINDS, indirect=True)
def test_vm_can_start_while_its_image_is_read_and_be_read_while_it_runs(image: Image, tmp_path: Path) -> None:
    with ImageServer(image.path, image.format, tmp_path / "s") as server, running_vm(image, tmp_path):
        assert read_whole(server.source()) == image.content
        with ImageServer(image.path, image.format, tmp_path / "s2") as second:
            assert read_whole(second.source()) == image.content


@pytest.mark.parametrize("image", _KINDS, indirect=True)
def test_image_of_a_running_vm_is_not_opened_for_writing(image: Image, tmp_path: Path) -> None:
    with running_vm(image, tmp_path), pytest.raises(VmBusy) as caught:
        ImageServer(image.path, image.format, tmp_path / "s", writable=True).__enter__()
    assert caught.value.path == str(image.path)
    assert not (tmp_path / "s").exists()


def test_read_only_server_refuses_to_write(tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "disk.qcow2").path
    before = image.read_bytes()
    with ImageServer(image, "qcow2", tmp_path / "s") as server, pytest.raises(TransferError, match="writing"):
        server.connect().write(0, b"x")
    assert image.read_bytes() == before


def test_reading_leaves_the_image_untouched(tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "disk.qcow2").path
    add_bitmap(image, "qcow2", "p1")
    before = image.read_bytes()
    with ImageServer(image, "qcow2", tmp_path / "s", bitmap="p1") as server:
        read_whole(server.source())
        dirty_ranges(server.source())
    assert image.read_bytes() == before


def test_long_ranges_are_zeroed_and_written_in_pieces(tmp_path: Path) -> None:
    """An NBD request counts in 32 bits, and libnbd takes no more than 64 MiB of data at once."""
    image, size_bytes, data = tmp_path / "disk.qcow2", 5 << 30, os.urandom(1 << 20) * 65
    qemu_img("create", "-q", "-f", "qcow2", image, str(size_bytes))
    ends = [0, (1 << 30) - 3, (1 << 30) + 1, (4 << 30) - 3, size_bytes - 6]
    with ImageServer(image, "qcow2", tmp_path / "s", writable=True) as server, server.connect() as connection:
        for start in ends:
            connection.write(start, b"......")
        connection.zero(1, size_bytes - 2)
        assert [connection.read(start, 6).count(b".") for start in ends] == [1, 0, 0, 0, 1]
        connection.write(7, data)
        assert [connection.read(7 + at, 1 << 20) for at in range(0, len(data), 1 << 20)] == [data[: 1 << 20]] * 65


def test_many_threads_read_and_write_at_once(tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "disk.qcow2", 16 * _BLOCK)
    with ImageServer(image.path, "qcow2", tmp_path / "s", writable=True, shared=16) as server:

        def write(number: int) -> None:
            with server.connect() as connection:
                connection.write(number * _BLOCK, bytes([number]) * _BLOCK)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(16)))
        with ThreadPoolExecutor(8) as pool:
            contents = list(pool.map(lambda _: read_whole(server.source()), range(8)))
    assert contents == [b"".join(bytes([number]) * _BLOCK for number in range(16))] * 8


def test_missing_files_are_named_before_anything_is_started(tmp_path: Path) -> None:
    top = make_chain(tmp_path).path
    (tmp_path / "base.raw").unlink()
    for writable in (False, True):
        with pytest.raises(HostFileMissing) as caught:
            ImageServer(top, "qcow2", tmp_path / "s", writable=writable).__enter__()
        assert caught.value.path == str(tmp_path / "base.raw")


@pytest.mark.parametrize("image_format", ["qcow2", "luks"])
def test_encrypted_image_is_served_plain_to_who_has_its_key_and_holds_nothing_plain(
    tmp_path: Path, image_format: str
) -> None:
    image, key = tmp_path / "disk", ImageKey("öpen, sesame\n".encode())  # as libvirt has it, with the line break
    create_image(image, image_format, 1 << 20, key, strong=False)
    assert image.stat().st_mode & 0o777 == 0o600
    content = content_of(1 << 16, 1)
    with ImageServer(image, image_format, tmp_path / "s", writable=True, key=key) as server:
        server.connect().write(4096, content)
        arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert b"qemu-nbd" in arguments
        assert b"sesame" not in arguments
    assert content[:512] not in image.read_bytes()
    if image_format == "qcow2":
        add_bitmap(image, "qcow2", "b", key)
        assert describe_image(image, "qcow2")[0].bitmap("b") is not None
        assert remove_bitmap(image, "qcow2", "b", key)
    with ImageServer(image, image_format, tmp_path / "s", key=key) as server:
        assert server.source().connect().read(4096, len(content)) == content
    with pytest.raises(WrongKey, match="does not open") as caught:
        ImageServer(image, image_format, tmp_path / "s", key=ImageKey(b"wrong")).__enter__()
    assert caught.value.path == str(image)


def test_plain_image_is_not_taken_for_an_encrypted_one(tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "disk.qcow2").path
    for writable in (False, True):
        with pytest.raises(DiskUnsupported, match="is not encrypted"):
            ImageServer(image, "qcow2", tmp_path / "s", writable=writable, key=ImageKey(b"k")).__enter__()
    with pytest.raises(DiskUnsupported, match="is not encrypted"):
        add_bitmap(image, "qcow2", "b", ImageKey(b"k"))


def test_what_qemu_nbd_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    make_encrypted(image)
    with pytest.raises(TransferError, match=r"cannot open .*key-secret") as caught:
        ImageServer(image, "qcow2", tmp_path / "s").__enter__()
    assert "json:" not in caught.value.message
    assert not (tmp_path / "s").exists()


def test_socket_path_that_is_too_long_or_in_use_is_refused(tmp_path: Path) -> None:
    image = make_raw(tmp_path / "disk.raw").path
    with pytest.raises(TransferError, match="longer than 107 bytes") as caught:
        ImageServer(image, "raw", tmp_path / ("ü" * 60)).__enter__()
    assert "run_dir" in caught.value.hint
    with pytest.raises(HostFileMissing) as missing:
        ImageServer(image, "raw", tmp_path / "none" / "s").__enter__()
    assert missing.value.path == str(tmp_path / "none")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        with pytest.raises(TransferError, match="in use by another process"):
            ImageServer(image, "raw", tmp_path / "s").__enter__()
    with ImageServer(image, "raw", tmp_path / "s") as server:  # what is left of the other is replaced
        assert server.source().size_bytes == SIZE_BYTES


def test_server_is_out_of_reach_of_the_terminals_interrupt(tmp_path: Path) -> None:
    with ImageServer(make_raw(tmp_path / "disk.raw").path, "raw", tmp_path / "s") as server:
        assert os.getpgid(server.pid) != os.getpgid(0)


_CHILD = """
import sys, time
from pathlib import Path
from vmkeep.transfer.server import ImageServer
image, socket, writable = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "True"
with ImageServer(image, "qcow2", socket, writable=writable) as server:
    connection = server.connect()
    if writable:
        connection.write(0, b"x" * 65536)
        connection.flush()
    print("server", server.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("writable", [False, True])
def test_server_dies_with_a_killed_vmkeep_and_closes_what_it_wrote(tmp_path: Path, writable: bool) -> None:
    image = make_qcow2(tmp_path / "disk.qcow2").path
    add_bitmap(image, "qcow2", "p1")
    command = [sys.executable, "-c", _CHILD, str(image), str(tmp_path / "s"), str(writable)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        pid = next(int(line.split()[1]) for line in child.stdout if line.startswith("server "))
        assert is_alive(pid)
        child.kill()
    wait_for_end(pid)
    assert not describe_image(image, "qcow2")[0].bitmaps[0].in_use
    with ImageServer(image, "qcow2", tmp_path / "s", bitmap="p1") as server:
        assert dirty_ranges(server.source()) == ([(0, _BLOCK)] if writable else [])


_FULL = """
import sys
from pathlib import Path
from vmkeep.errors import NoSpace
from vmkeep.transfer.server import ImageServer
directory = Path(sys.argv[1])
try:
    with ImageServer(directory / "disk", sys.argv[2], directory / "s", writable=True) as server:
        with server.connect() as connection:
            connection.write(0, b"x" * (4 << 20))
            connection.flush()
except NoSpace as error:
    print("no space", error.path)
"""


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_full_file_system_is_said_to_be_full(tmp_path: Path, image_format: str) -> None:
    needs_root("mount a small file system")
    script = (
        'mount -t tmpfs -o size=1m tmpfs "$1" && qemu-img create -q -f "$2" "$1/disk" 8M && exec "$3" -c "$4" "$1" "$2"'
    )
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), image_format, sys.executable, _FULL]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"no space {tmp_path}/disk" in done.stdout


def test_bitmap_of_an_image_written_by_others_is_exported(tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "disk.qcow2")
    add_bitmap(image.path, "qcow2", "p1")
    write_pattern(image.path, 0xCC, 3 * _BLOCK, 512)
    with ImageServer(image.path, "qcow2", tmp_path / "s", bitmap="p1") as server:
        assert dirty_ranges(server.source()) == [(3 * _BLOCK, _BLOCK)]
