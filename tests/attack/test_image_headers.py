"""A QEMU that its guest took over wrote the header of its image: nothing that its user may not have comes of it.

Each image lies in a folder of root's and belongs to root, as libvirt leaves it when a VM stops. Each was seen to work
on an earlier build, which let QEMU's tools follow the header.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.attack.conftest import QEMU_USER, Ground, Told, as_user
from tests.integration.transfer.images import (
    block_device,
    file_node,
    make_chain,
    make_raw,
    make_with_data_file,
    qemu_img,
    qemu_io,
    read_whole,
    write_pattern,
)
from tests.rig import KiB, MiB, random_bytes
from vmkeep.errors import VmkeepError
from vmkeep.transfer.imagefile import add_bitmap, describe_image, remove_bitmap
from vmkeep.transfer.server import ImageServer

_SIZE = 1 * MiB
_PROMPT_SECONDS = 5.0


def _overlay(path: Path, name: str | Path, image_format: str = "raw") -> Path:
    """Make an image whose header names anything at all."""
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", image_format, "-b", name, path, str(_SIZE))
    return path


def _with_data_file(path: Path, name: Path) -> Path:
    """Make an image whose header names a file, which is not touched, as its data file."""
    own = path.with_name("own.data")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={own.name.ljust(len(str(name)), '_')}", path, str(_SIZE))
    path.write_bytes(path.read_bytes().replace(own.name.ljust(len(str(name)), "_").encode(), str(name).encode(), 1))
    for left in (own.name.ljust(len(str(name)), "_"),):
        Path(left).unlink(missing_ok=True)
    return path


def _read(image: Path, directory: Path) -> bytes:
    with ImageServer(image, "qcow2", directory / "s") as server:
        return read_whole(server.source())


def _write(image: Path, directory: Path) -> None:
    with ImageServer(image, "qcow2", directory / "s", writable=True) as server, server.connect() as connection:
        connection.write(0, b"guest" * 4096)


def _is_refused(image: Path, ground: Ground) -> VmkeepError:
    """Read the image in every way; return the error. What is read in spite of all must hold nothing of the secret."""
    begun = time.monotonic()
    with pytest.raises(VmkeepError) as described:
        describe_image(image, "qcow2")
    leaked = b""
    with suppress(VmkeepError):
        leaked = _read(image, ground.top)
    assert ground.secret[:4096] not in leaked, "the content of a file of root's was read"
    assert time.monotonic() - begun < _PROMPT_SECONDS
    ground.assert_untouched()
    assert described.value.hint
    assert described.value.code != "internal-error"
    return described.value


# -- what must not work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "named",
    [
        lambda ground: str(ground.secret_file),
        lambda _: "../root-only/secret",
        lambda ground: f"{ground.images}/../root-only/./secret",
        lambda ground: f"file:{ground.secret_file}",
        lambda ground: file_node(ground.secret_file),
        lambda ground: 'json:{"driver":"raw","file":{"driver":"file","filename":"' + str(ground.secret_file) + '"}}',
        lambda ground: f"fat:{ground.secret_file.parent}",
        lambda ground: f"/proc/self/root{ground.secret_file}",
    ],
)
def test_backing_file_of_roots_is_not_read(ground: Ground, named: Callable[[Ground], str]) -> None:
    error = _is_refused(_overlay(ground.images / "disk.qcow2", named(ground)), ground)
    assert error.code == "header-refused"
    assert error.path == str(ground.images / "disk.qcow2")


def test_forged_header_deep_in_a_chain_is_found_too(ground: Ground) -> None:
    below = _overlay(ground.images / "0.qcow2", ground.secret_file)
    for number in range(1, 5):
        below = _overlay(ground.images / f"{number}.qcow2", f"{number - 1}.qcow2", "qcow2")
    error = _is_refused(below, ground)
    assert (error.code, error.path) == ("header-refused", str(ground.images / "0.qcow2"))


def test_link_of_qemus_user_leads_nowhere(ground: Ground) -> None:
    link = ground.folder_of(QEMU_USER) / "base"
    as_user(QEMU_USER, "ln", "-s", ground.secret_file, link, check=True)
    assert _is_refused(_overlay(ground.images / "a.qcow2", link), ground).code == "header-refused"
    folder = ground.folder_of(QEMU_USER) / "folder"
    as_user(QEMU_USER, "ln", "-s", ground.secret_file.parent, folder, check=True)
    assert _is_refused(_overlay(ground.images / "b.qcow2", folder / "secret"), ground).code == "header-refused"


def test_image_that_is_a_link_of_qemus_user_is_not_read(ground: Ground) -> None:
    """Also as a raw disk, of which nothing but the name says what it is."""
    disk = ground.folder_of(QEMU_USER) / "disk.raw"
    as_user(QEMU_USER, "ln", "-s", ground.secret_file, disk, check=True)
    with pytest.raises(VmkeepError) as caught:
        describe_image(disk, "raw")
    assert caught.value.code == "header-refused"
    with pytest.raises(VmkeepError), ImageServer(disk, "raw", ground.top / "s") as server:
        assert ground.secret[:4096] not in read_whole(server.source())


@pytest.mark.parametrize("image_format", ["vmdk", "vdi", "qed", "vpc"])
def test_description_of_another_format_is_not_followed(ground: Ground, image_format: str) -> None:
    descriptor = ground.images / "base.img"
    descriptor.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        f'RW 2048 FLAT "{ground.secret_file}" 0\n'
    )
    assert _is_refused(_overlay(ground.images / "a.qcow2", "base.img", image_format), ground).code == "header-refused"
    with pytest.raises(VmkeepError):
        describe_image(descriptor, image_format)


def test_format_that_is_not_named_is_not_probed(ground: Ground) -> None:
    """The content of a raw base is a guest's, who can write the header of any format into it."""
    base = _overlay(ground.images / "base.raw", ground.secret_file)
    top = _overlay(ground.images / "a.qcow2", "base.raw", "qcow2")
    top.write_bytes(top.read_bytes().replace(bytes.fromhex("e2792aca"), bytes.fromhex("00facade"), 1))
    assert _is_refused(top, ground).code == "header-refused"
    assert describe_image(base, "raw")[0].backing is None


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket", "missing"])
def test_what_is_no_file_is_an_error_at_once(ground: Ground, kind: str) -> None:
    path = ground.images / kind
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
        case "socket":
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(path))
    _is_refused(_overlay(ground.images / "disk.qcow2", path), ground)
    with pytest.raises(VmkeepError):
        describe_image(path, "raw")


