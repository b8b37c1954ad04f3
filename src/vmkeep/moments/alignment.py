"""Which disks of a domain take part in a checkpoint, snapshot or backup, and how.

The rules and the order of the checks are libvirt 9.0's (formatcheckpoint, formatsnapshot, formatbackup; probed).
Not here are the rules of its QEMU driver (qcow2 only, bitmap named as the checkpoint): they depend on the running VM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vmkeep.moments.disks import DomainDisk, find_disk
from vmkeep.moments.errors import unsupported
from vmkeep.moments.model import (
    Backup,
    BackupDisk,
    BackupDiskMode,
    Checkpoint,
    CheckpointDisk,
    CheckpointType,
    Snapshot,
    SnapshotDisk,
    SnapshotLocation,
    StoreType,
)


def align_checkpoint(checkpoint: Checkpoint, disks: Sequence[DomainDisk]) -> Checkpoint:
    """Return the checkpoint with one entry per disk of the domain, in the domain's order.

    A disk that is not listed takes part when the list is empty and does not when it is not; empty and
    read-only disks take no part unasked, and cannot when asked. A bitmap is named as the checkpoint unless it
    has a name. Raises MomentError 67 when more disks are listed than the domain has, when the domain has none,
    and for a listed disk that does not exist, is listed twice (by target and by path is twice), is empty or is
    read-only.
    """
    if len(checkpoint.disks) > len(disks):
        raise unsupported("disks", "too many disk checkpoint requests for domain")
    if not disks:
        raise unsupported("disks", "domain must have at least one disk to perform checkpoints")
    listed: dict[str, CheckpointDisk] = {}
    for request in checkpoint.disks:
        disk = find_disk(request.name, disks)
        if disk.target in listed:
            raise unsupported(request.name, f"disk '{disk.target}' specified twice")
        kind = CheckpointType.BITMAP if request.type is CheckpointType.DEFAULT else request.type
        if kind is not CheckpointType.NO and (disk.empty or disk.readonly):
            state = "empty" if disk.empty else "read-only"
            raise unsupported(request.name, f"disk '{disk.target}' is {state} and cannot take part in a checkpoint")
        listed[disk.target] = replace(request, name=disk.target, type=kind)
    aligned = (
        listed.get(disk.target) or CheckpointDisk(disk.target, _unlisted_type(disk, anything_listed=bool(listed)))
        for disk in disks
    )
    return replace(checkpoint, disks=tuple(_with_bitmap_name(disk, checkpoint.name) for disk in aligned))


def _unlisted_type(disk: DomainDisk, *, anything_listed: bool) -> CheckpointType:
    takes_part = not anything_listed and not disk.empty and not disk.readonly
    return CheckpointType.BITMAP if takes_part else CheckpointType.NO


def _with_bitmap_name(disk: CheckpointDisk, checkpoint_name: str | None) -> CheckpointDisk:
    if disk.type is CheckpointType.BITMAP and disk.bitmap is None:
        return replace(disk, bitmap=checkpoint_name)
    return disk


def align_snapshot(
    snapshot: Snapshot, disks: Sequence[DomainDisk], *, default: SnapshotLocation | str, uniform: bool = False
) -> Snapshot:
    """Return the snapshot with one entry per disk of the domain, in the domain's order.

    A disk without a location takes the domain's wish for it, else ``default``; one that is not listed and empty
    takes no part. A domain without disks leaves the snapshot as it is. With ``uniform``, and ``internal`` as the
    default, all disks must be internal except those of which the domain says that they take no part. External
    disks without a path get their source's, its last suffix replaced by the snapshot's name. Raises MomentError
    67. Whether a source is a regular file, which libvirt looks at before it makes such a path, is for the
    caller to see. More than libvirt, which finds equal names only among the disks before: a path that is made
    must be the path of no other disk, listed or of the domain.
    """
    default = SnapshotLocation(default)
    required = default if uniform and default is SnapshotLocation.INTERNAL else None
    if len(snapshot.disks) > len(disks):
        raise unsupported("disks", "too many disk snapshot requests for domain")
    if not disks:
        return snapshot
    listed: dict[str, SnapshotDisk] = {}
    for request in snapshot.disks:
        disk = find_disk(request.name, disks)
        if disk.target in listed:
            raise unsupported(request.name, f"disk '{request.name}' specified twice")
        listed[disk.target] = _located(request, disk, default, required)
    aligned = [listed.get(disk.target) or _unlisted(disk, default) for disk in disks]
    return replace(snapshot, disks=_with_paths(aligned, disks, snapshot.name or ""))


def _located(
    request: SnapshotDisk, disk: DomainDisk, default: SnapshotLocation, required: SnapshotLocation | None
) -> SnapshotDisk:
    own, location = disk.snapshot_location, request.location
    if location is SnapshotLocation.DEFAULT:
        inherited = own is SnapshotLocation.NO or (required is None and own is not SnapshotLocation.DEFAULT)
        location = own if inherited else default
    elif required is not None and location is not required and {location, own} != {SnapshotLocation.NO}:
        raise unsupported(request.name, f"disk '{request.name}' must use snapshot mode '{required}'")
    if request.source is not None and location is not SnapshotLocation.EXTERNAL:
        raise unsupported(
            request.name, f"file '{request.source}' for disk '{request.name}' requires use of external snapshot mode"
        )
    return replace(request, name=disk.target, location=location)


def _unlisted(disk: DomainDisk, default: SnapshotLocation) -> SnapshotDisk:
    if disk.empty:
        return SnapshotDisk(disk.target, SnapshotLocation.NO)
    own = disk.snapshot_location
    return SnapshotDisk(disk.target, default if own is SnapshotLocation.DEFAULT else own)


def _with_paths(
    aligned: Sequence[SnapshotDisk], disks: Sequence[DomainDisk], snapshot_name: str
) -> tuple[SnapshotDisk, ...]:
    taken = {disk.source: disk.target for disk in disks if disk.source is not None}
    taken |= {request.source: request.name for request in aligned if request.source is not None}
    result: list[SnapshotDisk] = []
    for request, disk in zip(aligned, disks, strict=True):
        if request.location is SnapshotLocation.EXTERNAL and request.source is None:
            path = _made_path(request, disk, snapshot_name)
            if path in taken:
                raise unsupported(
                    disk.target,
                    f"cannot generate external snapshot name for disk '{disk.target}': "
                    f"collision with disk '{taken[path]}' at {path}; give it a <source>",
                )
            taken[path] = disk.target
            result.append(replace(request, source=path))
        else:
            result.append(request)
    return tuple(result)


def _made_path(request: SnapshotDisk, disk: DomainDisk, snapshot_name: str) -> str:
    refused = f"cannot generate external snapshot name for disk '{disk.target}'"
    if request.source_type != "file":
        raise unsupported(disk.target, f"{refused} on a '{request.source_type}' device; give it a <source>")
    if disk.source is None:
        raise unsupported(disk.target, f"{refused} without source; use snapshot='no'")
    if disk.source_type != "file":
        raise unsupported(disk.target, f"{refused}: its source is not a regular file; give it a <source>")
    directory, slash, file = disk.source.rpartition("/")
    stem, dot, _ = file.rpartition(".")
    return f"{directory}{slash}{stem if dot else file}.{snapshot_name}"


def align_backup(backup: Backup, disks: Sequence[DomainDisk], *, suffix: str) -> Backup:
    """Return the backup with one entry per disk of the domain: the listed ones first, in their order.

    Without a list all disks take part that have a medium and can be written; with one, the others do not. A
    store without a path gets the path of the disk's source, a dot and ``suffix`` (the name of the new
    checkpoint, or the time), for disks that are files. Each disk becomes incremental where it or the job names
    a checkpoint, and full elsewhere. Raises MomentError 67.
    """
    if not disks:
        raise unsupported("disks", "domain must have at least one disk to perform backup")
    aligned: dict[str, BackupDisk] = {}
    for request in backup.disks:
        disk = next((disk for disk in disks if disk.target == request.name), None)
        if disk is None:
            raise unsupported(request.name, f"no disk named '{request.name}'")
        if disk.target in aligned:
            raise unsupported(request.name, f"disk '{disk.target}' specified twice")
        aligned[disk.target] = _aligned(request, disk, backup, suffix)
    for disk in disks:
        if disk.target not in aligned:
            takes_part = not backup.disks and not disk.empty and not disk.readonly
            aligned[disk.target] = _aligned(BackupDisk(name=disk.target, backup=takes_part), disk, backup, suffix)
    return replace(backup, disks=tuple(aligned.values()))


def _aligned(request: BackupDisk, disk: DomainDisk, backup: Backup, suffix: str) -> BackupDisk:
    if not request.backup:
        return request
    incremental = request.incremental or backup.incremental
    if request.mode is BackupDiskMode.INCREMENTAL and incremental is None:
        raise unsupported(disk.target, f"incremental backup of disk '{disk.target}' names no checkpoint")
    if disk.empty:
        raise unsupported(disk.target, f"disk '{disk.target}' has no media")
    mode = request.mode or (BackupDiskMode.FULL if incremental is None else BackupDiskMode.INCREMENTAL)
    named = replace(
        request, mode=mode, incremental=incremental if mode is BackupDiskMode.INCREMENTAL else request.incremental
    )
    if request.store is not None:
        return replace(named, store_type=request.store_type or StoreType.FILE)
    if disk.source_type != "file":
        raise unsupported(disk.target, f"refusing to generate file name for disk '{disk.target}'")
    return replace(named, store_type=StoreType.FILE, store=f"{disk.source}.{suffix}")
