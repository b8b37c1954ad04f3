"""What must be known of a VM before a point of it can be planned; also the basis of `vmkeep vm show`."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from vmkeep.config import Settings
from vmkeep.definition import DefinedDisk, Definition, SourceKind
from vmkeep.errors import HeaderRefused, HypervisorError, PermissionRefused, VmkeepError, error_classes
from vmkeep.host.vm.chains import chain_faults
from vmkeep.host.vm.keys import key_state, secret_of
from vmkeep.host.vm.qemulog import SERVES_IO_THREADS_UNHARMED, qemu_version
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.planning import PlannableDisk, Refused, hint_of
from vmkeep.planning.images import ImageLayer
from vmkeep.transfer.imagefile import describe_image, look_at


class _ImageFault(TypedDict, total=False):
    image_fault: str
    image_remedy: str
    header_refused: bool


def disk_sizes(domain: Domain, definition: Definition, chains: Mapping[str, Sequence[ImageLayer]]) -> dict[str, int]:
    """Return the size in bytes of each disk whose size can be told: by libvirt, else from its image."""
    sizes = {target: chain[0].size_bytes for target, chain in chains.items()}
    for disk in definition.disks:
        if disk.removable or disk.source_kind is SourceKind.NONE:
            continue
        try:
            sizes[disk.target] = domain.disk_capacity_bytes(disk.target)
        except HypervisorError:
            continue  # a file that is gone, or a kind that libvirt cannot ask: the plan says what that means
    return sizes


def scratch_directory(disk: DefinedDisk, settings: Settings) -> Path:
    """Return where the scratch of a disk goes: where the settings say, else beside the image.

    Beside the image is where libvirt puts it by default, and where stock AppArmor and SELinux policies let QEMU.
    A device or a network disk has no such place; its scratch goes where images go.
    """
    if settings.scratch_dir is not None:
        return settings.scratch_dir
    if disk.source_kind is SourceKind.FILE and disk.source:
        return Path(disk.source).parent
    return settings.images_dir


def plannable_disks(
    live: Definition,
    sizes: Mapping[str, int],
    settings: Settings,
    chains: Mapping[str, Sequence[ImageLayer]],
    hypervisor: Hypervisor,
    *,
    running: bool,
) -> tuple[PlannableDisk, ...]:
    """Return the disks of a VM as the plan sees them. ``chains`` are the images of each disk, the top one first."""
    faults = chain_faults(live, chains)
    return tuple(
        PlannableDisk(
            target=disk.target,
            device=disk.device,
            bus=disk.bus,
            # libvirt's own word for what vmkeep knows no more of than its name (nvme, vhostuser, dir).
            source_kind=disk.source_type if disk.source_kind is SourceKind.OTHER else str(disk.source_kind),
            source=disk.source,
            format=disk.format,
            readonly=disk.readonly,
            shareable=disk.shareable,
            transient=disk.transient,
            encrypted=disk.encryption is not None,
            secret=secret_of(disk) or None,
            key=key_state(hypervisor, disk, running=running),
            encrypted_below=any(layer.encrypted for layer in chains.get(disk.target, ())[1:]),
            chain_fault=faults.get(disk.target),
            **_image_fault(disk, chains, running=running, known=sizes.get(disk.target) is not None),
            size_bytes=sizes.get(disk.target),
            error_policy=disk.error_policy,
            free_scratch_bytes=_free_bytes(scratch_directory(disk, settings)),
            scratch_device=_device(scratch_directory(disk, settings)),
            backing_chain=tuple(layer.path for layer in chains.get(disk.target, ())[1:]),
            holds_bitmaps=all(layer.holds_bitmaps for layer in chains.get(disk.target, ())[:1]),
            corrupt=next((layer.path for layer in chains.get(disk.target, ()) if layer.corrupt), None),
            file_id=_file_id(disk),
            optional=disk.optional,
            missing=not running and _is_missing(disk),
            in_io_thread=disk.in_io_thread,
            deadly_to_resume=running and _is_deadly_to_resume(disk, live.name, hypervisor),
        )
        for disk in live.disks
    )


def _image_fault(
    disk: DefinedDisk, chains: Mapping[str, Sequence[ImageLayer]], *, running: bool, known: bool
) -> _ImageFault:
    """Return why the image of a disk cannot be looked at, for people.

    While the VM runs, QEMU reads the images that it has open; then one matters whose size is not ``known`` either.
    """
    if disk.removable or disk.source is None or disk.source_kind not in (SourceKind.FILE, SourceKind.BLOCK):
        return _ImageFault()
    if known and (running or disk.target in chains):
        return _ImageFault()
    try:
        # Of what was looked at alone, no more is looked at here.
        look_at(disk.source, disk.image_format)
        if disk.target not in chains:
            describe_image(disk.source, disk.image_format)
    except HeaderRefused as error:
        return _ImageFault(image_fault=error.message, image_remedy=error.hint, header_refused=True)
    except PermissionRefused as error:
        # What this user may not read is told by ``vmkeep.host.vm.rights``.
        return _ImageFault() if known else _ImageFault(image_fault=error.message)
    except VmkeepError as error:
        return _ImageFault(image_fault=error.message)
    return _ImageFault()


def _file_id(disk: DefinedDisk) -> tuple[int, int] | None:
    """Return what tells a file or device of this host from others, whatever name it goes by."""
    if disk.removable or disk.source is None or disk.source_kind not in (SourceKind.FILE, SourceKind.BLOCK):
        return None
    try:
        about = Path(disk.source).stat()
    except OSError:
        return None
    # One device may have several nodes.
    return (-1, about.st_rdev) if stat.S_ISBLK(about.st_mode) else (about.st_dev, about.st_ino)


def _is_missing(disk: DefinedDisk) -> bool:
    if disk.source is None or disk.source_kind not in (SourceKind.FILE, SourceKind.BLOCK):
        return False
    return not Path(disk.source).exists()


def _is_deadly_to_resume(disk: DefinedDisk, vm: str, hypervisor: Hypervisor) -> bool:
    return disk.in_io_thread and disk.throttled and qemu_version(vm, hypervisor) < SERVES_IO_THREADS_UNHARMED


def _free_bytes(directory: Path) -> int | None:
    try:
        about = os.statvfs(directory)
    except OSError:
        return None
    return about.f_bavail * about.f_frsize


def _device(directory: Path) -> int | None:
    try:
        return directory.stat().st_dev
    except OSError:
        return None


def refusal(outcome: Refused, vm: str, *, excludable: bool) -> VmkeepError:
    """Return one error for all refusals: the class of the first, the words of all.

    ``excludable`` is False for a safety point, which no option leaves a disk out of.
    """
    first = outcome.refusals[0]
    kind = error_classes()[str(first.code)]
    message = "; ".join(refused.message for refused in outcome.refusals)
    return kind(message, vm=vm, disk=first.target, hint=hint_of(outcome.refusals, excludable=excludable))
