"""How the VMs of a life are made: which disks they have, and the definition with what the rig's own VMs lack."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from lxml import etree
from lxml.builder import E

from tests.rig import Disk, Host, KiB, MiB, Vm
from tests.rig.images import make_luks, random_bytes
from tests.soak.guest import read_image
from tests.soak.image import Image
from tests.soak.model import KINDS, DiskKind, DiskModel
from tests.system.offline import qemu_img

_WEIGHTS = {
    "qcow2": 6,
    "raw": 3,
    "scsi": 3,
    "scsi-raw": 1,
    "luks": 1,
    "luks-raw": 1,
    "iothread": 2,
    "iothread-scsi": 2,
    "overlay": 3,
    "qcow2-v2": 1,
}
_FIRST_WEIGHTS = {"qcow2": 4, "scsi": 1, "overlay": 1, "iothread": 1}
_SLOTS = 6  # PCI slots for disks that are plugged in later
_PASSPHRASE = "open sesame"  # noqa: S105 -- what is secret here is random data
_IO_THREAD_CONTROLLER = "1"


def draw_kinds(chance: random.Random) -> list[DiskKind]:
    """Draw the disks of a VM. The first is one that a snapshot and a bitmap can be made of."""
    kinds = [_draw(chance, _FIRST_WEIGHTS)]
    for _ in range(chance.choice((0, 0, 1, 1, 2, 3))):
        drawn = _draw(chance, _WEIGHTS)
        if drawn.luks and any(kind.luks for kind in kinds):
            drawn = KINDS["qcow2"]  # the scratch of an encrypted disk takes QEMU 2 s to make
        kinds.append(drawn)
    return kinds


def _draw(chance: random.Random, weights: dict[str, int]) -> DiskKind:
    (name,) = chance.choices(list(weights), list(weights.values()))
    return KINDS[name]


def draw_size(chance: random.Random) -> int:
    """Draw the size of a disk: mostly small, and now and then one whose last block is short."""
    size = chance.choice((4, 8, 8, 12, 16, 24, 40)) * MiB
    return size + chance.choice((0, 0, 0, 64 * KiB, 20 * KiB))


def make_machine(host: Host, name: str, chance: random.Random) -> tuple[Vm, dict[str, DiskModel]]:
    """Define a UEFI VM with a vTPM and disks of several kinds; return it with what its disks hold."""
    disks: dict[str, DiskModel] = {}
    rig_disks = []
    for kind in draw_kinds(chance):
        target = free_target(kind, set(disks))
        path = host.dir / "disks" / f"{name}-{target}.{kind.format}"
        disks[target] = DiskModel(target, kind, make_image(path, kind, chance))
        rig_disks.append(Disk(target, format=kind.format, bus=kind.bus, path=path))
    vm = host.define(name, disks=rig_disks)
    xml = vm.domain.XMLDesc(2)
    host.connection.defineXML(_with_all(xml, host, vm, disks))
    return vm, disks


def free_target(kind: DiskKind, taken: set[str]) -> str:
    prefix = "sd" if kind.bus == "scsi" else "vd"
    return next(name for name in (f"{prefix}{letter}" for letter in "abcdefghij") if name not in taken)


def make_image(path: Path, kind: DiskKind, chance: random.Random) -> Image:
    """Make the file of a disk, with content below an overlay; return what a guest reads from it."""
    size = draw_size(chance)
    image = Image(size)
    if kind.luks:
        make_luks(path, kind.format, size, _PASSPHRASE)
        fill_with_unwritten(image, path, kind, 0)
    elif kind.overlay:
        base = path.with_name(f"{path.stem}-base.raw")
        content = random_bytes(chance.getrandbits(32), size // 2 // 512 * 512)
        with base.open("wb") as file:
            file.write(content)
            file.truncate(size)
        image.write(0, content)
        qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)
    else:
        options = ["-o", "compat=0.10"] if kind.version_2 else []
        qemu_img("create", "-q", "-f", kind.format, *options, path, size)
    return image


def fill_with_unwritten(image: Image, path: Path, kind: DiskKind, start: int) -> None:
    """Take over what a guest reads from ``start`` on, where nothing was written: of raw LUKS, zeros decrypted."""
    if kind.luks and kind.format == "raw":
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            raw = Path(directory) / "raw"
            read_image(path, kind.format, raw, _PASSPHRASE)
            image.write(start, raw.read_bytes()[start:])


def disk_xml(host: Host, target: str, kind: DiskKind, path: Path) -> etree._Element:
    """Return the <disk> of a disk that is to be plugged in."""
    driver = E.driver(name="qemu", type=kind.format, discard="unmap")
    if kind.iothread and kind.bus == "virtio":
        driver.set("iothread", "1")
    source = E.source(file=str(path))
    if kind.luks:
        secret = shared_secret(host)
        source.append(E.encryption(E.secret(type="passphrase", uuid=secret), format="luks"))
    disk = E.disk(driver, source, E.target(dev=target, bus=kind.bus), type="file", device="disk")
    if kind.bus == "scsi":
        controller = _IO_THREAD_CONTROLLER if kind.iothread else "0"
        unit = str("abcdefghij".index(target[-1]))
        disk.append(E.address(type="drive", controller=controller, bus="0", target="0", unit=unit))
    return disk


def shared_secret(host: Host) -> str:
    """Return the secret of all encrypted disks of a host; made once, and again after the host was cleared."""
    known = host.secret_uuids()
    if known:
        return min(known)
    return host.secret(_PASSPHRASE, ephemeral=False).uuid


def _with_all(xml: str, host: Host, vm: Vm, disks: dict[str, DiskModel]) -> str:
    root = etree.fromstring(xml)
    root.insert(1, E.iothreads("1"))
    devices = root.find("devices")
    assert devices is not None
    for old in devices.findall("disk") + devices.findall("controller[@type='scsi']"):
        devices.remove(old)
    for number, (target, disk) in enumerate(disks.items()):
        path = host.dir / "disks" / f"{vm.name}-{target}.{disk.kind.format}"
        devices.insert(1 + number, disk_xml(host, target, disk.kind, path))
    with_thread = E.controller(E.driver(iothread="1"), type="scsi", index=_IO_THREAD_CONTROLLER, model="virtio-scsi")
    devices.append(E.controller(type="scsi", index="0", model="virtio-scsi"))
    devices.append(with_thread)
    devices.extend([E.controller(type="pci", model="pcie-root-port") for _ in range(_SLOTS)])
    return etree.tostring(root, encoding="unicode")
