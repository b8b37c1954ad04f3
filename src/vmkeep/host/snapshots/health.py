"""The snapshots of a VM looked at: the I/O around ``snapshot_health``. Nothing is changed, and no lock is taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vmkeep.config import Settings
from vmkeep.definition import DefinedDisk, DefinitionError, SourceKind, parse_definition
from vmkeep.errors import HostFileMissing, VmkeepError
from vmkeep.host.vm.definition import definition_of, with_volumes_found
from vmkeep.host.vm.deletions import torn_disks
from vmkeep.host.vm.images import describe_chains
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.moments import Snapshot, SnapshotLocation
from vmkeep.planning.bitmaps import Chain
from vmkeep.planning.snapshot_health import SnapshotFacts, SnapshotHealth, Unread, judge_snapshots
from vmkeep.transfer.imagefile import describe_image
from vmkeep.transfer.imagelock import writer_of

_LOCAL: Final = (SourceKind.FILE, SourceKind.BLOCK)


def look_at_snapshots(domain: Domain, hypervisor: Hypervisor, settings: Settings) -> tuple[SnapshotHealth, ...]:
    """Return the health of a VM's snapshots."""
    snapshots = domain.snapshots()
    stopped = domain.state().run is RunState.OFF
    present, _ = describe_chains(definition_of(domain, hypervisor))
    then = {str(snapshot.name): _disks_then(snapshot, hypervisor) for snapshot in snapshots}
    formats: dict[str, str] = {}
    for snapshot in snapshots:
        overlays = (*snapshot.disks, *snapshot.revert_disks)
        formats |= {disk.source: disk.format or "qcow2" for disk in overlays if disk.source is not None}
        formats |= {str(disk.source): disk.image_format for disk in then[str(snapshot.name)].values()}
    named = {path for snapshot in snapshots for path in _named(snapshot, then[str(snapshot.name)])}
    memory = {snapshot.memory.file for snapshot in snapshots if snapshot.memory.file is not None}
    facts = SnapshotFacts(
        snapshots=snapshots,
        sources={name: {target: str(disk.source) for target, disk in disks.items()} for name, disks in then.items()},
        present=present,
        images={path: _image(path, formats[path], stopped=stopped) for path in named},
        memory={path: _size(path) for path in memory},
        torn={str(snapshot.name): torn_disks(settings.deletions_dir, domain.uuid, snapshot) for snapshot in snapshots},
    )
    return judge_snapshots(facts)


def _disks_then(snapshot: Snapshot, hypervisor: Hypervisor) -> Mapping[str, DefinedDisk]:
    """Return the disks that are files or devices, as the VM had them when the snapshot was made."""
    if snapshot.domain is None:
        return {}
    try:
        definition = with_volumes_found(parse_definition(snapshot.domain), hypervisor)
    except DefinitionError:
        return {}
    return {disk.target: disk for disk in definition.disks if disk.source_kind in _LOCAL and disk.source is not None}


def _named(snapshot: Snapshot, then: Mapping[str, DefinedDisk]) -> set[str]:
    """Return the images that a snapshot needs: the disks of then, and the overlays on them."""
    kept = [disk for disk in snapshot.disks if disk.location in (SnapshotLocation.INTERNAL, SnapshotLocation.EXTERNAL)]
    paths = {then[disk.name].source for disk in kept if disk.name in then}
    paths |= {disk.source for disk in (*kept, *snapshot.revert_disks) if disk.source_type in _LOCAL}
    return {path for path in paths if path is not None}


def _image(path: str, image_format: str, *, stopped: bool) -> Chain | Unread:
    if stopped and (writer := writer_of(path)) is not None:
        return Unread(f"{writer} has {path} open")
    try:
        return describe_image(path, image_format)
    except HostFileMissing as error:
        return Unread(error.message, absent=True)
    except VmkeepError as error:
        return Unread(error.message)


def _size(path: str) -> int | Unread:
    try:
        return Path(path).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return Unread(f"{path} is not there", absent=True)
    except OSError as error:
        return Unread(f"{path} cannot be looked at: {error.strerror}")