@contextmanager
def _listening(path: Path) -> Iterator[list[int]]:
    """Listen as another user of the host would, and count who connects."""
    heard: list[int] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()
        server.settimeout(0.05)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                heard.append(1)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield heard
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize("scheme", ["nbd:unix:{}", "nbd+unix:///x?socket={}"])
def test_server_that_a_header_names_is_not_connected_to(ground: Ground, scheme: str) -> None:
    with _listening(ground.top / "server") as heard:
        image = _overlay(ground.images / "disk.qcow2", scheme.format(ground.top / "server"))
        assert _is_refused(image, ground).code == "header-refused"
        describe_image(image, "qcow2", chain=False)
        add_bitmap(image, "qcow2", "b")
        remove_bitmap(image, "qcow2", "b")
    assert heard == []


def test_disk_of_another_vm_is_not_read(ground: Ground, told: Told) -> None:
    """It lies beside the image, as all images do, and belongs to root while its VM is off."""
    other = ground.images / "other.raw"
    shutil.copy(ground.secret_file, other)
    other.chmod(0o600)
    told.own = {str(other): "other"}
    error = _is_refused(_overlay(ground.images / "disk.qcow2", "other.raw"), ground)
    assert "VM other" in error.message
    # An overlay over another VM's disk is nothing strange where the definition says so.
    told.below = {str(other): "raw"}
    assert describe_image(ground.images / "disk.qcow2", "qcow2")[1].path == str(other)


