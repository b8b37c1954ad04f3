"""The repository: keyring, blocks, packs, manifests, points, verify. See docs/internals/repository-format.md."""

from __future__ import annotations

from vmkeep.repository.answers import Unanswered, unanswered
from vmkeep.repository.deletions import (
    DeletedFile,
    DeletedSecret,
    DeletionEvent,
    DeletionRecord,
    KeptVersion,
    Renewal,
    SecretHolder,
)
from vmkeep.repository.envelopes import PointSecret
from vmkeep.repository.pins import PinnedSnapshot, PinRecord
from vmkeep.repository.record import (
    BLOCK_BYTES,
    BlockRef,
    ExcludedDisk,
    PointDisk,
    PointRecord,
    SecretRef,
    StateRef,
    StateVersion,
    StoredDisk,
)
from vmkeep.repository.reports import Finding, PointReport, RepositoryReport
from vmkeep.repository.repository import Repository
from vmkeep.repository.writer import DiskWriter, PointWriter

__all__ = [
    "BLOCK_BYTES",
    "BlockRef",
    "DeletedFile",
    "DeletedSecret",
    "DeletionEvent",
    "DeletionRecord",
    "DiskWriter",
    "ExcludedDisk",
    "Finding",
    "KeptVersion",
    "PinRecord",
    "PinnedSnapshot",
    "PointDisk",
    "PointRecord",
    "PointReport",
    "PointSecret",
    "PointWriter",
    "Renewal",
    "Repository",
    "RepositoryReport",
    "SecretHolder",
    "SecretRef",
    "StateRef",
    "StateVersion",
    "StoredDisk",
    "Unanswered",
    "unanswered",
]
