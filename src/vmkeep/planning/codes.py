"""The words of a plan. They are public: they stand in JSON, in points and in docs/operations.md."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """How a disk is read for a point."""

    FULL = "full"
    """Whole, although it can have a bitmap; the next point can be incremental."""
    INCREMENTAL = "incremental"
    """What was written since the base."""
    SCAN = "scan"
    """Whole, of a disk that gets no bitmap; unchanged blocks are recognised and not stored again."""


class Reason(StrEnum):
    """Why a disk is read in its mode."""

    INCREMENTAL = "incremental"
    """Its base is sound."""
    NO_BASE = "no-base"
    """The VM has no point yet that another one can start from."""
    FORCED = "forced"
    """A full point was asked for."""
    NEW_DISK = "new-disk"
    """The base has no such disk."""
    SOURCE_CHANGED = "source-changed"
    """The disk is another file or device than at the base."""
    EXTERNAL_SNAPSHOT = "external-snapshot"
    """The disk is an overlay now, and the image that it was at the base is in its backing chain."""
    FORMAT_CHANGED = "format-changed"
    """The disk is of another image format than at the base."""
    SIZE_CHANGED = "size-changed"
    """The disk was grown or shrunk since the base."""
    CHECKPOINT_LOST = "checkpoint-lost"
    """libvirt does not list the checkpoint of the base, and it could not be defined again."""
    QEMU_KILLED = "qemu-killed"
    """QEMU was killed or crashed, and with it the bitmap."""
    BITMAP_MISSING = "bitmap-missing"
    """The image holds no bitmap of the base's checkpoint."""
    BITMAP_INCONSISTENT = "bitmap-inconsistent"
    """The image was not closed properly while the bitmap recorded, so the bitmap may lack writes."""
    BITMAP_NOT_RECORDING = "bitmap-not-recording"
    """Somebody disabled the bitmap, so it lacks writes."""
    BITMAP_UNFITTING = "bitmap-unfitting"
    """The bitmap's size or granularity does not fit the disk."""
    BITMAP_GAP = "bitmap-gap"
    """The bitmap is not in the top image, or not in every image of the chain since it was made."""
    BITMAP_UNKNOWN = "bitmap-unknown"
    """Nobody could say how the bitmap is; it is not trusted."""
    BASE_MISMATCH = "base-mismatch"
    """A block that the bitmap calls unchanged is not what the base holds: the image was exchanged behind its bitmap."""
    SHAREABLE_DISK = "shareable-disk"
    """Other VMs may write to the disk, which no bitmap of this one sees; always read by scan."""
    TRANSIENT_DISK = "transient-disk"
    """What the guest writes is dropped when the VM stops, and libvirt makes no bitmap; always read by scan."""
    READ_ONLY_DISK = "read-only-disk"
    """libvirt makes no bitmap of a disk that the guest cannot write to; always read by scan."""
    NO_BITMAPS = "no-bitmaps"
    """The disk cannot hold a bitmap: its format, its bus, or a LUN passed through; always read by scan."""


class BitmapHealth(StrEnum):
    """The bitmap of a base's checkpoint in one disk."""

    SOUND = "sound"
    """It is in the whole chain, consistent, and records."""
    MISSING = "missing"
    """No image of the chain holds it."""
    INCONSISTENT = "inconsistent"
    """Its in-use flag is set although nobody has the image open."""
    NOT_RECORDING = "not-recording"
    """It is disabled."""
    UNFITTING = "unfitting"
    """Its size or granularity does not fit the disk."""
    GAP = "gap"
    """It is not in the top image, or an image between two that hold it lacks it."""
    UNKNOWN = "unknown"
    """It could not be looked at."""


class KeyState(StrEnum):
    """Whether the image of an encrypted disk can be opened while its VM is off."""

    KNOWN = "known"
    """libvirt tells the value of its secret, or QEMU has the image open and need not be asked."""
    MISSING = "missing"
    """libvirt does not have the secret, or no value for it."""
    PRIVATE = "private"
    """libvirt keeps the value to itself."""
    UNUSABLE = "unusable"
    """The encryption is not one that QEMU does with LUKS and one passphrase."""


class ExclusionReason(StrEnum):
    """Why a disk or drive is not in the point."""

    REQUESTED = "requested"
    """It was excluded by name."""
    SETTINGS = "settings"
    """The settings of the VM exclude it for good."""
    REMOVABLE_MEDIA = "removable-media"
    """A drive for CDs or floppies; its medium is no state of the VM."""
    NO_MEDIUM = "no-medium"
    """A drive with nothing in it."""
    OPTIONAL_MISSING = "optional-missing"
    """The image is not there, and libvirt starts the VM without the disk then (startupPolicy optional)."""


class RefusalCode(StrEnum):
    """Why no point is made; each is the code of one of vmkeep's errors."""

    DISK_UNSUPPORTED = "disk-unsupported"
    """A disk that cannot be read right, or not at present."""
    HEADER_REFUSED = "header-refused"
    """An image names a file that may not be followed."""
    INVALID_REQUEST = "invalid-request"
    """The request names a disk that the VM has not."""
    NO_SPACE = "no-space"
    """The guest would see an error if its scratch ran out."""
    SECRET_MISSING = "secret-missing"  # noqa: S105  a code, not a password
    """libvirt does not have the secret of an encrypted disk, and the VM is off."""
    SECRET_PRIVATE = "secret-private"  # noqa: S105  a code, not a password
    """libvirt does not tell the secret of an encrypted disk, and the VM is off."""


class WarningCode(StrEnum):
    """What a user should know of a point that is made all the same."""

    SHAREABLE_DISK = "shareable-disk"
    """Another VM may write to the disk while it is read."""
    TRANSIENT_DISK = "transient-disk"
    """What the guest wrote to the disk since it was started is not in the point."""
    ENCRYPTED_DISK = "encrypted-disk"
    """The point does not hold the secret that the disk is encrypted with on the host."""
    OPTIONAL_MISSING = "optional-missing"
    """A disk that libvirt drops at a start without its image is not in the point, because the image is not there."""
    NO_DISKS = "no-disks"
    """The VM has disks and the point holds none of them."""
