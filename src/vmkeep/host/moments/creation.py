"""A new checkpoint: which disks take part is decided, and a wrong request refused, before libvirt is asked."""

from __future__ import annotations

import time
from dataclasses import replace

from vmkeep.definition import DefinedDisk, parse_definition
from vmkeep.errors import MomentExists, MomentInvalid, VmOff
from vmkeep.host.tasks.moments import CreateCheckpoint, MomentsChanged, moment_errors
from vmkeep.host.vm.images import top_images
from vmkeep.host.vm.moments import read_for_change
from vmkeep.hypervisor import Domain, DomainMoments, RunState
from vmkeep.moments import (
    Checkpoint,
    CheckpointDisk,
    CheckpointType,
    MomentKind,
    align_checkpoint,
    domain_disks,
    format_checkpoint,
    parse_checkpoint,
)
from vmkeep.planning.bitmaps import OLD_QCOW2, Chain, Obstacle, amending, obstacle_to_bitmaps

_KIND = MomentKind.CHECKPOINT


def create_checkpoint(domain: Domain, order: CreateCheckpoint) -> MomentsChanged:
    """Make a checkpoint of a running VM, or only say which. Raises MomentInvalid, MomentExists, VmOff."""
    wanted = _requested(order, domain.name)
    assert wanted.name is not None, "a name is made of the time where none is given"
    checkpoint, left_out = _aligned(wanted, domain.definition_xml(), domain.name)
    xml = format_checkpoint(replace(checkpoint, creation_time=0))
    changed = MomentsChanged(vm=domain.name, uuid=domain.uuid, names=(wanted.name,), xml=xml, notices=left_out)
    if order.dry:
        return changed
    if domain.state().run is RunState.OFF:
        raise VmOff(f"VM {domain.name!r} is off, and libvirt makes checkpoints of running VMs only", vm=domain.name)
    register = DomainMoments(domain, _KIND)
    if wanted.name in read_for_change(register).tree():
        raise MomentExists(f"VM {domain.name!r} has a checkpoint {wanted.name!r} already", vm=domain.name)
    register.create_checkpoint(wanted.name, xml)
    return changed


def _requested(order: CreateCheckpoint, vm: str) -> Checkpoint:
    if order.xml is not None:
        xml = order.xml
    else:
        xml = format_checkpoint(Checkpoint(name=order.name, description=order.description, disks=order.disks))
    # Also what was given as words meets libvirt's schema here.
    with moment_errors(_KIND, vm, name=order.name):
        return parse_checkpoint(xml, now=int(time.time()))


def _aligned(wanted: Checkpoint, domain_xml: str, vm: str) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the checkpoint with all disks of the VM, and a sentence for each that is left out although it could be
    written to."""
    defined = parse_definition(domain_xml)
    images = top_images(defined)
    with moment_errors(_KIND, vm, name=wanted.name):
        checkpoint = align_checkpoint(wanted, domain_disks(domain_xml))
    disks: list[CheckpointDisk] = []
    left_out: list[str] = []
    for disk in checkpoint.disks:
        known = defined.disk(disk.name)
        reason = None
        if known is not None and disk.type is not CheckpointType.NO:
            reason = _reason_against(known, images.get(disk.name, ()))
        if reason is not None and wanted.disks:
            raise MomentInvalid(
                f"checkpoint {wanted.name!r} of VM {vm!r}: disk {disk.name!r} cannot take part, because {reason}", vm=vm
            )
        if reason is not None:
            left_out.append(f"disk {disk.name} is left out, because {reason}")
            disk = CheckpointDisk(disk.name, CheckpointType.NO)
        if disk.type is CheckpointType.BITMAP and disk.bitmap != wanted.name:
            raise MomentInvalid(
                f"checkpoint {wanted.name!r} of VM {vm!r}: the bitmap of disk {disk.name!r} must be named as the "
                f"checkpoint, not {disk.bitmap!r}",
                vm=vm,
            )
        disks.append(disk)
    if all(disk.type is CheckpointType.NO for disk in disks):
        because = f": {'; '.join(left_out)}" if left_out else ""
        raise MomentInvalid(
            f"checkpoint {wanted.name!r} of VM {vm!r}: no disk would take part{because}",
            vm=vm,
            hint="A checkpoint is made of bitmaps, which qcow2 images hold.",
        )
    return replace(checkpoint, disks=tuple(disks)), tuple(left_out)


def _reason_against(disk: DefinedDisk, images: Chain) -> str | None:
    """Return why QEMU can keep no bitmap for libvirt in a disk that may be written to; None when it can."""
    match obstacle_to_bitmaps(disk, holds_bitmaps=not images or images[0].holds_bitmaps):
        case Obstacle.TRANSIENT:
            return "it is transient: what is written to it is dropped when the VM stops"
        case Obstacle.DEVICE:
            return f"it is a {disk.device}, which holds no bitmaps"
        case Obstacle.FORMAT:
            return f"its format is {disk.format or 'raw'}, which holds no bitmaps"
        case Obstacle.BUS:
            return f"libvirt makes no checkpoints on the bus {disk.bus}"
        case Obstacle.OLD_FORMAT:
            return f"{OLD_QCOW2} (with the VM off: `{amending(disk, images)}`)"
        case Obstacle.READ_ONLY | None:
            return None
