"""The plan of a point of a running VM.

The first question to each disk is whether it can be in the point at all: what this release cannot read right is
refused by name, never left out. The second is whether its base can be trusted; where it cannot, that disk is
read whole by itself and the others stay incremental. Sources of the limits: libvirt's QEMU driver (qcow2 only,
no bus sd, no transient and no vhost-user disk in a checkpoint) and what was seen of QEMU's scratch files.
"""

from __future__ import annotations

from typing import Final

from vmkeep.planning.model import (
    Base,
    BitmapHealth,
    DiskPlan,
    Exclusion,
    ExclusionReason,
    Mode,
    PlannableDisk,
    PointPlan,
    PointRequest,
    Reason,
    Refusal,
    RefusalCode,
    Refused,
    Warned,
    WarningCode,
)

_REMOVABLE: Final = frozenset({"cdrom", "floppy"})
_BITMAP_REASONS: Final = {
    BitmapHealth.MISSING: (Reason.BITMAP_MISSING, "the image has no bitmap of checkpoint {}"),
    BitmapHealth.BROKEN: (Reason.BITMAP_BROKEN, "the bitmap of checkpoint {} cannot be trusted"),
    BitmapHealth.UNKNOWN: (Reason.BITMAP_UNKNOWN, "nothing is known of the bitmap of checkpoint {}"),
}


def plan_point(request: PointRequest) -> PointPlan | Refused:
    """Return what the point will read, or every reason why none can be made.

    Drives for removable media are no part of a point and are named as excluded. Disks excluded by name are
    checked for nothing. Every other disk is either read or the cause of a refusal.
    """
    refusals = [*_refuse_request(request)]
    plans: list[DiskPlan] = []
    excluded: list[Exclusion] = []
    warnings: list[Warned] = []
    for disk in request.disks:
        exclusion = _exclusion(disk, request)
        if exclusion is not None:
            excluded.append(exclusion)
            continue
        refusal = _refuse_disk(disk)
        if refusal is not None:
            refusals.append(refusal)
            continue
        plans.append(_plan_disk(disk, request))
        if disk.shareable:
            warnings.append(_warn_of_sharing(disk))
    if not plans and not refusals:
        refusals.append(_nothing_to_read(request))
    if refusals:
        return Refused(refusals=tuple(refusals))
    return PointPlan(disks=tuple(plans), excluded=tuple(excluded), warnings=tuple(warnings))


def _exclusion(disk: PlannableDisk, request: PointRequest) -> Exclusion | None:
    if disk.target in request.exclude:
        return Exclusion(target=disk.target, reason=ExclusionReason.REQUESTED)
    if disk.device in _REMOVABLE:
        return Exclusion(target=disk.target, reason=ExclusionReason.REMOVABLE_MEDIA)
    return None


def _refuse_request(request: PointRequest) -> list[Refusal]:
    """Return what is wrong with the request or the VM as a whole."""
    refusals: list[Refusal] = []
    if not request.running:
        refusals.append(
            Refusal(
                code=RefusalCode.VM_NOT_RUNNING,
                target=None,
                message=f"{request.vm} is not running, and this release makes points of running VMs only",
                hint="Start the VM and run the command again.",
            )
        )
    known = [disk.target for disk in request.disks]
    refusals.extend(
        Refusal(
            code=RefusalCode.INVALID_REQUEST,
            target=target,
            message=f"{request.vm} has no disk {target!r} to exclude",
            hint=f"Its disks are {', '.join(known)}." if known else "It has no disks.",
        )
        for target in sorted(request.exclude - set(known))
    )
    return refusals


def _nothing_to_read(request: PointRequest) -> Refusal:
    return Refusal(
        code=RefusalCode.INVALID_REQUEST,
        target=None,
        message=f"no disk of {request.vm} is left to be in the point",
        hint="Exclude fewer disks." if request.exclude else "A VM needs a disk with content for a point.",
    )


def _refuse_disk(disk: PlannableDisk) -> Refusal | None:
    """Return why the disk cannot be in a point, or None."""
    fault = _unsupported_source(disk) or _unsupported_use(disk)
    if fault is not None:
        return Refusal(
            code=RefusalCode.DISK_UNSUPPORTED,
            target=disk.target,
            message=f"disk {disk.target} {fault}",
            hint=f"Leave it out by name with --exclude {disk.target}; the point then says that it lacks it.",
        )
    return _refuse_scratch(disk)


