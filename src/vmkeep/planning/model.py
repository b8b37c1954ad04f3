"""What a plan is made from, and what it says. The codes are public: they stand in JSON and in points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Mode(StrEnum):
    """How a disk is read for a point."""

    FULL = "full"
    """Whole."""
    INCREMENTAL = "incremental"
    """What was written since the base."""
    SCAN = "scan"
    """Whole, of a disk that can have no bitmap; unchanged blocks are recognised. Not in this release."""


class Reason(StrEnum):
    """Why a disk is read in its mode."""

    INCREMENTAL = "incremental"
    """Its base is sound."""
    NO_BASE = "no-base"
    """The VM has no point yet that another one can start from."""
    FORCED = "forced"
    """A full point was asked for."""
    SHAREABLE_DISK = "shareable-disk"
    """Other VMs may write to the disk, which its bitmap does not see."""
    NEW_DISK = "new-disk"
    """The base has no such disk."""
    SOURCE_CHANGED = "source-changed"
    """The disk is another file than at the base."""
    FORMAT_CHANGED = "format-changed"
    """The disk is of another image format than at the base."""
    SIZE_CHANGED = "size-changed"
    """The disk was grown or shrunk since the base."""
    CHECKPOINT_LOST = "checkpoint-lost"
    """libvirt does not list the checkpoint of the base."""
    BITMAP_MISSING = "bitmap-missing"
    """The image holds no bitmap of the base's checkpoint."""
    BITMAP_BROKEN = "bitmap-broken"
    """The bitmap is inconsistent, does not record, or has a gap in the chain of images."""
    BITMAP_UNKNOWN = "bitmap-unknown"
    """The hypervisor could not say how the bitmap is; it is not trusted."""


class BitmapHealth(StrEnum):
    """The bitmap of the base's checkpoint in one disk, as the hypervisor sees it."""

    SOUND = "sound"
    MISSING = "missing"
    BROKEN = "broken"
    UNKNOWN = "unknown"


class ExclusionReason(StrEnum):
    """Why a disk or drive is not in the point."""

    REQUESTED = "requested"
    """It was excluded by name."""
    REMOVABLE_MEDIA = "removable-media"
    """A drive for CDs or floppies; its medium is no state of the VM."""


class RefusalCode(StrEnum):
    """Why no point is made; each is the code of one of vmkeep's errors."""

    VM_NOT_RUNNING = "vm-not-running"
    DISK_UNSUPPORTED = "disk-unsupported"
    INVALID_REQUEST = "invalid-request"
    NO_SPACE = "no-space"


class WarningCode(StrEnum):
    """What a user should know of a point that is made all the same."""

    SHAREABLE_DISK = "shareable-disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannableDisk:
    """A disk or drive as the plan sees it; words as in libvirt's XML.

    ``source_kind`` is file, block, network, volume, none (no medium) or another word. ``size_bytes`` is the
    virtual size, None where it is not known. ``free_scratch_bytes`` is the space the disk's scratch can have,
    None where that was not measured.
    """

    target: str
    device: str = "disk"
    bus: str | None = None
    source_kind: str = "file"
    source: str | None = None
    format: str | None = None
    readonly: bool = False
    shareable: bool = False
    transient: bool = False
    encrypted: bool = False
    size_bytes: int | None = None
    error_policy: str | None = None
    free_scratch_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseDisk:
    """A disk as it was when the base was made."""

    source: str
    size_bytes: int
    format: str = "qcow2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The point to start from, the checkpoint that belongs to it, and its disks by target."""

    point_id: str
    checkpoint: str
    disks: Mapping[str, BaseDisk]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRequest:
    """All that a plan is made from.

    ``bitmaps`` is the health of the base's bitmap by target, a target not in it counts as unknown.
    ``checkpoint_listed`` is whether libvirt lists the base's checkpoint. ``vm`` is for the messages.
    """

    vm: str
    running: bool
    disks: tuple[PlannableDisk, ...]
    base: Base | None = None
    checkpoint_listed: bool = False
    bitmaps: Mapping[str, BitmapHealth] = field(default_factory=lambda: MappingProxyType({}))
    force_full: bool = False
    exclude: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """How one disk is read. ``base_checkpoint`` is set when, and only when, the mode is incremental."""

    target: str
    mode: Mode
    reason: Reason
    detail: str
    base_checkpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A disk or drive that the point will not hold."""

    target: str
    reason: ExclusionReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """A warning about one disk."""

    code: WarningCode
    target: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One reason why no point is made; ``target`` is None when it concerns the whole VM."""

    code: RefusalCode
    target: str | None
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PointPlan:
    """What the point will read. Every disk of the VM is in ``disks`` or in ``excluded``."""

    disks: tuple[DiskPlan, ...]
    excluded: tuple[Exclusion, ...]
    warnings: tuple[Warned, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """No point is made: every reason, so that a user can mend all of them at once."""

    refusals: tuple[Refusal, ...]
