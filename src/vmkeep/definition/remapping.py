"""A domain's XML made fit for another name, place or identity.

The original tree is edited, so that whatever vmkeep does not know of stays in it: a part that it does not
touch comes out as it went in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Final
from uuid import UUID

from lxml import etree

from vmkeep.definition.live import drop_live_parts
from vmkeep.definition.model import DefinitionError
from vmkeep.definition.reading import disk_elements, disk_target, is_mac, read_definition, read_domain
from vmkeep.definition.tree import child_or_new, remove, remove_children, set_text
from vmkeep.values import dataclass
from vmkeep.xmltext import is_xml_text, serialise_xml


@dataclass(frozen=True, slots=True)
class DiskPlacement:
    """Where a disk's content is now: a standalone image file, in ``format`` (None: as the driver says)."""

    path: str
    format: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remap:
    """What shall be other than in the original; None and empty keep what is there.

    ``new_mac`` is called once for each interface and returns its address. ``disks`` gives places by target.
    ``removed`` are targets that go: a disk with its device, a drive for media only with its medium.
    ``default_tpm_place`` puts an emulated TPM's state where libvirt keeps it by default, by the VM's UUID: a directory
    or file of its own may be another VM's. ``new_genid`` empties the generation id, so that libvirt makes a new one:
    None does so with a new UUID.
    """

    name: str | None = None
    uuid: str | None = None
    new_mac: Callable[[], str] | None = None
    disks: Mapping[str, DiskPlacement] = field(default_factory=lambda: MappingProxyType({}))
    removed: frozenset[str] = frozenset()
    nvram: str | None = None
    nvram_format: str | None = None
    default_tpm_place: bool = False
    new_genid: bool | None = None


# What says where the content of a disk is. Everything else in <source> (security labels, encryption) is policy
# that holds for the file as well.
_SOURCE_ATTRIBUTES: Final = (
    "file",
    "dev",
    "dir",
    "protocol",
    "name",
    "query",
    "tls",
    "tlsHostname",
    "pool",
    "volume",
    "mode",
    "type",
    "managed",
    "namespace",
    "path",
    "fdgroup",
    "index",
    "startupPolicy",
)
_SOURCE_CHILDREN: Final = (
    "host",
    "snapshot",
    "config",
    "auth",
    "slices",
    "ssl",
    "cookies",
    "readahead",
    "timeout",
    "initiator",
    "address",
    "reservations",
    "identity",
    "reconnect",
    "knownHosts",
    "dataStore",
    "privateData",
)


def remap(xml: str, changes: Remap) -> str:
    """Return the domain's XML with the changes made.

    Of a live XML, what belongs to the running instance only is dropped; the XML of a definition (``virsh
    dumpxml --inactive``) is the better source, since a live one also has automatic choices filled in. Raises
    DefinitionError when the XML is no domain, when a target is not in it, and when a new value cannot stand there.
    """
    root = read_domain(xml)
    before = read_definition(root)
    _refuse(changes, {disk.target for disk in before.disks})
    if before.live:
        drop_live_parts(root)
    if changes.name is not None:
        set_text(child_or_new(root, "name"), changes.name)
    if changes.uuid is not None:
        _set_uuid(root, str(UUID(changes.uuid)))
    uuid_is_new = changes.uuid is not None and str(UUID(changes.uuid)) != before.uuid
    if changes.new_genid if changes.new_genid is not None else uuid_is_new:
        _empty_genid(root)
    _change_disks(root, changes)
    if changes.new_mac is not None:
        _set_macs(root, changes.new_mac)
    if changes.nvram is not None:
        _set_nvram(root, changes.nvram, changes.nvram_format)
    if changes.default_tpm_place:
        _set_default_tpm_place(root)
    return serialise_xml(root)


def _refuse(changes: Remap, targets: set[str]) -> None:
    for target in sorted({*changes.disks, *changes.removed} - targets):
        raise DefinitionError(f"the domain has no disk {target!r}")
    for target in sorted(changes.disks.keys() & changes.removed):
        raise DefinitionError(f"disk {target!r} cannot be both placed and removed")
    if changes.name is not None and (not changes.name.strip() or {"/", "\n"} & set(changes.name)):
        raise DefinitionError(f"{changes.name!r} cannot be a VM's name: it must hold text, and no '/' or line break")
    if changes.uuid is not None:
        try:
            UUID(changes.uuid)
        except ValueError as error:
            raise DefinitionError(f"{changes.uuid!r} is not a UUID") from error
    paths = [changes.nvram, *(placement.path for placement in changes.disks.values())]
    for path in paths:
        if path is not None and not path.startswith("/"):
            raise DefinitionError(f"{path!r} is not an absolute path")
    for text in (changes.name, changes.nvram_format, *paths, *(place.format for place in changes.disks.values())):
        if text is not None and not is_xml_text(text):
            raise DefinitionError(f"{text!r} has a character that XML cannot hold")


def _set_uuid(root: etree._Element, uuid: str) -> None:
    set_text(child_or_new(root, "uuid"), uuid)
    # libvirt refuses a definition whose SMBIOS table names another UUID than the domain.
    for entry in root.findall("sysinfo/system/entry"):
        if entry.get("name") == "uuid":
            set_text(entry, uuid)


def _empty_genid(root: etree._Element) -> None:
    genid = root.find("genid")
    if genid is not None:
        set_text(genid, "")


def _remove_disk(disk: etree._Element) -> None:
    if disk.get("device", "disk") not in {"cdrom", "floppy"}:
        remove(disk)
        return
    remove_children(disk, ("source", "backingStore", "mirror"))
    disk.set("type", "file")


def _place_disk(disk: etree._Element, placement: DiskPlacement) -> None:
    remove_children(disk, ("backingStore", "mirror", "auth"))
    source = child_or_new(disk, "source")
    if disk.get("type", "file") != "file" or source.get("file") != placement.path:
        for attribute in _SOURCE_ATTRIBUTES:
            source.attrib.pop(attribute, None)
        source.set("file", placement.path)
        disk.set("type", "file")
    source.attrib.pop("index", None)
    remove_children(source, _SOURCE_CHILDREN)
    if placement.format is not None:
        driver = child_or_new(disk, "driver", first=True)
        if "name" not in driver.attrib:
            driver.set("name", "qemu")
        driver.set("type", placement.format)


def _change_disks(root: etree._Element, changes: Remap) -> None:
    for disk in disk_elements(root):
        target = disk_target(disk)
        if target in changes.removed:
            _remove_disk(disk)
        elif target in changes.disks:
            _place_disk(disk, changes.disks[target])


def _set_default_tpm_place(root: etree._Element) -> None:
    for backend in root.findall("devices/tpm/backend"):
        if backend.get("type") == "emulator":
            remove_children(backend, ("source",))


def _set_macs(root: etree._Element, new_mac: Callable[[], str]) -> None:
    for interface in root.findall("devices/interface"):
        mac = new_mac()
        if not is_mac(mac):
            raise DefinitionError(f"{mac!r} is not a MAC address")
        child_or_new(interface, "mac", first=True).set("address", mac)


def _set_nvram(root: etree._Element, path: str, image_format: str | None) -> None:
    system = root.find("os")
    if system is None:
        raise DefinitionError("the domain has no <os>, so it cannot have UEFI variables")
    nvram = child_or_new(system, "nvram")
    source = nvram.find("source")
    if source is not None and nvram.get("type") == "file":
        source.set("file", path)
    else:
        nvram.attrib.pop("type", None)
        set_text(nvram, path)
    if image_format is not None and nvram.get("format", "raw") != image_format:
        nvram.set("format", image_format)
