"""The firmware: this host's build of the same kind, for which the UEFI variables of the point are made.

What makes a kind is whether the build has Secure Boot (and so needs SMM), and the size of its variables: on Debian 2M
builds have 128 KiB of them and 4M builds 528 KiB, and a build finds nothing in variables of another size. Its version
may differ: variables are read by newer and older builds alike. The guest measures the variables into PCR 7 (seen: equal
values with edk2 2022.11 and 2025.02), the build into PCR 0, and what goes with it into 1 and 4 (seen: other values).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

from lxml import etree

from vmkeep.definition.tree import child_or_new, remove, set_text
from vmkeep.fitting.devices import ELSEWHERE
from vmkeep.fitting.draft import Draft
from vmkeep.fitting.machines import known_machine
from vmkeep.fitting.model import FirmwareBuild, Misfit
from vmkeep.xmltext import element_text

_SECURE_NAMES: Final = ("secboot", ".ms.", "secure", "snakeoil")
_MEASURED = "its firmware is another build: what it sealed to PCR 0 or 4 stays shut, what it sealed to PCR 7 opens"


def has_secure_name(path: str) -> bool:
    """Return whether a firmware has Secure Boot, by the names that distributions give their builds."""
    name = path.rpartition("/")[2].replace("no-secboot", "")
    return any(part in name for part in _SECURE_NAMES)


def fit_firmware(draft: Draft) -> None:
    """Hold loader and variables against the builds of this host, and name one of these where it must be."""
    system = draft.root.find("os")
    if system is None:
        return
    loader = system.find("loader")
    path = _path(loader)
    if draft.wish.firmware is not None:
        _choose_firmware(draft, system, draft.wish.firmware)
    elif system.get("firmware") == "efi" and not path:
        _fit_automatic(draft, system)
    elif path and (loader is None or loader.get("type") != "rom"):
        _fit_named(draft, system, path)
    elif path and path not in draft.host.files:
        draft.found(Misfit(part="os/loader", what=f"{path} is not on this host", remedy=f"Put it there. {ELSEWHERE}"))


def pin_firmware(draft: Draft) -> bool:
    """Name the firmware in full and take its automatic choice out; False when there was none or no build fits.

    libvirt 9.0 refuses a loader beside ``firmware='efi'``; newer releases fill it in there by themselves.
    """
    system = draft.root.find("os")
    if system is None or system.get("firmware") != "efi":
        return False
    path = _path(system.find("loader"))
    build = _build_at(draft, path) or _equal_build(draft, system, path)
    if build is None:
        return False
    _name(draft, system, build)
    draft.found(
        Misfit(
            part="os@firmware",
            what="this host's libvirt takes no loader in a definition that leaves the choice of firmware to it",
            remedy="The firmware can be named in full.",
            change=f"the firmware is {build.code} by name, with variables as {build.template}",
        )
    )
    return True


def _choose_firmware(draft: Draft, system: etree._Element, chosen: str) -> None:
    path = _path(system.find("loader"))
    if path == chosen and system.get("firmware") is None:
        return
    like = _equal_build(draft, system, path)
    secure = _is_secure(system, path)
    needs_smm = draft.root.find("features/smm[@state='on']") is not None if secure is None else secure
    build = FirmwareBuild(
        code=chosen,
        template=None if like is None else like.template,
        variables_bytes=None,
        secure_boot=needs_smm,
        enrolled_keys=False,
        needs_smm=needs_smm,
    )
    _name(draft, system, build)
    draft.found(
        Misfit(
            part="os/loader",
            what="the firmware was to be replaced",
            remedy="Leave out --firmware to keep it.",
            change=f"firmware {path or 'of the choice of libvirt'} became {chosen}",
            guest="its firmware is the one that was chosen",
            chosen=True,
        )
    )


def _fit_automatic(draft: Draft, system: etree._Element) -> None:
    allowed = draft.host.enums.get("os.firmware")
    if allowed is not None and "efi" not in allowed:
        _lacking(draft, "this host has no UEFI firmware that libvirt can choose")
        return
    possible = [build for build in _possible(draft, system, "") if build.described]
    fitting = [build for build in possible if _takes(build, draft)]
    if not possible or len(fitting) == len(possible):
        return  # whichever libvirt chooses; without one it says why at the first start
    if not fitting:
        _lacking(draft, f"no UEFI firmware of this host is made for {_size(draft)} of variables, as the point has")
        return
    _name(draft, system, fitting[0])
    draft.found(
        Misfit(
            part="os@firmware",
            what=f"libvirt may choose a firmware that is not made for {_size(draft)} of variables, as the point has",
            remedy="The firmware can be named in full.",
            change=f"the firmware is {fitting[0].code} by name, with variables as {fitting[0].template}",
        )
    )


def _fit_named(draft: Draft, system: etree._Element, path: str) -> None:
    here = _build_at(draft, path)
    if here is not None and not _takes(here, draft):
        what = f"{path} of this host is not made for {_size(draft)} of variables, as the point has"
    elif path not in draft.host.files:
        what = f"{path} is not on this host"
    else:
        _fit_template(draft, system, here)
        return
    build = _equal_build(draft, system, path)
    if build is None:
        _lacking(draft, what)
        return
    _name(draft, system, build)
    draft.found(
        Misfit(
            part="os/loader",
            what=what,
            remedy=f"{build.code} is this host's build of the same kind.",
            change=f"firmware {path} became {build.code}",
            guest=_MEASURED,
        )
    )


def _fit_template(draft: Draft, system: etree._Element, build: FirmwareBuild | None) -> None:
    """Name this host's template of the variables: it counts when they are made anew (``virsh start --reset-nvram``)."""
    nvram = system.find("nvram")
    template = None if nvram is None else nvram.get("template")
    if nvram is None or template is None or template in draft.host.files or build is None or build.template is None:
        return
    nvram.set("template", build.template)
    nvram.attrib.pop("templateFormat", None)
    draft.found(
        Misfit(
            part="os/nvram@template",
            what=f"{template} is not on this host",
            remedy="It is needed only when the variables are made anew.",
            change=f"template {template} became {build.template}",
        )
    )


