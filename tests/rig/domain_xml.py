"""The XML of the rig's guests: small, no operating system, whatever disks a test needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lxml import etree
from lxml.builder import E

TPM_BACKEND = "<backend type='emulator' version='2.0'/>"


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret of libvirt's, and its value. With a ``usage`` definitions name it by that."""

    uuid: str
    value: str
    usage: str | None = None

    @property
    def element(self) -> etree._Element:
        if self.usage is not None:
            return E.secret(type="passphrase", usage=self.usage)
        return E.secret(type="passphrase", uuid=self.uuid)


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a guest. It is made when the VM is defined, unless ``path`` names a file that is there already."""

    target: str
    size_bytes: int = 64 * 1024 * 1024
    format: str = "qcow2"
    bus: str = "virtio"
    device: str = "disk"
    readonly: bool = False
    shareable: bool = False
    media: bool = True  # False: a drive with nothing in it
    path: Path | None = None
    error_policy: str | None = None  # "stop", "report", "ignore" or "enospace", as libvirt's error_policy
    create_options: tuple[str, ...] = ()  # for qemu-img create -o, "cluster_size=4k"
    extra_xml: tuple[str, ...] = ()  # further elements of <disk>
    iothread: bool = False  # served in an I/O thread of QEMU: by its own driver, or its SCSI controller's
    secret: Secret | None = None  # makes the image LUKS: qcow2 with LUKS in it, or raw with nothing but LUKS


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """A Linux kernel that the firmware starts in place of a boot loader. QEMU's user must be able to read the files."""

    kernel: Path
    initrd: Path
    command_line: str = ""


@dataclass(frozen=True, slots=True)
class DiskInUse:
    """A disk as the VM's definition has it now."""

    target: str
    alias: str | None  # only while the VM runs
    bus: str
    format: str
    path: Path | None
    secret: str | None = None  # of an encrypted disk, its UUID or usage
    iothread: bool = False


def disks_of(xml: str) -> list[DiskInUse]:
    """Return the disks of a domain's XML in its order."""
    root = etree.fromstring(xml)
    threaded = bool(root.xpath("devices/controller[@type='scsi']/driver/@iothread"))
    return [
        DiskInUse(
            target=str(element.xpath("string(target/@dev)")),
            alias=str(element.xpath("string(alias/@name)")) or None,
            bus=str(element.xpath("string(target/@bus)")),
            format=str(element.xpath("string(driver/@type)")),
            path=Path(str(element.xpath("string(source/@file)"))) if element.find("source") is not None else None,
            secret=str(element.xpath("string(source/encryption/secret/@*[name()!='type'])")) or None,
            iothread=bool(element.xpath("driver/@iothread")) or (threaded and element.xpath("target/@bus") == ["scsi"]),
        )
        for element in root.iterfind("devices/disk")
    ]


def disk_element(disk: Disk, path: Path | None) -> etree._Element:
    driver = E.driver(name="qemu", type=disk.format, discard="unmap")
    if disk.iothread and disk.bus == "virtio":
        driver.set("iothread", "1")
    if disk.error_policy is not None:
        driver.set("error_policy", disk.error_policy)
    element = E.disk(driver, type="file", device=disk.device)
    if path is not None:
        source = E.source(file=str(path))
        if disk.secret is not None:
            source.append(E.encryption(disk.secret.element, format="luks"))
        element.append(source)
    element.append(E.target(dev=disk.target, bus=disk.bus))
    if disk.readonly:
        element.append(E.readonly())
    if disk.shareable:
        element.append(E.shareable())
    element.extend([etree.fromstring(text) for text in disk.extra_xml])
    return element


def domain_xml(
    name: str,
    disks: Sequence[tuple[Disk, Path | None]],
    *,
    uefi: bool,
    tpm: str | None,
    memory_mib: int,
    device_xml: Sequence[str],
    boot: DirectBoot | None = None,
) -> str:
    devices = E.devices(E.emulator("/usr/bin/qemu-system-x86_64"))
    devices.extend([disk_element(disk, path) for disk, path in disks])
    if tpm is not None:
        # A TPM 1.2 has no command-response buffer.
        model = "tpm-tis" if "version='1.2'" in tpm else "tpm-crb"
        devices.append(E.tpm(etree.fromstring(tpm), model=model))
    if not any(disk.bus == "usb" for disk, _ in disks):
        devices.append(E.controller(type="usb", model="none"))
    devices.append(E.memballoon(model="none"))
    if any(disk.iothread and disk.bus == "scsi" for disk, _ in disks):
        devices.append(E.controller(E.driver(iothread="1"), type="scsi", index="0", model="virtio-scsi"))
    devices.extend([etree.fromstring(text) for text in device_xml])
    system = E.os(E.type("hvm", arch="x86_64", machine="q35"))
    if uefi:
        system.set("firmware", "efi")
    if boot is not None:
        system.extend([E.kernel(str(boot.kernel)), E.initrd(str(boot.initrd)), E.cmdline(boot.command_line)])
    domain = E.domain(
        E.name(name),
        E.memory(str(memory_mib), unit="MiB"),
        E.vcpu("1"),
        *([E.iothreads("1")] if any(disk.iothread for disk, _ in disks) else []),
        system,
        E.features(E.acpi()),
        devices,
        type="qemu",
    )
    return etree.tostring(domain, encoding="unicode", pretty_print=True)
