"""Which disks are astray, by what a process really has open; this process stands for QEMU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmkeep.definition import Definition, parse_definition
from vmkeep.host.vm import openimages
from vmkeep.host.vm.astray import AstrayDisk, compare
from vmkeep.host.vm.openimages import OpenImages, open_images
from vmkeep.hypervisor.blocknodes import _path

_UUID = "0e9fa704-8f0c-4474-a165-21d32ce01bbb"


class Process:
    """What is opened here is all that counts as open: files of the test's own directory."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack

    def image(self, name: str, below: Path | None = None) -> Path:
        path = self.directory / name
        backing = [] if below is None else ["-F", "qcow2", "-b", str(below)]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(path), "1M"], check=True)
        return path

    def open(self, path: Path, flags: int) -> None:
        self._stack.callback(os.close, os.open(path, flags | os.O_CREAT))

    def opened(self) -> OpenImages:
        images = openimages._images(Path("/proc/self"))
        return OpenImages(1, tuple(image for image in images if image.path.startswith(str(self.directory))))


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    with ExitStack() as stack:
        yield Process(tmp_path, stack)


def _definition(*images: Path, attributes: str = "device='disk'", inside: str = "") -> Definition:
    disks = "".join(
        f"<disk type='file' {attributes}><driver name='qemu' type='qcow2'/><source file='{image}'/>"
        f"<target dev='vd{letter}'/>{inside}</disk>"
        for letter, image in zip("abc", images, strict=False)
    )
    text = f"<domain type='qemu' id='1'><name>g</name><uuid>{_UUID}</uuid><os><type>hvm</type>"
    return parse_definition(f"{text}<nvram>/nowhere/vars.fd</nvram></os><devices>{disks}</devices></domain>")


def test_disk_that_is_written_to_is_right_by_whatever_name(process: Process) -> None:
    image = process.image("a.qcow2")
    link = process.directory / "link"
    link.symlink_to(image)
    other = process.directory / "other"
    other.hardlink_to(image)
    process.open(other, os.O_RDWR)
    assert compare(_definition(image), process.opened()) == ()
    assert compare(_definition(link), process.opened()) == ()


def test_overlay_that_the_definition_does_not_name_is_found_over_all_images_between(process: Process) -> None:
    base, right = process.image("base"), process.image("right")
    middle = process.image("middle", base)
    top = process.image("top", middle)
    process.open(base, os.O_RDONLY)
    process.open(middle, os.O_RDONLY)
    process.open(top, os.O_RDWR)
    process.open(right, os.O_RDWR)
    (found,) = compare(_definition(base, right), process.opened())
    assert found == AstrayDisk("vda", str(base), "qcow2", str(top), (str(top),))
    assert "QEMU writes to" in str(found)
    process.open(middle, os.O_RDWR)  # as in the middle of a commit
    (found,) = compare(_definition(base, right), process.opened())
    assert found.overlay == str(top)


def test_disks_that_wait_for_their_guest_are_not_astray(process: Process) -> None:
    images = [process.image("a"), process.image("b")]
    for image in images:
        process.open(image, os.O_RDONLY)
    process.open(process.directory / "guest.pid", os.O_WRONLY)
    assert compare(_definition(*images), process.opened()) == ()
    process.open(process.image("copy"), os.O_RDWR)  # a pivot of one of them that libvirt does not know of
    found = compare(_definition(*images), process.opened())
    assert [(disk.target, disk.overlay) for disk in found] == [("vda", None), ("vdb", None)]


def test_disk_that_is_not_open_is_astray_also_when_its_path_leads_to_another_file(process: Process) -> None:
    image = process.image("a")
    (found,) = compare(_definition(image), process.opened())
    assert "does not have open" in str(found)
    process.open(image, os.O_RDWR)
    image.rename(process.directory / "aside")
    process.image("a")
    (found,) = compare(_definition(image), process.opened())
    assert found.written == (str(process.directory / "aside"),)


@pytest.mark.parametrize(
    ("attributes", "inside"), [("device='cdrom'", ""), ("device='floppy'", ""), ("device='disk'", "<readonly/>")]
)
def test_media_and_disks_that_are_read_only_are_left_out(process: Process, attributes: str, inside: str) -> None:
    assert compare(_definition(process.image("a"), attributes=attributes, inside=inside), process.opened()) == ()


def test_process_is_the_vms_only_with_its_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openimages, "_PID_FILES", tmp_path)
    assert open_images("g", _UUID, "qemu:///system") is None
    # Popen comes back when the new program's files are open, a moment before its arguments can be read.
    waiting = "print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", waiting, _UUID], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        (tmp_path / "g.pid").write_text(f"{other.pid}\n")
        opened = open_images("g", _UUID, "qemu:///system")
        assert opened is not None
        assert opened.process == other.pid
        assert open_images("g", _UUID.replace("0e", "1e", 1), "qemu:///system") is None
        for elsewhere in ("qemu:///session", "qemu+ssh://there/system", "test:///default"):
            assert open_images("g", _UUID, elsewhere) is None
        other.communicate(b"\n")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/a/b", "/a/b"),
        ('json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/a/b"}}', "/a/b"),
        ('json:{"backing": null, "driver": "qcow2", "file": {"driver": "raw", "file": "/a/b"}}', "/a/b"),
        ("nbd://host/x", None),
        ("json:{", None),
        ('json:{"driver": "null-co"}', None),
    ],
)
def test_path_of_a_node_is_that_of_its_file(name: str, path: str | None) -> None:
    assert _path(name) == path
