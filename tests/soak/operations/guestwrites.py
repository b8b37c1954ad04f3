"""What a guest does to its disks, and what its owner does to their size and number."""

from __future__ import annotations

import random
import subprocess

import libvirt
from lxml import etree

from tests.crash.bed import wait_until
from tests.rig import KiB, MiB
from tests.rig.images import luks_object, luks_options
from tests.soak.guest import Guest, grown
from tests.soak.image import BLOCK_BYTES
from tests.soak.known import zeroes_end_a_guest_with_io_threads
from tests.soak.machine import disk_xml, fill_with_unwritten, free_target, make_image
from tests.soak.model import KINDS, DiskModel
from tests.soak.operations.registry import is_on, operation
from tests.soak.world import World
from tests.system.offline import qemu_img

_LIVE, _CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
_MOST_DISKS = 5
_INCONSISTENT = "is inconsistent and cannot be used"


def draw_target(guest: Guest, chance: random.Random) -> str:
    return chance.choice(sorted(guest.disks))


def _draw_range(guest: Guest, target: str, chance: random.Random, *, unit: int = 512) -> tuple[int, int]:
    """Draw start and length: from one sector to a mebibyte, anywhere, now and then up to the last byte."""
    size = guest.disks[target].image.size_bytes
    length = min(chance.choice((512, 4 * KiB, 64 * KiB, 200 * KiB, MiB)), size)
    length = max(unit, length // unit * unit)
    if chance.random() < 0.1 and unit == 512:
        return size - length, length
    return chance.randrange((size - length) // unit + 1) * unit, length


@operation(6)
def write_pattern(_world: World, guest: Guest, chance: random.Random) -> str:
    target = draw_target(guest, chance)
    start, length = _draw_range(guest, target, chance)
    byte = chance.randrange(1, 256)
    guest.fill(target, start, length, byte)
    return f"{target} {start}+{length} {byte:#04x}"


@operation(6)
def write_random(_world: World, guest: Guest, chance: random.Random) -> str:
    told = []
    for _ in range(chance.choice((1, 1, 3))):
        target = draw_target(guest, chance)
        start, length = _draw_range(guest, target, chance)
        guest.write_random(target, start, length, chance.getrandbits(32))
        told.append(f"{target} {start}+{length}")
    return ", ".join(told)


def can_zero(_world: World, guest: Guest) -> bool:
    return guest.off or not (guest.in_io_threads and zeroes_end_a_guest_with_io_threads())


@operation(5, can_zero)
def write_zeroes(_world: World, guest: Guest, chance: random.Random) -> str:
    target = draw_target(guest, chance)
    start, length = _draw_range(guest, target, chance)
    unmap = chance.random() < 0.5
    guest.zero(target, start, length, unmap=unmap)
    return f"{target} {start}+{length}{' unmap' if unmap else ''}"


@operation(4, lambda world, guest: is_on(world, guest) and can_zero(world, guest))
def discard(_world: World, guest: Guest, chance: random.Random) -> str:
    target = draw_target(guest, chance)
    start, length = _draw_range(guest, target, chance, unit=BLOCK_BYTES)
    guest.discard(target, start, length)
    return f"{target} {start}+{length}"


@operation(2)
def change_states(_world: World, guest: Guest, chance: random.Random) -> str:
    tpm = chance.random() < 0.5
    guest.change_states(tpm=tpm)
    return "nvram, tpm" if tpm and guest.off else "nvram"


@operation(3)
def grow(_world: World, guest: Guest, chance: random.Random) -> str:
    """blockresize of a running VM, qemu-img resize of one that is off."""
    target = draw_target(guest, chance)
    image, path = guest.disks[target].image, guest.vm.disk(target).path
    before = image.size_bytes
    size = grown(image.size_bytes, chance.choice((512, 64 * KiB, 3 * MiB)))
    try:
        if guest.off:
            _resize_image(guest, target, size)
        else:
            guest.vm.domain.blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    except (subprocess.CalledProcessError, libvirt.libvirtError) as error:
        # QEMU grows no image with a bitmap that was in use when QEMU was killed, and changes nothing then (seen, 7.2).
        if _INCONSISTENT not in (getattr(error, "stderr", None) or str(error)):
            raise
        return f"{target}: QEMU refuses to, because of a bitmap"
    image.grow(size)
    assert path is not None
    fill_with_unwritten(image, path, guest.disks[target].kind, before)
    return f"{target} to {size}"


def _resize_image(guest: Guest, target: str, size: int) -> None:
    disk = guest.vm.disk(target)
    assert disk.path is not None
    passphrase = guest.vm.passphrase(target)
    if passphrase is None:
        qemu_img("resize", "-q", "-f", disk.format, disk.path, size)
    else:
        opened = ["--object", luks_object(passphrase), "--image-opts", luks_options(disk.path, disk.format)]
        qemu_img("resize", "-q", *opened, size)


@operation(2, lambda _world, guest: len(guest.disks) < _MOST_DISKS)
def plug(world: World, guest: Guest, chance: random.Random) -> str:
    kind = KINDS[chance.choice(("qcow2", "scsi", "raw", "scsi-raw", "overlay"))]
    target = free_target(kind, set(guest.disks))
    path = world.host.dir / "disks" / f"{guest.name}-{world.fresh('plugged')}.{kind.format}"
    image = make_image(path, kind, chance)
    xml = etree.tostring(disk_xml(world.host, target, kind, path), encoding="unicode")
    guest.vm.domain.attachDeviceFlags(xml, _CONFIG if guest.off else _LIVE | _CONFIG)
    guest.disks[target] = DiskModel(target, kind, image)
    return f"{target} {kind.name}"


def _unpluggable(guest: Guest) -> list[str]:
    """A virtio disk leaves a running VM only when its guest helps, and firmware does not; the first disk stays."""
    _, *others = guest.disks
    return [target for target in others if guest.off or guest.disks[target].kind.bus == "scsi"]


@operation(1, lambda _world, guest: bool(_unpluggable(guest)))
def unplug(_world: World, guest: Guest, chance: random.Random) -> str:
    target = chance.choice(_unpluggable(guest))
    definition = guest.definition(inactive=True)
    found = definition.xpath("devices/disk[target/@dev=$target]", target=target)
    assert isinstance(found, list)
    (element,) = found
    assert isinstance(element, etree._Element)
    xml = etree.tostring(element, encoding="unicode")
    guest.flush(target)
    guest.vm.domain.detachDeviceFlags(xml, _CONFIG if guest.off else _LIVE | _CONFIG)
    if not guest.off:
        _wait_unplugged(guest, target)
    del guest.disks[target]
    return target


def _wait_unplugged(guest: Guest, target: str) -> None:
    wait_until(lambda: target not in guest.paths(), f"{target} of {guest.name} is not unplugged", 20)
