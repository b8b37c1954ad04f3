"""Scratch that must not run out, because QEMU would not stop the guest: how much is needed, and is it there.

With most error policies QEMU stops a guest whose write fails on full scratch, and it goes on after the job was ended.
With ``report`` the guest itself gets the error. With ``ignore`` it is worse: QEMU tells the guest that the write
succeeded, and the write is nowhere (QEMU 7.2, tried: the guest writes on, and QEMU counts no failed write). So of
such a disk the scratch must be able to hold the whole disk, beside the scratch of all other disks that goes to the
same file system. The guardian sees to it that this stays so while the job runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from vmkeep.planning.codes import RefusalCode
from vmkeep.planning.model import PlannableDisk, Refusal

_UNSTOPPED: Final = {
    "report": "the guest would see an error if it ran out",
    "ignore": "what the guest writes would be lost without an error if it ran out",
}
_OVERHEAD_BYTES: Final = 1 << 20
_OVERHEAD_SHARE: Final = 4096  # qcow2's tables take 8 + 2 bytes for each cluster of 64 KiB, so a third of this


def needs_scratch(disk: PlannableDisk) -> bool:
    """Return whether a job of the running VM keeps what the guest overwrites in the disk."""
    return not (disk.readonly or disk.transient)


def scratch_bytes(size_bytes: int) -> int:
    """Return the most that the scratch of a disk of that size can take."""
    return size_bytes + size_bytes // _OVERHEAD_SHARE + _OVERHEAD_BYTES


def scratch_to_prove(disks: Sequence[PlannableDisk]) -> Mapping[str, int]:
    """Return, by target, the scratch that must stay available: of disks that QEMU would not stop for, and of those
    that share a file system with one."""
    strict = {_place(disk) for disk in disks if disk.error_policy in _UNSTOPPED and needs_scratch(disk)}
    return {
        disk.target: scratch_bytes(disk.size_bytes or 0)
        for disk in disks
        if needs_scratch(disk) and _place(disk) in strict
    }


def refuse_scratch(disks: Sequence[PlannableDisk]) -> list[Refusal]:
    """Return a refusal for each disk whose guest would suffer when the scratch of these disks ran full."""
    needs = scratch_to_prove(disks)
    refusals = []
    for disk in disks:
        harm = _UNSTOPPED.get(disk.error_policy or "")
        if harm is None or not needs_scratch(disk):
            continue
        need = sum(needs[other.target] for other in disks if other.target in needs and _place(other) == _place(disk))
        if disk.free_scratch_bytes is not None and disk.free_scratch_bytes >= need:
            continue
        free = "is not known" if disk.free_scratch_bytes is None else f"is {disk.free_scratch_bytes} bytes"
        refusals.append(
            Refusal(
                code=RefusalCode.NO_SPACE,
                target=disk.target,
                message=(
                    f"disk {disk.target} has the error policy {disk.error_policy!r}, so its scratch must have room for "
                    f"all that is written: {need} bytes with the other disks there; the free space {free}, and {harm}"
                ),
                hint=(
                    "Make room for the scratch or set scratch_dir, set another error_policy, or make the point while "
                    "the VM is off."
                ),
                leave_out=True,
            )
        )
    return refusals


def _place(disk: PlannableDisk) -> object:
    """Return what tells file systems apart; of one that is not known a disk shares nothing."""
    return disk.scratch_device if disk.scratch_device is not None else disk.target
