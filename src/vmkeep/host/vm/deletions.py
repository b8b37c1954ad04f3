"""Which deletions of external snapshots were begun and did not end: the image of each may hold a mixture since.

To delete an external snapshot libvirt has QEMU write its overlay into the image below, which held the state of the
snapshot until then. When QEMU or libvirtd is killed meanwhile, libvirt lists the snapshot as before and marks nothing
in the first of a line of snapshots (11.3, tried), so a revert would bring the mixture. So a note is made before, and
goes when libvirt is done. An image that nobody has written to since then still holds the state: what libvirt refused
has harmed nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from vmkeep.commandline import command_line
from vmkeep.definition import DefinitionError, SourceKind, parse_definition
from vmkeep.errors import DiskUnsupported, HypervisorError, HypervisorUnavailable, SnapshotNeeded
from vmkeep.filesystem import file_errors, replace_file, sync_directory
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.hypervisor import Domain, DomainSnapshots, Hypervisor, snapshots_of
from vmkeep.moments import MomentError, Snapshot, SnapshotLocation, parse_snapshot
from vmkeep.planning.snapshot_health import merged_into
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class NotedImage:
    """An image with the state of a disk, and when it was written last before the deletion (0 for a device)."""

    target: str
    path: str
    written_ns: int

    def was_written(self) -> bool:
        """Tell whether it may have been written to since. One that is gone holds no mixture."""
        with suppress(OSError):
            return self.written_ns == 0 or os.stat(self.path).st_mtime_ns != self.written_ns  # noqa: PTH116
        return False


@dataclass(frozen=True, slots=True)
class DeletionNote:
    """A deletion that was begun. libvirt has one snapshot of a name at a time; a later one has another time."""

    vm_uuid: str
    snapshot: str
    creation_time: int | None
    images: tuple[NotedImage, ...]

    @classmethod
    def of(cls, domain: Domain, hypervisor: Hypervisor, xml: str) -> DeletionNote | None:
        """Return what to note before libvirt deletes a snapshot; None where that writes to no image below."""
        try:
            snapshot = parse_snapshot(xml, redefine=True)
            then = with_volumes_found(parse_definition(snapshot.domain or ""), hypervisor)
        except (MomentError, DefinitionError):
            return None  # and libvirt does not know which images those are
        outside = {disk.name for disk in snapshot.disks if disk.location is SnapshotLocation.EXTERNAL}
        images = [
            NotedImage(disk.target, disk.source, _written_ns(disk.source, disk.source_kind))
            for disk in then.disks
            if disk.target in outside and disk.source is not None
        ]
        return cls(domain.uuid, str(snapshot.name), snapshot.creation_time, tuple(images)) if images else None

    @property
    def torn(self) -> frozenset[str]:
        """The disks whose image was written to since."""
        return frozenset(image.target for image in self.images if image.was_written())

    def earlier(self, directory: Path) -> DeletionNote | None:
        """Return the note of an earlier attempt at this deletion that has harmed something."""
        there = _load(_place(directory, self.vm_uuid, self.snapshot))
        return there if there is not None and there.creation_time == self.creation_time and there.torn else None

    def save(self, directory: Path) -> None:
        """Write the note, durably, unless an earlier attempt has harmed something: what that says stays true."""
        path = _place(directory, self.vm_uuid, self.snapshot)
        if self.earlier(directory) is None:
            with file_errors(path):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_file(path, json.dumps(asdict(self)).encode())


@contextmanager
def noted_deletion(
    directory: Path, domain: Domain, hypervisor: Hypervisor, name: str, *, merges: bool
) -> Iterator[None]:
    """Note that a snapshot is deleted in the block, as long as it is not; ``merges`` as false: its record alone is."""
    note = DeletionNote.of(domain, hypervisor, snapshots_of(domain).definition(name, secure=True)) if merges else None
    harmed = note is not None and note.earlier(directory) is not None
    if note is not None:
        note.save(directory)
    try:
        yield
    except HypervisorUnavailable:
        raise  # libvirt may still be at it
    except (HypervisorError, SnapshotNeeded) as error:
        # Refused by name is refused before anything was written; else the images tell.
        if note is not None and not harmed and (isinstance(error, SnapshotNeeded) or not note.torn):
            _forget(directory, domain.uuid, name)
        raise
    _forget(directory, domain.uuid, name)
    listed = DomainSnapshots(domain).names()
    for other in deletion_notes(directory, domain.uuid):
        if other.snapshot not in listed:  # libvirt went on after the death of who asked
            _forget(directory, domain.uuid, other.snapshot)


def deletion_notes(directory: Path, vm_uuid: str) -> tuple[DeletionNote, ...]:
    """Return the notes of a VM."""
    notes = (_load(path) for path in sorted(directory.glob(f"{vm_uuid}-*.json")))
    return tuple(note for note in notes if note is not None)


def _forget(directory: Path, vm_uuid: str, snapshot: str) -> None:
    path = _place(directory, vm_uuid, snapshot)
    if path.exists():
        with file_errors(path):
            path.unlink()
            sync_directory(directory)


def torn_disks(directory: Path, vm_uuid: str, snapshot: Snapshot) -> frozenset[str]:
    """Return the disks of a snapshot that an unfinished deletion has written to."""
    note = _load(_place(directory, vm_uuid, str(snapshot.name)))
    return note.torn if note is not None and note.creation_time == snapshot.creation_time else frozenset()


def refuse_torn(directory: Path, domain: Domain, xml: str) -> None:
    """Raise DiskUnsupported for a snapshot whose deletion was begun, by whomever, and has written to an image of it."""
    try:
        snapshot = parse_snapshot(xml, redefine=True)
        then = parse_definition(snapshot.domain or "")
    except (MomentError, DefinitionError):
        return  # told by whoever needs it
    unfinished = merged_into(domain.snapshots())
    outside = {disk.name for disk in snapshot.disks if disk.location is SnapshotLocation.EXTERNAL}
    marked = {disk.target for disk in then.disks if disk.target in outside and disk.source in unfinished}
    torn = sorted(marked | torn_disks(directory, domain.uuid, snapshot))
    if torn:
        name, vm = str(snapshot.name), domain.name
        raise DiskUnsupported(
            f"the deletion of snapshot {name!r} was begun and did not end, so what it kept of disk {', '.join(torn)} "
            "is overwritten in part",
            vm=vm,
            disk=torn[0],
            hint=f"Only its deletion can go on: `{command_line('vmkeep snapshot delete', vm, name)}`.",
        )


def _written_ns(path: str, kind: SourceKind) -> int:
    if kind is SourceKind.FILE:
        with suppress(OSError):
            return os.stat(path).st_mtime_ns  # noqa: PTH116
    return 0


def _place(directory: Path, vm_uuid: str, snapshot: str) -> Path:
    return directory / f"{vm_uuid}-{hashlib.sha256(snapshot.encode(errors='surrogateescape')).hexdigest()[:32]}.json"


def _load(path: Path) -> DeletionNote | None:
    try:
        value: Mapping[str, object] = json.loads(path.read_bytes())
        images = tuple(NotedImage(**image) for image in value["images"])  # type: ignore[attr-defined]
        return DeletionNote(**{**value, "images": images})  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never half-written: it is not there, or no note
