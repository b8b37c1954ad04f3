"""A domain's XML, read. Source of the names: libvirt's documentation of the domain XML (formatdomain)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Final
from uuid import UUID

from lxml import etree

from vmkeep.definition.chains import read_backing
from vmkeep.definition.model import (
    USAGE,
    DefinedDisk,
    Definition,
    DefinitionError,
    DiskEncryption,
    Firmware,
    FirmwareKind,
    Interface,
    SecurityLabel,
    SourceKind,
    TpmBackend,
    TpmDevice,
)
from vmkeep.xmltext import XmlRefused, element_text, parse_xml, tag_name

MAX_DISKS: Final = 1024
_MAC: Final = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", re.ASCII)


def parse_definition(xml: str) -> Definition:
    """Return what vmkeep must know of a domain. Raises DefinitionError."""
    return read_definition(read_domain(xml))


def read_domain(xml: str) -> etree._Element:
    """Return the root of a domain's XML. Raises DefinitionError."""
    try:
        root = parse_xml(xml)
    except XmlRefused as error:
        raise DefinitionError(f"the domain's XML is refused: {error}") from error
    if root.tag != "domain":
        raise DefinitionError(f"expected the XML of a domain, not <{tag_name(root)}>")
    return root


def read_definition(root: etree._Element) -> Definition:
    """Return what vmkeep must know of the domain in a tree. Raises DefinitionError."""
    name = _text(root, "name")
    if not name:
        raise DefinitionError("the domain has no name")
    os_type = root.find("os/type")
    controllers = _controllers_in_io_threads(root)
    disks = tuple(_read_disk(disk, controllers) for disk in disk_elements(root))
    doubled = [target for target, count in Counter(disk.target for disk in disks).items() if count > 1]
    if doubled:
        raise DefinitionError(f"two disks of the domain have the target {doubled[0]!r}")
    return Definition(
        name=name,
        uuid=_read_uuid(root),
        domain_type=root.get("type", ""),
        arch=None if os_type is None else os_type.get("arch"),
        machine=None if os_type is None else os_type.get("machine"),
        live=root.get("id") is not None,
        disks=disks,
        firmware=_read_firmware(root),
        tpm=_read_tpm(root),
        interfaces=tuple(_read_interface(interface) for interface in root.findall("devices/interface")),
        security_labels=tuple(_read_security_label(label) for label in root.findall("seclabel")),
        genid=_text(root, "genid") or None,
    )


def disk_elements(root: etree._Element) -> list[etree._Element]:
    """Return the elements of the disks, in the domain's order. Raises DefinitionError when there are too many."""
    disks = root.findall("devices/disk")
    if len(disks) > MAX_DISKS:
        raise DefinitionError(f"{len(disks)} disks; the limit is {MAX_DISKS}")
    return disks


def disk_target(disk: etree._Element) -> str:
    """Return the target of a disk's element. Raises DefinitionError when it has none."""
    target = disk.find("target")
    name = None if target is None else target.get("dev")
    if not name:
        raise DefinitionError("a disk of the domain has no target")
    return name


def _text(root: etree._Element, path: str) -> str | None:
    element = root.find(path)
    return None if element is None else element_text(element)


def _attribute(root: etree._Element, path: str, name: str) -> str | None:
    element = root.find(path)
    return None if element is None else element.get(name)


def _number(text: str | None, what: str) -> int | None:
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) is None:
        raise DefinitionError(f"{what} is {text!r}, not a number")
    return int(text)


def _read_uuid(root: etree._Element) -> str | None:
    text = _text(root, "uuid")
    if not text:
        return None
    try:
        return str(UUID(text.strip()))
    except ValueError as error:
        raise DefinitionError(f"{text!r} is not a UUID") from error


def _controllers_in_io_threads(root: etree._Element) -> frozenset[str]:
    """Return the indexes of the SCSI controllers whose disks are served in an I/O thread."""
    controllers = root.findall("devices/controller[@type='scsi']")
    return frozenset(each.get("index", "0") for each in controllers if _has_io_thread(each.find("driver")))


def _has_io_thread(driver: etree._Element | None) -> bool:
    # Since libvirt 10.0 also <iothreads>, which gives each queue one.
    return driver is not None and (driver.get("iothread") is not None or driver.find("iothreads") is not None)


def _is_limit(element: etree._Element) -> bool:
    return element.tag != "group_name" and element_text(element).strip() not in ("", "0")


def _read_disk(disk: etree._Element, controllers_in_io_threads: Collection[str]) -> DefinedDisk:
    target = disk_target(disk)
    kind, source = _read_source(disk)
    return DefinedDisk(
        target=target,
        bus=_attribute(disk, "target", "bus"),
        device=disk.get("device", "disk"),
        source_kind=kind,
        source_type=disk.get("type", "file"),
        source=source,
        format=_attribute(disk, "driver", "type"),
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
        transient=disk.find("transient") is not None,
        encryption=_read_encryption(disk),
        error_policy=_attribute(disk, "driver", "error_policy"),
        rerror_policy=_attribute(disk, "driver", "rerror_policy"),
        alias=_attribute(disk, "alias", "name"),
        source_index=_number(_attribute(disk, "source", "index"), f"source index of disk {target}"),
        serial=_text(disk, "serial"),
        boot_order=_number(_attribute(disk, "boot", "order"), f"boot order of disk {target}"),
        optional=_attribute(disk, "source", "startupPolicy") == "optional",
        in_io_thread=_has_io_thread(disk.find("driver"))
        or (
            _attribute(disk, "target", "bus") == "scsi"
            and (_attribute(disk, "address", "controller") or "0") in controllers_in_io_threads
        ),
        throttled=any(_is_limit(limit) for limit in disk.findall("iotune/*")),
        backing=read_backing(disk),
    )