def _unsupported_source(disk: PlannableDisk) -> str | None:
    if disk.source_kind == "none":
        return "has no medium"
    if disk.source_kind != "file":
        return f"is of type {disk.source_kind}; this release reads image files only"
    if not disk.source:
        return "has no path"
    if disk.format != "qcow2":
        return f"is of format {disk.format or 'unknown'}; this release reads qcow2 only, others cannot hold a bitmap"
    return None


def _unsupported_use(disk: PlannableDisk) -> str | None:
    if disk.device != "disk":
        return f"is a {disk.device}, which the host does not see as an image"
    if disk.bus == "sd":
        return "is on the bus sd, on which libvirt makes no checkpoints"
    if disk.transient:
        return "is transient: its content is dropped when the VM stops"
    if disk.encrypted:
        return "is encrypted; the scratch file of a backup would hold its content in plain text"
    if disk.readonly:
        return "is read-only; libvirt makes no checkpoint of it"
    if disk.size_bytes is None:
        return "has a size that is not known"
    return None


def _refuse_scratch(disk: PlannableDisk) -> Refusal | None:
    """Refuse a disk whose guest would see an error when the scratch runs full.

    With the default policies QEMU stops the guest, and it goes on after the job was ended. With ``report`` the
    guest itself gets the error, so the scratch must be able to hold the whole disk.
    """
    if disk.error_policy != "report" or disk.size_bytes is None:
        return None
    if disk.free_scratch_bytes is not None and disk.free_scratch_bytes >= disk.size_bytes:
        return None
    free = "is not known" if disk.free_scratch_bytes is None else f"is {disk.free_scratch_bytes} bytes"
    return Refusal(
        code=RefusalCode.NO_SPACE,
        target=disk.target,
        message=(
            f"disk {disk.target} has the error policy 'report' and {disk.size_bytes} bytes; "
            f"the free space for its scratch {free}, and the guest would see an error if it ran out"
        ),
        hint=f"Make room for the scratch, set another error_policy, or leave it out with --exclude {disk.target}.",
    )


def _warn_of_sharing(disk: PlannableDisk) -> Warned:
    return Warned(
        code=WarningCode.SHAREABLE_DISK,
        target=disk.target,
        message=(
            f"disk {disk.target} is shareable: another VM may write to it while it is read, "
            "so its content need not be of one instant"
        ),
    )


def _plan_disk(disk: PlannableDisk, request: PointRequest) -> DiskPlan:
    reason, detail = _why_full(disk, request)
    if reason is not None or request.base is None:
        return DiskPlan(target=disk.target, mode=Mode.FULL, reason=reason or Reason.NO_BASE, detail=detail)
    return DiskPlan(
        target=disk.target,
        mode=Mode.INCREMENTAL,
        reason=Reason.INCREMENTAL,
        detail=detail,
        base_checkpoint=request.base.checkpoint,
    )


def _why_full(disk: PlannableDisk, request: PointRequest) -> tuple[Reason | None, str]:
    """Return why the disk's base cannot be used, with a sentence; None when it can."""
    base = request.base
    if request.force_full:
        return Reason.FORCED, "a full point was asked for"
    if disk.shareable:
        return Reason.SHAREABLE_DISK, "what other VMs write to it is in no bitmap of this one"
    if base is None:
        return Reason.NO_BASE, "there is no earlier point to start from"
    changed = _change_since(disk, base)
    if changed is not None:
        return changed
    if not request.checkpoint_listed:
        return Reason.CHECKPOINT_LOST, f"libvirt does not list checkpoint {base.checkpoint}"
    health = request.bitmaps.get(disk.target, BitmapHealth.UNKNOWN)
    if health is not BitmapHealth.SOUND:
        reason, detail = _BITMAP_REASONS[health]
        return reason, detail.format(base.checkpoint)
    return None, f"what was written since checkpoint {base.checkpoint} of point {base.point_id}"


def _change_since(disk: PlannableDisk, base: Base) -> tuple[Reason, str] | None:
    then = base.disks.get(disk.target)
    if then is None:
        return Reason.NEW_DISK, f"point {base.point_id} has no disk {disk.target}"
    if then.source != disk.source:
        return Reason.SOURCE_CHANGED, f"it was {then.source} and is {disk.source}"
    if then.format != disk.format:
        return Reason.FORMAT_CHANGED, f"it was {then.format} and is {disk.format}"
    if then.size_bytes != disk.size_bytes:
        return Reason.SIZE_CHANGED, f"it had {then.size_bytes} bytes and has {disk.size_bytes}"
    return None
