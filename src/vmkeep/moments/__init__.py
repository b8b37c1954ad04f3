"""libvirt's checkpoints and backup definitions as values, read from and written to libvirt's XML.

The rules are those of libvirt 9.0, probed on its test driver. Snapshots, the tree of moments and its filters
join the same base class here.
"""

from __future__ import annotations

from vmkeep.moments.alignment import align_backup, align_checkpoint
from vmkeep.moments.backups import format_backup, luks_content, parse_backup
from vmkeep.moments.checkpoints import format_checkpoint, parse_checkpoint
from vmkeep.moments.disks import DomainDisk, domain_disks
from vmkeep.moments.errors import LibvirtError, MomentError
from vmkeep.moments.model import (
    Backup,
    BackupDisk,
    BackupDiskMode,
    BackupMode,
    BackupServer,
    Checkpoint,
    CheckpointDisk,
    CheckpointType,
    Moment,
    ServerTransport,
    StoreType,
)

__all__ = [
    "Backup",
    "BackupDisk",
    "BackupDiskMode",
    "BackupMode",
    "BackupServer",
    "Checkpoint",
    "CheckpointDisk",
    "CheckpointType",
    "DomainDisk",
    "LibvirtError",
    "Moment",
    "MomentError",
    "ServerTransport",
    "StoreType",
    "align_backup",
    "align_checkpoint",
    "domain_disks",
    "format_backup",
    "format_checkpoint",
    "luks_content",
    "parse_backup",
    "parse_checkpoint",
]