def _read_encryption(disk: etree._Element) -> DiskEncryption | None:
    """Return the encryption, which libvirt takes in <source>, and from older definitions in <disk> itself."""
    found = [disk.find(path) for path in ("source/encryption", "encryption")]
    encryption = next((element for element in found if element is not None), None)
    if encryption is None:
        return None
    secrets = (_secret_name(secret) for secret in encryption.findall("secret"))
    return DiskEncryption(
        format=encryption.get("format", "default"),
        engine=encryption.get("engine"),
        secrets=tuple(name for name in secrets if name is not None),
    )


def _secret_name(secret: etree._Element) -> str | None:
    uuid, usage = secret.get("uuid"), secret.get("usage")
    if uuid is None:
        return None if usage is None else USAGE + usage
    try:
        return str(UUID(uuid))
    except ValueError as error:
        raise DefinitionError(f"{uuid!r} is not the UUID of a secret") from error


def _read_source(disk: etree._Element) -> tuple[SourceKind, str | None]:
    """Return kind and name of what holds the content; a file or device without a path is no medium."""
    source = disk.find("source")
    match disk.get("type", "file"):
        case "file" | "block" as kind:
            path = None if source is None else source.get("file" if kind == "file" else "dev")
            return (SourceKind(kind), path) if path else (SourceKind.NONE, None)
        case _ if source is None:
            return SourceKind.NONE, None
        case "network":
            return SourceKind.NETWORK, f"{source.get('protocol', '')}:{source.get('name', '')}"
        case "volume":
            return SourceKind.VOLUME, f"{source.get('pool', '')}/{source.get('volume', '')}"
        case _:
            return SourceKind.OTHER, None


def _read_firmware(root: etree._Element) -> Firmware:
    system, loader, nvram = root.find("os"), root.find("os/loader"), root.find("os/nvram")
    wish = None if system is None else system.get("firmware")
    pflash = loader is not None and loader.get("type") == "pflash"
    uefi = wish == "efi" or (wish is None and (pflash or nvram is not None))
    nvram_type, path = "file", None
    if nvram is not None:
        nvram_type = nvram.get("type", "file")
        source = nvram.find("source")
        path = element_text(nvram).strip() if source is None else source.get("file") or source.get("dev")
    return Firmware(
        kind=FirmwareKind.UEFI if uefi else FirmwareKind.BIOS,
        loader=None if loader is None else element_text(loader).strip() or None,
        nvram=path or None,
        nvram_type=nvram_type,
        nvram_format="raw" if nvram is None else nvram.get("format", "raw"),
        template=None if nvram is None else nvram.get("template"),
        secure_boot=loader is not None and loader.get("secure") == "yes",
        stateless=loader is not None and loader.get("stateless") == "yes",
    )


def _read_tpm(root: etree._Element) -> TpmDevice | None:
    # POWER guests may have a second device, the proxy to the host's TPM, which has no state of its own.
    devices = root.findall("devices/tpm")
    tpm = next((device for device in devices if device.get("model") != "spapr-tpm-proxy"), None)
    if tpm is None:
        return None
    kind = _attribute(tpm, "backend", "type")
    try:
        backend = TpmBackend(kind or "")
    except ValueError as error:
        raise DefinitionError(f"the TPM has a backend of the unknown type {kind!r}") from error
    source_type, source = _attribute(tpm, "backend/source", "type"), _attribute(tpm, "backend/source", "path")
    if backend is TpmBackend.PASSTHROUGH:
        source = _attribute(tpm, "backend/device", "path")
    return TpmDevice(
        model=tpm.get("model"),
        backend=backend,
        version=_attribute(tpm, "backend", "version"),
        secret_uuid=_attribute(tpm, "backend/encryption", "secret"),
        persistent_state=_attribute(tpm, "backend", "persistent_state") == "yes",
        source_type=source_type,
        source=source,
    )


def _read_interface(interface: etree._Element) -> Interface:
    mac = _attribute(interface, "mac", "address")
    if mac is not None and not is_mac(mac):
        raise DefinitionError(f"{mac!r} is not a MAC address")
    source = interface.find("source")
    names = ("network", "bridge", "dev", "path")
    return Interface(
        mac=None if mac is None else mac.lower(),
        type=interface.get("type", ""),
        source=None if source is None else next((source.get(name) for name in names if source.get(name)), None),
    )


def is_mac(text: str) -> bool:
    """Return whether a text is a MAC address as libvirt writes it."""
    return _MAC.fullmatch(text) is not None


def _read_security_label(label: etree._Element) -> SecurityLabel:
    return SecurityLabel(
        model=label.get("model"),
        type=label.get("type"),
        relabel=label.get("relabel", "yes") == "yes",
        label=_text(label, "label"),
        image_label=_text(label, "imagelabel"),
    )