@pytest.mark.parametrize("way", ["describe", "bitmap", "write"])
def test_file_of_roots_is_not_written_as_a_data_file(ground: Ground, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ground.top)
    image = _with_data_file(ground.images / "disk.qcow2", ground.secret_file)
    ways: dict[str, Callable[[], object]] = {
        "describe": lambda: describe_image(image, "qcow2", chain=False),
        "bitmap": lambda: add_bitmap(image, "qcow2", "b"),
        "write": lambda: _write(image, ground.top),
    }
    with pytest.raises(VmkeepError) as caught:
        ways[way]()
    ground.assert_untouched()
    assert caught.value.code == "header-refused"


def test_data_file_that_qemus_user_may_only_read_is_not_written(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ground.top)
    readable = ground.top / "readable"
    readable.write_bytes(ground.secret)
    readable.chmod(0o644)
    image = _with_data_file(ground.images / "disk.qcow2", readable)
    with pytest.raises(VmkeepError):
        _write(image, ground.top)
    assert readable.read_bytes() == ground.secret


def test_data_file_of_another_vm_is_not_written(ground: Ground, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where QEMU's user may write it: the other VM runs, or its image was left to that user."""
    monkeypatch.chdir(ground.top)
    other = ground.images / "other.raw"
    shutil.copy(ground.secret_file, other)
    shutil.chown(other, QEMU_USER)
    told.own = {str(other): "other"}
    image = _with_data_file(ground.images / "disk.qcow2", other)
    with pytest.raises(VmkeepError) as caught:
        _write(image, ground.top)
    assert other.read_bytes() == ground.secret
    assert caught.value.code == "header-refused"


def test_header_that_changes_after_it_was_read_changes_nothing(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has the image open goes on writing to it: what QEMU's tools open was decided before."""
    base = ground.images / "base.raw"
    base.write_bytes(random_bytes(5, _SIZE))
    image = _overlay(ground.images / "disk.qcow2", "base.raw")
    forged = _overlay(ground.images / "forged.qcow2", ground.secret_file).read_bytes()
    start = subprocess.Popen

    def change_first(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        image.write_bytes(forged)
        return start(command, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr("vmkeep.transfer.server.subprocess.Popen", change_first)
    content = _read(image, ground.top)
    assert content == base.read_bytes()


# -- what must go on working -------------------------------------------------------------------------------------


def test_overlay_over_a_base_beside_it_is_read(ground: Ground) -> None:
    image = make_chain(ground.images)
    assert _read(image.path, ground.top) == image.content


@pytest.mark.parametrize("relative", [False, True])
def test_overlay_over_a_base_beside_it_that_root_alone_may_read_is_read(ground: Ground, *, relative: bool) -> None:
    base = ground.images / "base.raw"
    base.write_bytes(random_bytes(5, _SIZE))
    base.chmod(0o600)
    image = _overlay(ground.images / "disk.qcow2", "base.raw" if relative else base)
    assert _read(image, ground.top) == base.read_bytes()


def test_overlay_over_a_template_that_all_may_read_is_read(ground: Ground) -> None:
    templates = ground.top / "templates"
    templates.mkdir(mode=0o755)
    base = templates / "template.raw"
    base.write_bytes(random_bytes(5, _SIZE))
    base.chmod(0o644)
    assert _read(_overlay(ground.images / "disk.qcow2", base), ground.top) == base.read_bytes()
    # Through a link that root made, to the folder or to the file, as well.
    (ground.top / "linked").symlink_to(templates)
    (ground.top / "linked.raw").symlink_to(base)
    for number, name in enumerate((ground.top / "linked" / base.name, ground.top / "linked.raw")):
        assert _read(_overlay(ground.images / f"{number}.qcow2", name), ground.top) == base.read_bytes()


def test_overlay_over_a_root_only_template_is_read_in_a_pool_or_where_the_definition_says_so(
    ground: Ground, told: Told
) -> None:
    templates = ground.top / "templates"
    templates.mkdir(mode=0o700)
    base = templates / "template.raw"
    base.write_bytes(random_bytes(5, _SIZE))
    image = _overlay(ground.images / "disk.qcow2", base)
    with pytest.raises(VmkeepError):
        describe_image(image, "qcow2")
    told.pools = (str(templates),)
    assert _read(image, ground.top) == base.read_bytes()
    told.pools, told.below = (), {str(base): "raw"}
    assert _read(image, ground.top) == base.read_bytes()


@pytest.mark.parametrize("raw", [False, True])
def test_image_with_its_data_file_beside_it_is_read_and_written(ground: Ground, *, raw: bool) -> None:
    image = make_with_data_file(ground.images, raw=raw)
    (ground.images / "disk.data").chmod(0o600)
    add_bitmap(image.path, "qcow2", "b")
    assert _read(image.path, ground.top) == image.content
    with (
        ImageServer(image.path, "qcow2", ground.top / "s", writable=True) as server,
        server.connect() as connection,
    ):
        connection.write(0, b"x" * 65536)
    assert _read(image.path, ground.top) == b"x" * 65536 + image.content[65536:]


def test_chain_eight_deep_is_read(ground: Ground) -> None:
    content = bytearray(random_bytes(5, _SIZE))
    (ground.images / "0.raw").write_bytes(content)
    below, image_format = "0.raw", "raw"
    for number in range(1, 9):
        image = _overlay(ground.images / f"{number}.qcow2", below, image_format)
        write_pattern(image, number, number * 64 * KiB, 64 * KiB)
        content[number * 64 * KiB : (number + 1) * 64 * KiB] = bytes([number]) * (64 * KiB)
        below, image_format = image.name, "qcow2"
    assert len(describe_image(ground.images / "8.qcow2", "qcow2")) == 9
    assert _read(ground.images / "8.qcow2", ground.top) == bytes(content)


def test_internal_snapshots_and_old_images_are_read(ground: Ground) -> None:
    image = ground.images / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", image, str(_SIZE))
    write_pattern(image, 7, 0, 64 * KiB)
    qemu_img("snapshot", "-c", "then", image)
    write_pattern(image, 9, 0, 64 * KiB)
    (layer,) = describe_image(image, "qcow2")
    assert ([each.name for each in layer.snapshots], layer.holds_bitmaps) == (["then"], False)
    assert _read(image, ground.top)[: 64 * KiB] == b"\x09" * (64 * KiB)


def test_raw_disk_in_which_a_guest_wrote_a_header_is_raw(ground: Ground) -> None:
    forged = _overlay(ground.images / "disk.raw", ground.secret_file)
    with ImageServer(forged, "raw", ground.top / "s") as server:
        assert read_whole(server.source())[: forged.stat().st_size] == forged.read_bytes()


def test_device_is_read_as_what_the_definition_says(ground: Ground) -> None:
    image = make_raw(ground.images / "disk.raw")
    with block_device(image.path) as device, ImageServer(device, "raw", ground.top / "s") as server:
        assert read_whole(server.source()) == image.content
    base = make_raw(ground.images / "base.raw")
    with block_device(base.path) as device:
        overlay = _overlay(ground.images / "disk.qcow2", device)
        # A device is root's and the group disk's, and lies beside nothing: the definition says that it is meant.
        with pytest.raises(VmkeepError):
            describe_image(overlay, "qcow2")


def test_names_in_the_header_stay_after_a_bitmap_was_added(ground: Ground) -> None:
    """QEMU writes the header anew, and gets no names from us to write into it."""
    chain = make_chain(ground.images)
    qemu_io(chain.path, "write -P 3 0 64k")
    before = [(layer.path, layer.backing) for layer in describe_image(chain.path, "qcow2")]
    add_bitmap(chain.path, "qcow2", "b")
    assert [(layer.path, layer.backing) for layer in describe_image(chain.path, "qcow2")] == before
    assert b"/proc/self/fd" not in chain.path.read_bytes()
    data = make_with_data_file(ground.top, raw=True)
    add_bitmap(data.path, "qcow2", "b")
    assert describe_image(data.path, "qcow2")[0].data_file == str(ground.top / "disk.data")
    assert b"/proc/self/fd" not in data.path.read_bytes()
