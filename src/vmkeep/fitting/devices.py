"""What of kind, emulator, CPU and devices a host's libvirt and QEMU support, by their own lists."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from lxml import etree

from vmkeep.definition.tree import remove, set_text
from vmkeep.fitting.draft import Draft, part_of
from vmkeep.fitting.model import CpuModel, Misfit
from vmkeep.values import dataclass
from vmkeep.xmltext import element_text

ELSEWHERE: Final = (
    "Restore to files (--output DIR), change domain.xml as you decide, and define it; or restore on a host that has it."
)


@dataclass(frozen=True, slots=True)
class _Listed:
    """An attribute whose values libvirt lists: the elements that it stands in, and the list's name."""

    xpath: str
    attribute: str
    enum: str


_LISTED: Final = (
    _Listed("devices/disk", "device", "disk.diskDevice"),
    _Listed("devices/disk", "model", "disk.model"),
    _Listed("devices/disk/target", "bus", "disk.bus"),
    _Listed("devices/graphics", "type", "graphics.type"),
    _Listed("devices/video/model", "type", "video.modelType"),
    _Listed("devices/hostdev", "mode", "hostdev.mode"),
    _Listed("devices/rng", "model", "rng.model"),
    _Listed("devices/rng/backend", "model", "rng.backendModel"),
    _Listed("devices/filesystem/driver", "type", "filesystem.driverType"),
    _Listed("devices/tpm", "model", "tpm.model"),
    _Listed("devices/tpm/backend", "type", "tpm.backendModel"),
    _Listed("devices/tpm/backend", "version", "tpm.backendVersion"),
    _Listed("devices/redirdev", "bus", "redirdev.bus"),
    _Listed("devices/channel", "type", "channel.type"),
    _Listed("devices/crypto", "model", "crypto.model"),
    _Listed("devices/crypto/backend", "model", "crypto.backendModel"),
    _Listed("devices/panic", "model", "panic.model"),
    _Listed("memoryBacking/source", "type", "memoryBacking.sourceType"),
)
# What a list is made from besides QEMU itself: programs and modules in packages of their own, by Debian's names.
_PACKAGES: Final = {
    "tpm": "swtpm and swtpm-tools",
    "spice": "qemu-system-modules-spice",
    "qxl": "qemu-system-modules-spice",
    "spicevmc": "qemu-system-modules-spice",
    "virtiofs": "virtiofsd",
}


def fit_kind(draft: Draft) -> bool:
    """Say when the host cannot run such a VM at all; nothing else can be looked at then."""
    kind = draft.root.get("type", "")
    system = draft.root.find("os/type")
    arch = None if system is None else system.get("arch")
    if arch is None or (kind, arch) in draft.host.kinds:
        return True
    hint = (
        "It lacks /dev/kvm: load the module kvm_intel or kvm_amd, or allow nested virtualisation. "
        if kind == "kvm" and ("qemu", arch) in draft.host.kinds
        else ""
    )
    draft.found(
        Misfit(part="domain@type", what=f"this host runs no VM of type {kind} for {arch}", remedy=hint + ELSEWHERE)
    )
    return False


def fit_emulator(draft: Draft) -> None:
    """Name this host's QEMU where the definition's own is not here."""
    emulator = draft.root.find("devices/emulator")
    path = "" if emulator is None else element_text(emulator).strip()
    if emulator is None or not path or path in draft.host.files or draft.host.emulator is None:
        return
    set_text(emulator, draft.host.emulator)
    draft.found(
        Misfit(
            part="devices/emulator",
            what=f"{path} is not on this host",
            remedy="Install it, or let it be replaced.",
            change=f"emulator {path} became {draft.host.emulator}",
        )
    )


def fit_tpm(draft: Draft) -> None:
    """Say when swtpm here cannot be this TPM: libvirt would define the VM, and not start it."""
    for tpm in draft.root.findall("devices/tpm"):
        backend = tpm.find("backend")
        if backend is None or backend.get("type") != "emulator":
            continue  # what the lists leave out libvirt may still have: its parser decides
        version = backend.get("version")
        versions = draft.host.enums.get("tpm.backendVersion")
        backends = draft.host.enums.get("tpm.backendModel")
        if "tpm" in draft.host.unsupported or (backends is not None and "emulator" not in backends):
            what = "this host has no emulated TPM"
        elif version is not None and versions is not None and version not in versions:
            what = f"this host emulates no TPM {version} ({_has('version', versions)})"
        else:
            continue
        remedy = f"Install {_PACKAGES['tpm']}, and restart libvirtd. {ELSEWHERE}"
        draft.found(Misfit(part=part_of(tpm), what=what, remedy=remedy))
        remove(tpm)


