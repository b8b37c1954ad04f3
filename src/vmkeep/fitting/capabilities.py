"""libvirt's capabilities and QEMU's descriptions of firmware, read into plain values.

Sources: libvirt's formatcaps and formatdomaincaps; QEMU's docs/interop/firmware.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from lxml import etree

from vmkeep.fitting.model import CpuModel, FirmwareBuild, MachineType
from vmkeep.values import dataclass
from vmkeep.xmltext import element_children, parse_xml, tag_name


@dataclass(frozen=True, slots=True)
class Guests:
    """What kinds of VM a host runs: pairs (type, architecture), the machine types of each, and the programs for it."""

    kinds: frozenset[tuple[str, str]]
    machines: Mapping[tuple[str, str], tuple[MachineType, ...]]
    emulators: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainCapabilities:
    """What libvirt says of one kind of VM; the fields are those of HostAbilities."""

    emulator: str | None
    enums: Mapping[str, frozenset[str]]
    unsupported: frozenset[str]
    cpu_modes: frozenset[str]
    cpu_models: tuple[CpuModel, ...]
    loaders: tuple[str, ...]


def read_guests(xml: str) -> Guests:
    """Read what ``virsh capabilities`` prints. Raises XmlRefused."""
    machines: dict[tuple[str, str], tuple[MachineType, ...]] = {}
    root = parse_xml(xml)
    for arch in root.findall("guest/arch"):
        name = arch.get("name", "")
        common = _machines(arch)
        for domain in arch.findall("domain"):
            machines[domain.get("type", ""), name] = _machines(domain) or common
    emulators = frozenset((each.text or "").strip() for each in root.iterfind("guest/arch//emulator"))
    return Guests(frozenset(machines), machines, emulators - {""})


def _machines(parent: etree._Element) -> tuple[MachineType, ...]:
    return tuple(
        MachineType(
            name=(machine.text or "").strip(),
            canonical=machine.get("canonical"),
            deprecated=machine.get("deprecated") == "yes",
        )
        for machine in parent.findall("machine")
    )


def read_domain_capabilities(xml: str) -> DomainCapabilities:
    """Read what ``virsh domcapabilities`` prints. Raises XmlRefused."""
    root = parse_xml(xml)
    enums: dict[str, frozenset[str]] = {}
    unsupported = set()
    for holder in [root.find("os"), *root.findall("os/loader"), *root.findall("memoryBacking"), *_devices(root)]:
        if holder is None:
            continue
        name = tag_name(holder)
        if holder.get("supported") == "no":
            unsupported.add(name)
            continue
        for enum in holder.findall("enum"):
            enums[f"{name}.{enum.get('name')}"] = frozenset((value.text or "") for value in enum.findall("value"))
    custom = root.find("cpu/mode[@name='custom']")
    return DomainCapabilities(
        emulator=(root.findtext("path") or "").strip() or None,
        enums=enums,
        unsupported=frozenset(unsupported),
        cpu_modes=frozenset(mode.get("name", "") for mode in root.findall("cpu/mode[@supported='yes']")),
        cpu_models=() if custom is None else _cpu_models(custom),
        loaders=tuple((value.text or "") for value in root.findall("os/loader/value")),
    )


def _devices(root: etree._Element) -> list[etree._Element]:
    devices = root.find("devices")
    return [] if devices is None else element_children(devices)


def _cpu_models(custom: etree._Element) -> tuple[CpuModel, ...]:
    blockers = {
        each.get("model"): tuple(feature.get("name", "") for feature in each.findall("feature"))
        for each in custom.findall("blockers")
    }
    return tuple(
        CpuModel(
            name=(model.text or "").strip(),
            usable=model.get("usable") != "no",
            canonical=model.get("canonical"),
            blockers=blockers.get((model.text or "").strip(), ()),
        )
        for model in custom.findall("model")
    )


def read_firmware(document: str, sizes: Mapping[str, int]) -> list[FirmwareBuild]:
    """Read one description of firmware; ``sizes`` are those of the files on the host, by path.

    Returns nothing for what is no UEFI in raw flash, or cannot be read.
    """
    try:
        value = json.loads(document)
        mapping, features = value["mapping"], set(value["features"])
        formats = {mapping[part].get("format", "raw") for part in ("executable", "nvram-template")}
        if "uefi" not in value["interface-types"] or mapping["device"] != "flash" or formats != {"raw"}:
            return []
        code = str(mapping["executable"]["filename"])
        template = str(mapping["nvram-template"]["filename"])
        if code not in sizes:
            return []
        return [
            FirmwareBuild(
                code=code,
                template=template,
                variables_bytes=sizes.get(template),
                secure_boot="secure-boot" in features,
                enrolled_keys="enrolled-keys" in features,
                needs_smm="requires-smm" in features,
                arch=str(target["architecture"]),
                machines=tuple(str(machine) for machine in target["machines"]),
            )
            for target in value["targets"]
        ]
    except (KeyError, TypeError, ValueError):
        return []


def firmware_files(document: str) -> list[str]:
    """Return the files that a description of firmware names."""
    try:
        mapping = json.loads(document)["mapping"]
        return [str(mapping[part]["filename"]) for part in ("executable", "nvram-template") if part in mapping]
    except (KeyError, TypeError, ValueError):
        return []


def template_of(code: str) -> str:
    """Return where the variables of a firmware without a description are, by the names that all distributions use."""
    directory, slash, name = code.rpartition("/")
    # OVMF_CODE_4M.secboot.fd goes with OVMF_VARS_4M.fd: the keys are in the variables, and so a name of their own.
    plain = name.replace("CODE", "VARS").replace(".secboot", "").replace(".strictnx", "")
    return f"{directory}{slash}{plain}"
