"""What a plan is made from, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from types import MappingProxyType

from vmkeep.planning.codes import BitmapHealth, ExclusionReason, KeyState, Mode, Reason, RefusalCode, WarningCode
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannableDisk:
    """A disk or drive as the plan sees it; words as in libvirt's XML.

    ``source_kind`` is file, block, network, volume (one whose pool could not be asked), none (no medium) or
    another word, which is told to the user. ``backing_chain`` lists the images below the top one, nearest first.
    ``holds_bitmaps`` is False for a qcow2 image of version 2 (``compat=0.10``), in which QEMU stores none.
    ``secret`` names the libvirt secret of an encrypted disk, ``key`` is whether its value can be had, and
    ``encrypted_below`` whether an image below the top one is encrypted. ``chain_fault`` says how the images below the
    top one differ from those that a start of the VM would put there, None where they do not. ``image_fault`` says why
    the image could not be looked at, and ``header_refused`` that it names a file which may not be followed, for which
    ``image_remedy`` says what to do.
    ``size_bytes`` is the virtual size, None where it is not known. ``free_scratch_bytes`` is the space the disk's
    scratch can have, None where that was not measured, and ``scratch_device`` the number of its file system.
    ``corrupt`` names the image of the disk that QEMU marked as corrupt, ``file_id`` tells its top image from others,
    and ``optional`` is whether the VM starts without the disk when its image is missing, as ``missing`` says it is.
    ``in_io_thread``: QEMU serves the disk outside of its main thread. ``deadly_to_resume``: QEMU dies when the VM is
    resumed while a job has the disk.
    """

    target: str
    device: str = "disk"
    bus: str | None = None
    source_kind: str = "file"
    source: str | None = None
    format: str | None = None
    backing_chain: tuple[str, ...] = ()
    holds_bitmaps: bool = True
    readonly: bool = False
    shareable: bool = False
    transient: bool = False
    encrypted: bool = False
    secret: str | None = None
    key: KeyState = KeyState.KNOWN
    encrypted_below: bool = False
    chain_fault: str | None = None
    image_fault: str | None = None
    image_remedy: str | None = None
    header_refused: bool = False
    size_bytes: int | None = None
    error_policy: str | None = None
    free_scratch_bytes: int | None = None
    scratch_device: int | None = None
    corrupt: str | None = None
    file_id: tuple[int, int] | None = None
    optional: bool = False
    missing: bool = False
    in_io_thread: bool = False
    deadly_to_resume: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseDisk:
    """A disk as it was when the base was made; ``bitmap`` is False if the base's point made no bitmap of it."""

    source: str
    size_bytes: int
    format: str = "qcow2"
    bitmap: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A point to start from, the checkpoint that belongs to it, and its disks by target.

    ``listed`` is whether libvirt lists the checkpoint, or lists it again after it was redefined; that is asked for
    a stopped VM too. ``bitmaps`` is the health of the checkpoint's bitmap by target, and a target that is not in
    it counts as unknown.
    """

    point_id: str
    checkpoint: str
    listed: bool
    disks: Mapping[str, BaseDisk]
    bitmaps: Mapping[str, BitmapHealth] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRequest:
    """All that a plan is made from.

    ``exclude`` are disks that the request names, ``never`` those that the VM's settings leave out of every point, also
    targets that it has not. ``bases`` are the newest first. ``killed`` is whether the VM is off because its QEMU died
    (libvirt: shut off, crashed), which explains bitmaps that are lost. ``vm`` is for the messages.
    """

    vm: str
    running: bool
    disks: tuple[PlannableDisk, ...]
    bases: tuple[Base, ...] = ()
    force_full: bool = False
    exclude: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    killed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """How one disk is read.

    ``bitmap`` is whether a new bitmap is made in the disk; never in mode scan, else unless that fails. ``from_image``
    is whether the disk is read from its image and not through a backup job of the running VM: all disks of a stopped
    VM, and the transient ones of a running VM, on which libvirt begins no job. The image of those is the one below
    the overlay that the VM has open. ``base_point`` and ``base_checkpoint`` are set when, and only when, the mode
    is incremental. ``scratch_bytes`` is what its scratch must be able to grow to at any time, because QEMU would not
    stop the guest when there is no room left; None where it would.
    """

    target: str
    mode: Mode
    reason: Reason
    detail: str
    bitmap: bool
    from_image: bool
    base_point: str | None = None
    base_checkpoint: str | None = None
    scratch_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A disk or drive that the point will not hold."""

    target: str
    reason: ExclusionReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """A warning about one disk; ``target`` is None when it concerns the whole VM."""

    code: WarningCode
    target: str | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One reason why no point is made; ``target`` is the disk, also one that the VM has not.

    ``hint`` is what to do, a sentence. ``leave_out``: or the disk is left out by name.
    """

    code: RefusalCode
    target: str
    message: str
    hint: str = ""
    leave_out: bool = False


def hint_of(refusals: Sequence[Refusal], *, excludable: bool = True) -> str:
    """Return what to do about all of them, each thing once. ``excludable``: the caller can leave disks out by name."""
    hints = [hint for hint in dict.fromkeys(refused.hint for refused in refusals) if hint]
    left_out = [f"--exclude {refused.target}" for refused in refusals if refused.leave_out and excludable]
    if left_out:
        it, lacks = ("it", "it lacks it") if len(left_out) == 1 else ("them", "it lacks them")
        hints.append(
            f"{'Or leave' if hints else 'Leave'} {it} out by name with {' '.join(left_out)}; the point then says that "
            f"{lacks}."
        )
    return " ".join(hints)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointPlan:
    """What the point will read. Every disk of the VM is in ``disks`` or in ``excluded``.

    ``disks`` is empty for a VM without any disk to read: its point holds the definition and the state files.
    """

    disks: tuple[DiskPlan, ...]
    excluded: tuple[Exclusion, ...]
    warnings: tuple[Warned, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """No point is made: every reason, so that a user can mend all of them at once."""

    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class KnownDisk:
    """A disk as an earlier point recorded it. ``bitmap``: it was given one then."""

    target: str
    source: str
    size_bytes: int
    format: str
    bitmap: bool = True


@dataclass(frozen=True, slots=True)
class KnownPoint:
    """An earlier point of the VM, which may serve as base, and its disks.

    ``created`` (ISO 8601) and ``parent`` are what its checkpoint is defined from again; empty and None: not known.
    ``sequence`` is its order number (``vmkeep.planning.order``), None for one of an older release.
    """

    point_id: str
    disks: tuple[KnownDisk, ...]
    created: str = ""
    parent: str | None = None
    sequence: int | None = None
