"""What a snapshot will be, decided before libvirt is asked: which disks, where, and everything that refuses it.

The rules of libvirt's documents are those of ``vmkeep.moments``; here are those of its QEMU driver, of the files on
this host, and of a snapshot that holds a whole VM.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line, shell_word
from vmkeep.definition import DefinedDisk, FirmwareKind
from vmkeep.errors import (
    ChoiceRequired,
    DiskUnsupported,
    HostFileMissing,
    InvalidRequest,
    StateUnsupported,
    TargetExists,
    VmRunning,
)
from vmkeep.host.records.snapshot import KeptOverlay
from vmkeep.host.snapshots.surroundings import Surroundings
from vmkeep.host.tasks.snapshots import MakeSnapshot
from vmkeep.host.vm.fitness import refuse_in_transition
from vmkeep.hypervisor import RunState
from vmkeep.moments import (
    MomentError,
    Snapshot,
    SnapshotDisk,
    SnapshotLocation,
    SnapshotMemory,
    align_snapshot,
    domain_disks,
    format_snapshot,
    parse_snapshot,
)
from vmkeep.transfer.imagefile import describe_image, holds_data
from vmkeep.values import dataclass

DISKS, MEMORY, INTERNAL = "disks", "memory", "internal"
"""The kinds: overlays on the disks; the same with the memory in a file; all of it inside the images."""
# From these on libvirt makes internal snapshots of VMs with UEFI firmware, if the variables are in qcow2.
_INTERNAL_WITH_UEFI: Final = 10_009_000
_ASK_FOR_FILE: Final = "Name one with --diskspec {},file=PATH, or leave the disk out with --diskspec {},snapshot=no."


@dataclass(frozen=True, slots=True)
class PlannedSnapshot:
    """A snapshot that can be asked for. ``left_out`` are the targets of disks that could be in it and are not."""

    snapshot: Snapshot
    kind: str
    overlays: tuple[KeptOverlay, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def xml(self) -> str:
        return format_snapshot(self.snapshot)

    @property
    def name(self) -> str:
        assert self.snapshot.name is not None
        return self.snapshot.name

    @property
    def disk_only(self) -> bool:
        return self.kind == DISKS


def plan_snapshot(request: MakeSnapshot, around: Surroundings, now: int) -> PlannedSnapshot:
    """Return the snapshot that is asked for, with every disk named. Raises what refuses it; nothing was changed then.

    Unless something else is asked for it is external and of the disks only: that is possible with every firmware and
    does not break bitmaps.
    """
    asked = _parsed(request, around, now)
    _refuse_state(request, around)
    kind = _kind(request, asked, around)
    located = _aligned(asked, kind, around)
    if kind == INTERNAL:
        _refuse_internal(request, located, around)
    overlays = () if kind == INTERNAL else _overlays(request, located, around)
    if kind == MEMORY:
        _refuse_memory_file(located, around, overlays)
    left_out = tuple(
        disk.name
        for disk in located.disks
        if disk.location is SnapshotLocation.NO and _could_be_in(around.definition.disk(disk.name))
    )
    return PlannedSnapshot(located, kind, overlays, left_out, _warnings(left_out, kind, request, around))


def _parsed(request: MakeSnapshot, around: Surroundings, now: int) -> Snapshot:
    try:
        asked = parse_snapshot(request.xml, now=now, validate=request.validate)
    except MomentError as error:
        raise InvalidRequest(f"the snapshot cannot be read: {error}", vm=around.vm) from error
    name = asked.name or ""
    # QEMU's driver keeps each snapshot in a file of its name, and names the overlays after it.
    if not name.strip() or "/" in name or name.startswith(".") or not name.isprintable():
        raise InvalidRequest(
            f"{name!r} cannot be the name of a snapshot",
            vm=around.vm,
            hint="A name has no slash and no control characters, and does not begin with a full stop.",
        )
    if name in around.snapshots:
        raise TargetExists(
            f"VM {around.vm!r} has a snapshot {name!r} already",
            vm=around.vm,
            hint="Choose another name, or leave it out: the time is the name then.",
        )
    return asked


def _refuse_state(request: MakeSnapshot, around: Surroundings) -> None:
    vm, state = around.vm, around.state
    refuse_in_transition(state.run, vm)
    if state.asleep:
        raise StateUnsupported(
            "the VM was suspended by its guest, and libvirt makes no snapshot of such a VM",
            vm=vm,
            hint=f"Wake it (`{command_line('virsh dompmwakeup', vm)}`) or shut it down, and run the command again.",
        )
    off = state.run is RunState.OFF
    if off and around.saved:
        # The saved memory comes with the definition of then, so the VM would go on in the images below the overlays.
        raise VmRunning(
            f"the memory of VM {vm!r} is saved (managed save), and belongs to the disks as they are",
            vm=vm,
            hint=f"Start the VM and make the snapshot, or drop the memory: "
            f"`{command_line('virsh managedsave-remove', vm)}`.",
        )
    if request.halt and (off or not around.persistent):
        why = "it is off already" if off else "it is transient: libvirt would forget it, and its snapshots"
        raise InvalidRequest(f"--halt makes no sense for VM {vm!r}: {why}", vm=vm, hint="Leave out --halt.")
    if request.quiesce and off:
        raise InvalidRequest(
            f"VM {vm!r} is off, so there is nothing to freeze in it", vm=vm, hint="Leave out --quiesce."
        )


def _kind(request: MakeSnapshot, asked: Snapshot, around: Surroundings) -> str:
    memory, vm = asked.memory, around.vm
    locations = {disk.location for disk in asked.disks}
    if SnapshotLocation.MANUAL in locations:
        raise InvalidRequest(
            "snapshot=manual leaves the disk to somebody else, and vmkeep would not know what the snapshot holds",
            vm=vm,
            hint="Use external or internal, or leave the disk out by name with snapshot=no.",
        )
    internal = request.internal or memory.location is SnapshotLocation.INTERNAL
    internal = internal or SnapshotLocation.INTERNAL in locations
    external = request.disk_only or memory.file is not None or SnapshotLocation.EXTERNAL in locations
    if internal and external:
        raise InvalidRequest(
            "a snapshot is in the images (internal) or beside them (external, --disk-only, a memory file), not both",
            vm=vm,
            hint="libvirt mixes no internal and external disks in one snapshot.",
        )
    if request.disk_only and memory.file is not None:
        raise InvalidRequest("--disk-only and a memory file contradict each other", vm=vm)
    if memory.file is not None and around.state.run is RunState.OFF:
        raise InvalidRequest(f"VM {vm!r} is off, so it has no memory to keep", vm=vm, hint="Leave out --memspec.")
    if memory.location is SnapshotLocation.NO and internal and around.state.run is not RunState.OFF:
        raise InvalidRequest("an internal snapshot of a VM that is not off needs its memory", vm=vm)
    if around.state.crashed and (internal or memory.file is not None):
        raise StateUnsupported(
            f"the guest of VM {vm!r} crashed, so there is no memory to go on with",
            vm=vm,
            hint=f"Make a snapshot of its disks only, or end its QEMU first (`{command_line('virsh destroy', vm)}`).",
        )
    if request.quiesce and (internal or memory.file is not None):
        raise InvalidRequest(
            "--quiesce is for snapshots of the disks only: with its memory the guest goes on where it was",
            vm=vm,
            hint="Leave out --quiesce, or the memory.",
        )
    if internal:
        return INTERNAL
    return DISKS if memory.file is None else MEMORY


def _aligned(asked: Snapshot, kind: str, around: Surroundings) -> Snapshot:
    """Return the snapshot with every disk named, and the memory decided."""
    default = SnapshotLocation.INTERNAL if kind == INTERNAL else SnapshotLocation.EXTERNAL
    named = {disk.name for disk in asked.disks}
    # Media in drives are no part of a VM's state; libvirt would put an overlay on a floppy.
    media = tuple(
        SnapshotDisk(disk.target, SnapshotLocation.NO)
        for disk in around.definition.disks
        if disk.removable and not named & {disk.target, disk.source}
    )
    memory = asked.memory
    if kind == DISKS or around.state.run is RunState.OFF:
        memory = SnapshotMemory(SnapshotLocation.NO)
    elif kind == INTERNAL:
        memory = SnapshotMemory(SnapshotLocation.INTERNAL)
    try:
        aligned = align_snapshot(
            replace(asked, disks=asked.disks + media, memory=memory),
            domain_disks(around.domain_xml),
            default=default,
            uniform=kind == INTERNAL,
        )
    except MomentError as error:
        raise InvalidRequest(
            f"the snapshot does not fit VM {around.vm!r}: {error}", vm=around.vm, hint=_hint(error)
        ) from error
    located = {disk.location for disk in aligned.disks} - {SnapshotLocation.NO}
    if not located:
        raise InvalidRequest("no disk would be in the snapshot", vm=around.vm, hint="It would hold nothing.")
    if SnapshotLocation.MANUAL in located or len(located) > 1:
        raise InvalidRequest(
            "the definition of the VM says snapshot='manual', or mixes internal and external, for its disks",
            vm=around.vm,
            hint="Say for each disk what is wanted: --diskspec TARGET,snapshot=external|internal|no.",
        )
    return aligned


def _hint(error: MomentError) -> str:
    if "cannot generate external snapshot name" in error.message:
        return _ASK_FOR_FILE.format(error.element, error.element)
    return "`vmkeep vm show VM` lists its disks."


# -- external ----------------------------------------------------------------------------------------------------


def _overlays(request: MakeSnapshot, located: Snapshot, around: Surroundings) -> tuple[KeptOverlay, ...]:
    overlays = []
    paths: dict[str, str] = {}
    for disk in located.disks:
        if disk.location is not SnapshotLocation.EXTERNAL:
            continue
        defined = around.definition.disk(disk.name)
        assert defined is not None
        _refuse_external(defined, around.vm)
        overlay = disk.source or ""
        if disk.source_type not in ("file", "block"):
            raise DiskUnsupported(
                f"the overlay of disk {disk.name} would be of type {disk.source_type}; it can be file or block",
                vm=around.vm,
                disk=disk.name,
            )
        place = os.path.realpath(overlay)
        if place in paths:
            raise InvalidRequest(
                f"disks {paths[place]} and {disk.name} would have one overlay, {overlay}", vm=around.vm
            )
        paths[place] = disk.name
        _refuse_image_in_use(overlay, disk, around)
        if disk.format not in (None, "qcow2"):
            raise InvalidRequest(
                f"the overlay of disk {disk.name} would be {disk.format}; only qcow2 keeps bitmaps, and a base",
                vm=around.vm,
                disk=disk.name,
            )
        _look_at_overlay(request, disk, defined, around.vm)
        overlays.append(KeptOverlay(disk.name, defined.source or "", defined.image_format, overlay, "qcow2"))
    return tuple(overlays)


def _refuse_external(disk: DefinedDisk, vm: str) -> None:
    """Refuse disks whose content an overlay would not keep, or not keep secret."""
    why = None
    if disk.encryption is not None:
        # Tried on libvirt 9.0: the overlay is plain, and holds in the clear what the guest writes.
        why = "is encrypted, and libvirt would put a plain overlay on it"
    elif disk.transient:
        why = "is transient: libvirt drops what is written to it"
    elif disk.shareable:
        why = "is shared with other VMs, which would go on writing to the image below the overlay"
    elif disk.removable or disk.readonly:
        why = "is read-only or a drive for media, and is no part of the VM's state"
    elif disk.device == "lun":
        why = "is a LUN, on which no overlay can be put"
    if why is not None:
        raise DiskUnsupported(
            f"disk {disk.target} {why}",
            vm=vm,
            disk=disk.target,
            hint=f"Leave it out by name: --diskspec {disk.target},snapshot=no. The snapshot then is without it. "
            "`vmkeep backup` keeps encrypted disks.",
        )


def _refuse_image_in_use(overlay: str, disk: SnapshotDisk, around: Surroundings) -> None:
    place = os.path.realpath(overlay)
    for target, chain in around.chains.items():
        if any(os.path.realpath(layer.path) == place for layer in chain):
            raise InvalidRequest(
                f"{overlay} is an image of disk {target}, and cannot be the overlay of disk {disk.name}",
                vm=around.vm,
                disk=disk.name,
                path=overlay,
            )


def _look_at_overlay(request: MakeSnapshot, disk: SnapshotDisk, defined: DefinedDisk, vm: str) -> None:
    """See that the image is a file, and that nothing is where its overlay goes, or the right thing is."""
    overlay = Path(disk.source or "")
    if defined.source_type == "file" and not _is_regular(defined.source):
        # libvirt looks only when it makes the overlay's name itself.
        raise DiskUnsupported(
            f"the image of disk {disk.name}, {defined.source}, is no regular file",
            vm=vm,
            disk=disk.name,
            path=defined.source,
            hint=f"Leave the disk out by name: --diskspec {disk.name},snapshot=no.",
        )
    if not overlay.parent.is_dir():
        raise HostFileMissing(
            f"the directory {overlay.parent} for the overlay of disk {disk.name} is not there",
            vm=vm,
            disk=disk.name,
            path=str(overlay.parent),
            hint=_ASK_FOR_FILE.format(disk.name, disk.name),
        )
    if request.reuse_external:
        _refuse_unfit_overlay(overlay, disk, defined, vm)
    elif disk.source_type == "block":
        if not (overlay.exists() and stat.S_ISBLK(overlay.stat().st_mode)):
            raise HostFileMissing(f"{overlay} is no block device", vm=vm, disk=disk.name, path=str(overlay))
    elif os.path.lexists(overlay):
        raise TargetExists(
            f"{overlay} is there already, where the overlay of disk {disk.name} would go",
            vm=vm,
            disk=disk.name,
            path=str(overlay),
            hint=f"Choose another name for the snapshot, or another file: --diskspec {disk.name},file=PATH.",
        )


def _refuse_unfit_overlay(overlay: Path, disk: SnapshotDisk, defined: DefinedDisk, vm: str) -> None:
    """Refuse a file that QEMU would take for the disk, and that would change what the guest reads."""
    (layer,) = describe_image(overlay, "qcow2", chain=False)
    below = os.path.realpath(layer.backing) if layer.backing is not None else None
    if below != os.path.realpath(defined.source or "") or holds_data(layer) or layer.bitmaps:
        make = command_line(
            f"qemu-img create -f qcow2 -F {defined.image_format} -b {shell_word(str(defined.source))}", overlay
        )
        raise InvalidRequest(
            f"{overlay} is no empty overlay of {defined.source}: the disk would be another one with it",
            vm=vm,
            disk=disk.name,
            path=str(overlay),
            hint=f"Make it with `{make}`, or leave out --reuse-external.",
        )


def _refuse_memory_file(located: Snapshot, around: Surroundings, overlays: Sequence[KeptOverlay]) -> None:
    path = Path(located.memory.file or "")
    if os.path.lexists(path) or any(os.path.realpath(each.overlay) == os.path.realpath(path) for each in overlays):
        # libvirt would write over it.
        raise TargetExists(
            f"{path} is there already, or is an overlay, and would be written over with the memory",
            vm=around.vm,
            path=str(path),
            hint="Choose another file for --memspec.",
        )
    if not path.parent.is_dir():
        raise HostFileMissing(
            f"the directory {path.parent} for the memory is not there", vm=around.vm, path=str(path.parent)
        )


# -- internal ----------------------------------------------------------------------------------------------------


def _refuse_internal(request: MakeSnapshot, located: Snapshot, around: Surroundings) -> None:
    vm, firmware = around.vm, around.definition.firmware
    if firmware.kind is FirmwareKind.UEFI:
        if around.libvirt < _INTERNAL_WITH_UEFI:
            raise StateUnsupported(
                "this libvirt makes no internal snapshot of a VM with UEFI firmware",
                vm=vm,
                hint="Leave out --internal: an external snapshot keeps the UEFI variables as well. libvirt 10.9 and "
                "later makes internal ones, if the variables are in a qcow2 image.",
            )
        if firmware.nvram_format != "qcow2":
            raise StateUnsupported(
                "an internal snapshot of a VM with UEFI firmware needs its variables in a qcow2 image",
                vm=vm,
                hint="Leave out --internal: an external snapshot keeps the UEFI variables as well.",
            )
    marked = set()
    for disk in located.disks:
        if disk.location is not SnapshotLocation.INTERNAL:
            continue
        defined = around.definition.disk(disk.name)
        if defined is None or defined.format != "qcow2":
            raise DiskUnsupported(
                f"disk {disk.name} is not qcow2, and cannot hold an internal snapshot",
                vm=vm,
                disk=disk.name,
                hint="Leave out --internal, or the disk by name: "
                f"--diskspec {disk.name},snapshot=no. libvirt takes them all or refuses.",
            )
        marked |= {bitmap.name for layer in around.chains.get(disk.name, ())[:1] for bitmap in layer.bitmaps}
    marked |= around.checkpoints
    if marked and not request.with_bitmaps:
        raise ChoiceRequired(
            f"VM {vm!r} has bitmaps for incremental backups ({', '.join(sorted(marked))}), and to go back to an "
            "internal snapshot breaks them: with libvirt alone the VM dies while it is taken back",
            vm=vm,
            hint="Leave out --internal: external snapshots keep the bitmaps. Or give --with-bitmaps, and go back with "
            "`vmkeep snapshot revert` only, which removes the bitmaps first; the next backup then reads the disks "
            "whole.",
        )


# -- what is said ------------------------------------------------------------------------------------------------


def _warnings(left_out: Sequence[str], kind: str, request: MakeSnapshot, around: Surroundings) -> tuple[str, ...]:
    warnings = []
    if left_out:
        warnings.append(f"The snapshot is without disk {', '.join(left_out)}: it does not hold the whole VM.")
    if not around.persistent:
        warnings.append("The VM is transient: libvirt forgets its snapshots when it stops.")
    if kind == INTERNAL and request.with_bitmaps and around.checkpoints:
        warnings.append(
            "Go back to this snapshot with `vmkeep snapshot revert` only: libvirt alone breaks the bitmaps."
        )
    return tuple(warnings)


def _could_be_in(disk: DefinedDisk | None) -> bool:
    return disk is not None and not disk.removable and not disk.readonly


def _is_regular(path: str | None) -> bool:
    try:
        return path is not None and stat.S_ISREG(Path(path).stat().st_mode)
    except OSError:
        return False
