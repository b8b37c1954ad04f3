"""libvirt's checkpoints, snapshots and backup definitions as values, read from and written to XML, and their forest.

The rules are those of libvirt 9.0, probed on its test driver (docs/internals/moments.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.deferral import shown

if TYPE_CHECKING:
    from vmkeep.moments.alignment import align_backup, align_checkpoint, align_snapshot
    from vmkeep.moments.backups import format_backup, luks_content, parse_backup
    from vmkeep.moments.bundle import (
        BundledMoment,
        BundleError,
        BundleSignature,
        MomentBundle,
        format_bundle,
        parse_bundle,
    )
    from vmkeep.moments.checkpoints import format_checkpoint, parse_checkpoint
    from vmkeep.moments.disks import DomainDisk, domain_disks
    from vmkeep.moments.documents import AnyMoment, format_moment, parse_moment, redefinable, with_domain_kept
    from vmkeep.moments.drawing import draw_tree
    from vmkeep.moments.errors import LibvirtError, MomentError
    from vmkeep.moments.filters import MomentFilter, select
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
        Snapshot,
        SnapshotDisk,
        SnapshotLocation,
        SnapshotMemory,
        SnapshotState,
        StoreType,
    )
    from vmkeep.moments.snapshots import format_snapshot, parse_snapshot
    from vmkeep.moments.tree import (
        BrokenRelations,
        DeleteMode,
        Deletion,
        MissingParent,
        MomentKind,
        MomentTree,
        name_order,
    )
else:
    __getattr__ = shown(
        __name__,
        {
            "alignment": "align_backup align_checkpoint align_snapshot",
            "backups": "format_backup luks_content parse_backup",
            "bundle": "BundledMoment BundleError BundleSignature MomentBundle format_bundle parse_bundle",
            "checkpoints": "format_checkpoint parse_checkpoint",
            "disks": "DomainDisk domain_disks",
            "documents": "AnyMoment format_moment parse_moment redefinable with_domain_kept",
            "drawing": "draw_tree",
            "errors": "LibvirtError MomentError",
            "filters": "MomentFilter select",
            "model": "Backup BackupDisk BackupDiskMode BackupMode BackupServer Checkpoint CheckpointDisk "
            "CheckpointType Moment ServerTransport Snapshot SnapshotDisk SnapshotLocation SnapshotMemory "
            "SnapshotState StoreType",
            "snapshots": "format_snapshot parse_snapshot",
            "tree": "BrokenRelations DeleteMode Deletion MissingParent MomentKind MomentTree name_order",
        },
    )

__all__ = [
    "AnyMoment",
    "Backup",
    "BackupDisk",
    "BackupDiskMode",
    "BackupMode",
    "BackupServer",
    "BrokenRelations",
    "BundleError",
    "BundleSignature",
    "BundledMoment",
    "Checkpoint",
    "CheckpointDisk",
    "CheckpointType",
    "DeleteMode",
    "Deletion",
    "DomainDisk",
    "LibvirtError",
    "MissingParent",
    "Moment",
    "MomentBundle",
    "MomentError",
    "MomentFilter",
    "MomentKind",
    "MomentTree",
    "ServerTransport",
    "Snapshot",
    "SnapshotDisk",
    "SnapshotLocation",
    "SnapshotMemory",
    "SnapshotState",
    "StoreType",
    "align_backup",
    "align_checkpoint",
    "align_snapshot",
    "domain_disks",
    "draw_tree",
    "format_backup",
    "format_bundle",
    "format_checkpoint",
    "format_moment",
    "format_snapshot",
    "luks_content",
    "name_order",
    "parse_backup",
    "parse_bundle",
    "parse_checkpoint",
    "parse_moment",
    "parse_snapshot",
    "redefinable",
    "select",
    "with_domain_kept",
]