def supported(draft: Draft, device: etree._Element) -> str:
    """Return what of the kind of a device this host has instead, in sentences; empty where libvirt has no list of it.

    The lists explain a refusal and do not make one: libvirt leaves out of them what it still takes.
    """
    sentences = []
    for listed in _LISTED:
        allowed = draft.host.enums.get(listed.enum)
        for element in draft.root.findall(listed.xpath):
            value = element.get(listed.attribute)
            if (
                value is None
                or allowed is None
                or value in allowed
                or device not in (element, *element.iterancestors())
            ):
                continue
            sentences.append(f"This host lacks {listed.attribute} {value}: {_has(listed.attribute, allowed)}.")
            if value in _PACKAGES:
                sentences.append(f"It may come with the package {_PACKAGES[value]}.")
    return " ".join(sentences)


def _has(attribute: str, allowed: Collection[str]) -> str:
    return f"it has {attribute} {', '.join(sorted(allowed))}" if allowed else f"it has no {attribute} at all"


# -- the CPU ---------------------------------------------------------------------------------------------------


def fit_cpu(draft: Draft) -> None:
    """Put in the CPU that was chosen, or say that this host cannot give the one there is."""
    cpu = draft.root.find("cpu")
    if draft.wish.cpu is not None:
        _choose_cpu(draft, cpu, draft.wish.cpu)
        return
    if cpu is None or not draft.host.cpu_modes:
        return
    mode = cpu.get("mode", "custom")
    if mode not in draft.host.cpu_modes:
        _lacking_cpu(draft, cpu, f"this host gives no CPU of mode {mode}")
        return
    model = cpu.find("model")
    name = "" if model is None else element_text(model).strip()
    if mode != "custom" or model is None or not name or not draft.host.cpu_models:
        return
    known = {each.name: each for each in draft.host.cpu_models}
    if name not in known:
        twin = _twin(draft.host.cpu_models, name)
        if twin is None:
            _lacking_cpu(draft, cpu, f"this host's libvirt knows no CPU model {name}")
            return
        set_text(model, twin.name)
        draft.found(
            Misfit(
                part="cpu/model",
                what=f"this host's libvirt knows no CPU model {name}",
                remedy=f"{twin.name} is another name of the same model.",
                change=f"CPU model {name} became {twin.name}, which is the same",
            )
        )
        name = twin.name
    if draft.root.get("type") == "kvm" and not known[name].usable and cpu.get("check", "partial") != "none":
        lacking = f" (it lacks {', '.join(known[name].blockers)})" if known[name].blockers else ""
        _lacking_cpu(draft, cpu, f"this host's processor cannot be a {name}{lacking}")


def _twin(models: tuple[CpuModel, ...], name: str) -> CpuModel | None:
    """Return the model that is the same under another name.

    libvirt lists the canonical name of an alias from 11.0 on, and QEMU's X-v1 is what X was before it had versions.
    """
    return next(
        (each for each in models if each.canonical == name or f"{each.name}-v1" == name),
        None,
    )


def _lacking_cpu(draft: Draft, cpu: etree._Element, what: str) -> None:
    usable = sorted(each.name for each in draft.host.cpu_models if each.usable)
    offered = tuple(mode for mode in ("host-model", "maximum") if mode in draft.host.cpu_modes) + tuple(usable)
    draft.found(
        Misfit(
            part="cpu",
            what=what,
            remedy="Choose another: --cpu host-model (the nearest to this host's own), or a model by name. The guest "
            "sees another processor.",
            option="--cpu",
            choices=offered,
        )
    )
    remove(cpu)


def _choose_cpu(draft: Draft, cpu: etree._Element | None, chosen: str) -> None:
    before = "the default" if cpu is None else (cpu.findtext("model") or "").strip() or cpu.get("mode", "custom")
    if before == chosen:
        return
    if cpu is None:
        cpu = etree.SubElement(draft.root, "cpu")
    topology = cpu.find("topology")
    numa = cpu.find("numa")
    tail = cpu.tail
    cpu.clear()
    cpu.tail = tail
    if chosen in draft.host.cpu_modes and chosen != "custom":
        cpu.set("mode", chosen)
    else:
        cpu.set("mode", "custom")
        cpu.set("match", "exact")
        etree.SubElement(cpu, "model", fallback="forbid").text = chosen
    cpu.extend([part for part in (topology, numa) if part is not None])
    draft.found(
        Misfit(
            part="cpu",
            what="the CPU was to be replaced",
            remedy="Leave out --cpu to keep it.",
            change=f"CPU {before} became {chosen}",
            guest="its processor is another one; Windows may ask to be activated again",
            chosen=True,
        )
    )
