"""Notes of deletions of snapshots: what counts as overwritten, and how long that is remembered."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from vmkeep.host.vm.deletions import DeletionNote, NotedImage, deletion_notes, torn_disks
from vmkeep.moments import Snapshot

_VM = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "base.qcow2"
    image.write_bytes(b"state")
    return image


def note_of(image: Path, *, snapshot: str = "one") -> DeletionNote:
    return DeletionNote(_VM, snapshot, 7, (NotedImage("vda", str(image), image.stat().st_mtime_ns),))


def write(image: Path) -> None:
    about = image.stat()
    image.write_bytes(b"mixed")
    os.utime(image, ns=(about.st_atime_ns, about.st_mtime_ns + 1))


def test_image_is_torn_when_it_was_written_to_since(tmp_path: Path, image: Path) -> None:
    notes = tmp_path / "deletions"
    note_of(image).save(notes)
    snapshot = Snapshot(name="one", creation_time=7)
    assert torn_disks(notes, _VM, snapshot) == frozenset()
    write(image)
    assert torn_disks(notes, _VM, snapshot) == {"vda"}
    assert torn_disks(notes, _VM, replace(snapshot, creation_time=8)) == frozenset()  # a later one of the name
    assert torn_disks(notes, _VM, replace(snapshot, name="two")) == frozenset()
    assert (notes.stat().st_mode & 0o777, len(list(notes.iterdir()))) == (0o700, 1)
    image.unlink()
    assert torn_disks(notes, _VM, snapshot) == frozenset()  # health says that it is gone


def test_note_of_a_deletion_that_harmed_something_outlives_the_next_attempt(tmp_path: Path, image: Path) -> None:
    notes = tmp_path / "deletions"
    note_of(image).save(notes)
    write(image)
    note_of(image).save(notes)
    (kept,) = deletion_notes(notes, _VM)
    assert kept.torn == {"vda"}


def test_device_counts_as_written_and_what_is_no_note_is_none(tmp_path: Path, image: Path) -> None:
    notes = tmp_path / "deletions"
    device = replace(note_of(image, snapshot="../of a device"), images=(NotedImage("vdb", str(image), 0),))
    device.save(notes)
    assert torn_disks(notes, _VM, Snapshot(name="../of a device", creation_time=7)) == {"vdb"}
    (path,) = notes.iterdir()
    for content in (b"", b"[]", b'{"images": 3}', b'{"images": [{"x": 1}]}', b"\xff"):
        path.write_bytes(content)
        assert deletion_notes(notes, _VM) == ()