def _lacking(draft: Draft, what: str) -> None:
    draft.found(
        Misfit(
            part="os/loader",
            what=what,
            remedy="Install the firmware (Debian's package ovmf; 2M builds are in Debian 12 only), or copy the VM's "
            f"own to the same place. {ELSEWHERE}",
        )
    )
    system = draft.root.find("os")
    assert system is not None, "a firmware stands in <os>"
    for child in [*system.findall("loader"), *system.findall("nvram"), *system.findall("firmware")]:
        remove(child)
    system.attrib.pop("firmware", None)


def _equal_build(draft: Draft, system: etree._Element, path: str) -> FirmwareBuild | None:
    fitting = [build for build in _possible(draft, system, path) if _takes(build, draft)]
    return fitting[0] if fitting else None


def _possible(draft: Draft, system: etree._Element, path: str) -> list[FirmwareBuild]:
    """Return the builds of the same kind for this machine, the best first."""
    kind = system.find("type")
    arch = None if kind is None else kind.get("arch")
    machine = ("" if kind is None else kind.get("machine")) or ""
    known = known_machine(draft.host.machines, machine)
    if known is not None and known.canonical is not None:
        machine = known.canonical
    secure = _is_secure(system, path)
    nvram = system.find("nvram")
    template = ((None if nvram is None else nvram.get("template")) or "").rpartition("/")[2]
    enrolled = _feature(system, "enrolled-keys") or ".ms." in template
    names = (path.rpartition("/")[2], template)

    domain = system.getparent()
    smm = domain is not None and domain.find("features/smm[@state='on']") is not None

    def rank(build: FirmwareBuild) -> tuple[bool, bool, bool, bool, bool]:
        """Sort the best first; one that needs SMM only where the definition has it, where it says no more."""
        same_names = build.code.rpartition("/")[2] == names[0], (build.template or "").rpartition("/")[2] == names[1]
        others = build.needs_smm != smm, build.enrolled_keys != enrolled, not build.described
        return (not same_names[0], not same_names[1], *others)

    found = [
        build
        for build in draft.host.firmware
        if build.arch in (None, arch)
        and (not build.machines or any(fnmatchcase(machine, pattern) for pattern in build.machines) or machine == "")
        and (secure is None or build.secure_boot is secure)
        and build.template is not None
    ]
    return sorted(found, key=rank)


def _is_secure(system: etree._Element, path: str) -> bool | None:
    """Return whether the firmware has Secure Boot; None where the definition leaves it to libvirt."""
    loader = system.find("loader")
    if (loader is not None and loader.get("secure") == "yes") or _feature(system, "secure-boot"):
        return True
    if path:
        return has_secure_name(path)
    stated = loader is not None and loader.get("secure") == "no"
    return False if stated or _feature(system, "secure-boot") is False else None


def _feature(system: etree._Element, name: str) -> bool | None:
    feature = system.find(f"firmware/feature[@name='{name}']")
    return None if feature is None else feature.get("enabled") == "yes"


def _build_at(draft: Draft, path: str) -> FirmwareBuild | None:
    return next((build for build in draft.host.firmware if path and build.code == path), None)


def _takes(build: FirmwareBuild, draft: Draft) -> bool:
    """Return whether the variables of the point are of the size that the build is made for, as far as that is known."""
    stored = draft.variables
    if stored is None or stored.format != "raw" or build.variables_bytes is None:
        return True
    return build.variables_bytes == stored.size_bytes


def _name(draft: Draft, system: etree._Element, build: FirmwareBuild) -> None:
    """Write the firmware into the definition, and take out what leaves its choice to libvirt."""
    system.attrib.pop("firmware", None)
    for choice in system.findall("firmware"):
        remove(choice)
    loader = child_or_new(system, "loader")
    set_text(loader, build.code)
    loader.set("readonly", "yes")
    loader.set("type", "pflash")
    loader.attrib.pop("format", None)  # raw, as are all that are taken for builds here
    if build.needs_smm:
        loader.set("secure", "yes")
        _switch_smm_on(system)
    nvram = system.find("nvram")
    if nvram is None and draft.variables is not None and draft.variables.path:
        nvram = child_or_new(system, "nvram")
        set_text(nvram, draft.variables.path)
    if nvram is not None and build.template is not None:
        nvram.set("template", build.template)
        nvram.attrib.pop("templateFormat", None)


def _switch_smm_on(system: etree._Element) -> None:
    """libvirt does so when it chooses such a firmware itself, and demands it when it is named (9.0, tried)."""
    domain = system.getparent()
    assert domain is not None, "<os> stands in <domain>"
    smm = child_or_new(child_or_new(domain, "features"), "smm")
    smm.set("state", "on")


def _path(loader: etree._Element | None) -> str:
    return "" if loader is None else element_text(loader).strip()


def _size(draft: Draft) -> str:
    return "this size" if draft.variables is None else f"{draft.variables.size_bytes // 1024} KiB"
