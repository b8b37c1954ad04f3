"""Which disks of a domain take part in a checkpoint or backup, and how.

The rules and the order of the checks are libvirt 9.0's (formatcheckpoint, formatbackup; probed). Not here are
the rules of its QEMU driver (qcow2 only, bitmap named as the checkpoint): they depend on the running VM.
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
