"""Which disks are in a point, which are left out, and which are the cause of a refusal.

A disk that cannot be read right is refused by name, never left out. Sources of the limits, for running VMs:
libvirt begins no block job on a disk that is transient or on the bus sd (``qemuDomainDiskBlockJobIsSupported``;
tried on 9.0 and 11.3). QEMU's scsi-block, which a LUN is, does all input and output with SG_IO, and the filter that a
backup job puts in front of the disk (``copy-before-write``) passes no such request on, so the guest would see errors
for as long as the job lives. QEMU before 9.0 dies when a VM is resumed during a job of a disk that is in an I/O thread
and has limits (``<iotune>``; "qemu_mutex_unlock_impl: Operation not permitted", tried with 7.2.22 on both buses; with
that disk out of the job the guest lives, whatever the others are). It also dies when a client leaves the export of a
disk in an I/O thread, so clients of these are kept until the job is gone, and QEMU's server takes 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.planning.codes import ExclusionReason, KeyState, RefusalCode
from vmkeep.planning.model import Exclusion, PlannableDisk, PointRequest, Refusal

_REMOVABLE: Final = frozenset({"cdrom", "floppy"})
# Some of the 100 are left for whoever looks at the job, and for the handshake that proves that it can be ended.
MOST_CLIENTS: Final = 80
_STOP_IT: Final = "Make the point while the VM is off"


def is_removable(disk: PlannableDisk) -> bool:
    """Return whether it is a drive for media, which are no state of a VM."""
    return disk.device in _REMOVABLE


def exclude(disk: PlannableDisk, request: PointRequest) -> Exclusion | None:
    """Return why the disk or drive is not in the point, or None when it is."""
    if disk.target in request.exclude:
        return Exclusion(target=disk.target, reason=ExclusionReason.REQUESTED)
    if disk.target in request.never:
        return Exclusion(target=disk.target, reason=ExclusionReason.SETTINGS)
    if disk.source_kind == "none":
        return Exclusion(target=disk.target, reason=ExclusionReason.NO_MEDIUM)
    if is_removable(disk):
        return Exclusion(target=disk.target, reason=ExclusionReason.REMOVABLE_MEDIA)
    if disk.optional and disk.missing:
        return Exclusion(target=disk.target, reason=ExclusionReason.OPTIONAL_MISSING)
    return None


def refuse_request(request: PointRequest) -> list[Refusal]:
    """Return what is wrong with the request itself."""
    known = [disk.target for disk in request.disks]
    return [
        Refusal(
            code=RefusalCode.INVALID_REQUEST,
            target=target,
            message=f"{request.vm} has no disk {target!r} to exclude",
            hint=f"Its disks are {', '.join(known)}." if known else "It has no disks.",
        )
        for target in sorted(request.exclude - set(known))
    ]


def refuse_shared_files(request: PointRequest, planned: Sequence[PlannableDisk]) -> list[Refusal]:
    """Return a refusal for each disk of a point whose image is that of another disk of the VM too.

    While the VM runs, QEMU (7.2) begins no job on an image that another device has open as well ("Failed to get shared
    write lock"), also when that one is in no point. And no image holds two bitmaps of one name.
    """
    refusals, in_point = [], {disk.target for disk in planned}
    first: dict[tuple[int, int], PlannableDisk] = {}
    for disk in request.disks if request.running else planned:
        if disk.file_id is None:
            continue
        other = first.setdefault(disk.file_id, disk)
        if other is disk or (disk.readonly and other.readonly) or in_point.isdisjoint({disk.target, other.target}):
            continue
        hint = f"Leave one of them out by name, with --exclude {disk.target}: the other holds it all."
        if request.running:
            hint = f"{_STOP_IT}, with --exclude {disk.target}, or leave out both."
        refusals.append(
            Refusal(
                code=RefusalCode.DISK_UNSUPPORTED,
                target=disk.target,
                message=f"disks {other.target} and {disk.target} are one and the same image, {disk.source}",
                hint=hint,
            )
        )
    return refusals


def refuse_number(planned: Sequence[PlannableDisk]) -> list[Refusal]:
    """Refuse more disks in I/O threads than a job of the running VM can have clients for."""
    threaded = [disk for disk in planned if disk.in_io_thread and not disk.transient]
    if len(threaded) <= MOST_CLIENTS:
        return []
    return [
        Refusal(
            code=RefusalCode.DISK_UNSUPPORTED,
            target=threaded[MOST_CLIENTS].target,
            message=f"{len(threaded)} disks are in I/O threads, and a backup job can serve {MOST_CLIENTS} of them",
            hint=f"{_STOP_IT}, or leave some out with --exclude.",
        )
    ]


def refuse_disk(disk: PlannableDisk, *, running: bool) -> Refusal | None:
    """Return why the disk cannot be in a point of the VM as it is now, or None."""
    fault = _unreadable_source(disk, running=running) or _unreadable_use(disk, running=running)
    code = RefusalCode.DISK_UNSUPPORTED
    if fault is None and (disk.size_bytes is None or (disk.image_fault is not None and not running)):
        fault = _unreadable_image(disk)
        code = RefusalCode.HEADER_REFUSED if disk.header_refused else code
    if fault is not None:
        what, remedy = fault
        return Refusal(
            code=code,
            target=disk.target,
            message=f"disk {disk.target} {what}",
            hint=f"{remedy}." if remedy else "",
            leave_out=True,
        )
    return None if running else _refuse_key(disk)


def _unreadable_image(disk: PlannableDisk) -> tuple[str, str | None]:
    if disk.image_fault is not None and disk.header_refused:
        return f"cannot be read: {disk.image_fault}", (disk.image_remedy or "").rstrip(".")
    if disk.image_fault is not None:
        return f"cannot be read: {disk.image_fault}", "Put the image in its place, and make it readable"
    return "has a size that is not known", None


def _unreadable_source(disk: PlannableDisk, *, running: bool) -> tuple[str, str | None] | None:
    """Return what is wrong with the place of the disk's content, and a remedy besides leaving it out."""
    if disk.source_kind == "volume":
        pool = (disk.source or "").partition("/")[0]
        return (
            f"is the volume {disk.source}, whose pool is not there or not active",
            f"Start the pool (`{command_line('virsh pool-start', pool)}`)" if pool else "Start the pool",
        )
    if disk.source_kind not in {"file", "block", "network"}:
        return f"is of type {disk.source_kind}, which cannot be read yet", None
    if not disk.source:
        return "has no path", None
    if disk.source_kind == "network" and not running:
        return f"is on the network ({disk.source}), and such disks can be read only while the VM runs", "Start the VM"
    return None


def _unreadable_use(disk: PlannableDisk, *, running: bool) -> tuple[str, str | None] | None:
    """Return what of the disk's use stands against reading it, and a remedy besides leaving it out."""
    if disk.device not in {"disk", "lun"}:
        return f"is a {disk.device}, which cannot be read yet", None
    if disk.corrupt is not None:
        what = f"is marked as corrupt by QEMU ({disk.corrupt}), so nothing can be written to it"
        return what, "Keep a copy of it, and repair it with the VM off (`qemu-img check -r all`)"
    if disk.encrypted and disk.key is KeyState.UNUSABLE:
        return "is encrypted in another way than by QEMU with LUKS and one passphrase, which cannot be read yet", None
    if disk.encrypted_below and not disk.encrypted:
        what = "is not encrypted and stands on an encrypted image, so a restore of it would make all of it plain"
        return what, "Merge it into that image (`virsh blockcommit`)"
    if disk.encrypted_below and not running:
        return "stands on an encrypted image, and such disks can be read only while the VM runs", "Start the VM"
    if disk.chain_fault is not None and not running:
        what = f"would be read as its guest does not see it: {disk.chain_fault}"
        return what, (
            "Where the image is right, take <backingStore> out of the disk (`virsh edit`); where the definition is, "
            "write that into the image (`qemu-img rebase -u`)"
        )
    return _unfit_for_job(disk) if running else None


def _unfit_for_job(disk: PlannableDisk) -> tuple[str, str] | None:
    """Return why no point of the running VM can have the disk, and a remedy besides leaving it out."""
    if disk.transient and disk.encrypted:
        return "is transient and encrypted; its image can be read only while the VM is off", _STOP_IT
    if disk.device == "lun":
        return "is a LUN that the guest speaks SCSI to; a backup job of the running VM would break that", _STOP_IT
    if disk.deadly_to_resume and not disk.transient:
        return (
            (
                "is in an I/O thread and has limits (<iotune>): QEMU before 9.0 dies when such a VM is resumed during "
                "a backup job, and with it the guest"
            ),
            f"{_STOP_IT}, take away the limits (`virsh blkdeviotune` with 0 for each) or I/O thread, or use QEMU 9.0",
        )
    if disk.bus == "sd":
        return "is on the bus sd, on which libvirt begins no backup job", _STOP_IT
    if disk.transient and not (disk.source_kind == "file" and disk.backing_chain):
        return "is transient, and the image that it returns to when the VM stops was not found", _STOP_IT
    return None


def _refuse_key(disk: PlannableDisk) -> Refusal | None:
    """Refuse an encrypted disk of a VM that is off whose passphrase libvirt does not tell."""
    if not disk.encrypted or disk.key is KeyState.KNOWN:
        return None
    if disk.key is KeyState.PRIVATE:
        return Refusal(
            code=RefusalCode.SECRET_PRIVATE,
            target=disk.target,
            message=(
                f"disk {disk.target} is encrypted with the libvirt secret {disk.secret}, which is private: "
                "libvirt tells its value to nobody, so the disk cannot be read while the VM is off"
            ),
            hint="Start the VM, or define the secret anew with private='no' (after `virsh secret-undefine`).",
            leave_out=True,
        )
    return Refusal(
        code=RefusalCode.SECRET_MISSING,
        target=disk.target,
        message=(
            f"disk {disk.target} is encrypted with the libvirt secret {disk.secret}, "
            "which libvirt does not have, or has no value for"
        ),
        hint="`virsh secret-define` and `virsh secret-set-value` give libvirt the secret.",
        leave_out=True,
    )
