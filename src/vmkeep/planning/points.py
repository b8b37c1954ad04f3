"""The plan of a point, of a running or a stopped VM.

The first question to each disk is whether it is in the point (``admission``). The second is whether it gets a bitmap
at all; one that does not is read whole each time, and blocks that are known are not stored again. The third is which
base it is read against (``bases``); where none fits, that disk is read whole by itself and the others stay
incremental.
"""

from __future__ import annotations

from dataclasses import replace

from vmkeep.planning.admission import (
    exclude,
    is_removable,
    refuse_disk,
    refuse_number,
    refuse_request,
    refuse_shared_files,
)
from vmkeep.planning.bases import find_base
from vmkeep.planning.bitmaps import Obstacle, obstacle_to_bitmaps
from vmkeep.planning.codes import ExclusionReason, Mode, Reason, WarningCode
from vmkeep.planning.model import (
    Base,
    DiskPlan,
    Exclusion,
    PlannableDisk,
    PointPlan,
    PointRequest,
    Refused,
    Warned,
)
from vmkeep.planning.scratch import refuse_scratch, scratch_to_prove


def plan_point(request: PointRequest) -> PointPlan | Refused:
    """Return what the point will read, or every reason why none can be made.

    Drives for removable media and those without a medium are no part of a point and are named as excluded. Disks
    excluded by name are checked for nothing. Every other disk is either read or the cause of a refusal. A VM
    without any disk to read has a point all the same: of its definition and state files.
    """
    refusals = refuse_request(request)
    planned: list[PlannableDisk] = []
    excluded: list[Exclusion] = []
    warnings: list[Warned] = []
    for disk in request.disks:
        exclusion = exclude(disk, request)
        if exclusion is not None:
            excluded.append(exclusion)
            warnings.extend(_warn_of_missing(disk) if exclusion.reason is ExclusionReason.OPTIONAL_MISSING else ())
            continue
        refusal = refuse_disk(disk, running=request.running)
        if refusal is not None:
            refusals.append(refusal)
            continue
        planned.append(disk)
        warnings.extend(_warn_of(disk, request))
    refusals += refuse_shared_files(request, planned)
    refusals += [*refuse_scratch(planned), *refuse_number(planned)] if request.running else []
    if refusals:
        return Refused(refusals=tuple(refusals))
    proven = scratch_to_prove(planned) if request.running else {}
    plans = [replace(plan_disk(disk, request), scratch_bytes=proven.get(disk.target)) for disk in planned]
    if not plans and not all(is_removable(disk) for disk in request.disks):
        warnings.append(_warn_of_no_disks(request))
    return PointPlan(disks=tuple(plans), excluded=tuple(excluded), warnings=tuple(warnings))


def plan_disk(disk: PlannableDisk, request: PointRequest) -> DiskPlan:
    """Return how a disk that is in the point is read."""
    from_image = disk.transient or not request.running
    without_bitmap = _why_no_bitmap(disk)
    if without_bitmap is not None:
        reason, detail = without_bitmap
        return DiskPlan(
            target=disk.target, mode=Mode.SCAN, reason=reason, detail=detail, bitmap=False, from_image=from_image
        )
    found = find_base(disk, request)
    if isinstance(found, Base):
        return DiskPlan(
            target=disk.target,
            mode=Mode.INCREMENTAL,
            reason=Reason.INCREMENTAL,
            detail=f"what was written since checkpoint {found.checkpoint} of point {found.point_id}",
            bitmap=True,
            from_image=from_image,
            base_point=found.point_id,
            base_checkpoint=found.checkpoint,
        )
    reason, detail = found
    return DiskPlan(
        target=disk.target, mode=Mode.FULL, reason=reason, detail=detail, bitmap=True, from_image=from_image
    )


def _why_no_bitmap(disk: PlannableDisk) -> tuple[Reason, str] | None:
    """Return why the disk gets no bitmap, with a sentence; what it is used for tells more than its format."""
    if disk.shareable:
        return Reason.SHAREABLE_DISK, "what other VMs write to it is in no bitmap of this one"
    match obstacle_to_bitmaps(disk, holds_bitmaps=disk.holds_bitmaps):
        case Obstacle.TRANSIENT:
            return Reason.TRANSIENT_DISK, "what the guest writes to it is dropped when the VM stops"
        case Obstacle.READ_ONLY:
            return Reason.READ_ONLY_DISK, "libvirt makes no bitmap of a disk that the guest cannot write to"
        case Obstacle.DEVICE:
            return Reason.NO_BITMAPS, "a LUN is passed to the guest as it is, and holds no bitmap"
        case Obstacle.FORMAT:
            return Reason.NO_BITMAPS, f"an image of format {disk.format or 'raw'} cannot hold a bitmap"
        case Obstacle.BUS:
            return Reason.NO_BITMAPS, f"libvirt makes no bitmap of a disk on the bus {disk.bus}"
        case Obstacle.OLD_FORMAT:
            change = "`qemu-img amend -o compat=1.1` makes it one of version 3"
            return Reason.NO_BITMAPS, f"a qcow2 image of version 2 cannot hold a bitmap; {change}"
        case None:
            return None


def _warn_of(disk: PlannableDisk, request: PointRequest) -> list[Warned]:
    warnings = []
    if disk.shareable:
        message = (
            f"disk {disk.target} is shareable: another VM may write to it while it is read, "
            "so its content need not be of one instant"
        )
        warnings.append(Warned(code=WarningCode.SHAREABLE_DISK, target=disk.target, message=message))
    if disk.transient and request.running:
        message = (
            f"disk {disk.target} is transient: the point holds the image that it returns to when the VM stops, "
            "without what the guest has written to it"
        )
        warnings.append(Warned(code=WarningCode.TRANSIENT_DISK, target=disk.target, message=message))
    if disk.encrypted:
        warnings.append(_warn_of_secret(disk))
    return warnings


def _warn_of_missing(disk: PlannableDisk) -> list[Warned]:
    message = (
        f"disk {disk.target} is not in the point: its image {disk.source} is not there, and libvirt starts the VM "
        "without the disk then (startupPolicy='optional')"
    )
    return [Warned(code=WarningCode.OPTIONAL_MISSING, target=disk.target, message=message)]


def _warn_of_secret(disk: PlannableDisk) -> Warned:
    message = (
        f"disk {disk.target} is encrypted on the host with the libvirt secret {disk.secret}, which is not in the "
        "point: to restore it, libvirt must have a secret of that name. Its value may be new then, because the image "
        "is encrypted anew"
    )
    return Warned(code=WarningCode.ENCRYPTED_DISK, target=disk.target, message=message)


def _warn_of_no_disks(request: PointRequest) -> Warned:
    return Warned(
        code=WarningCode.NO_DISKS,
        target=None,
        message=f"the point of {request.vm} holds none of its disks, only the definition and the state files",
    )
