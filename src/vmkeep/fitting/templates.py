"""The template of UEFI variables: what libvirt makes those of a VM of that has none yet. No I/O.

As libvirt chooses (qemu_firmware.c): what the definition names; else what goes with the firmware that it names, by
QEMU's descriptions first and then by the settings of libvirt; and of a definition that leaves the choice to it the
first description, by its file's name, that has all that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from lxml import etree

from vmkeep.fitting.machines import known_machine
from vmkeep.fitting.model import FirmwareBuild, MachineType
from vmkeep.xmltext import element_text


def template_in(
    root: etree._Element,
    builds: Iterable[FirmwareBuild],
    configured: Mapping[str, str],
    machines: Mapping[tuple[str, str], tuple[MachineType, ...]],
) -> str | None:
    """Return the template for a VM, by its definition for the next start; None where nothing tells.

    ``builds`` are this host's, in libvirt's order, ``configured`` the templates of its settings by firmware, and
    ``machines`` its machine types, by type and architecture.
    """
    system = root.find("os")
    if system is None:
        return None
    nvram = system.find("nvram")
    named = None if nvram is None else nvram.get("template")
    if named:
        return named
    loader = system.find("loader")
    path = "" if loader is None else element_text(loader).strip()
    if not path:
        return next(
            (build.template for build in builds if build.described and _is_asked_for(build, root, machines)), None
        )
    of_it = [build for build in builds if build.code == path and build.template is not None]
    described = next((build.template for build in of_it if build.described), None)
    return described or configured.get(path) or next((build.template for build in of_it), None)


def _is_asked_for(
    build: FirmwareBuild, root: etree._Element, machines: Mapping[tuple[str, str], tuple[MachineType, ...]]
) -> bool:
    kind, loader = root.find("os/type"), root.find("os/loader")
    arch = ("" if kind is None else kind.get("arch")) or "x86_64"
    machine = ("" if kind is None else kind.get("machine")) or ""
    known = known_machine(machines.get((root.get("type", ""), arch), ()), machine)
    if known is not None and known.canonical is not None:
        machine = known.canonical
    secure = None if loader is None else loader.get("secure")
    without_smm = root.find("features/smm[@state='off']") is not None
    return (
        build.arch in (None, arch)
        and (not build.machines or any(fnmatchcase(machine, pattern) for pattern in build.machines))
        and _feature(root, "secure-boot") in (None, build.secure_boot)
        and _feature(root, "enrolled-keys") in (None, build.enrolled_keys)
        and not (secure == "yes" and not build.needs_smm)
        and not (secure == "no" and build.secure_boot)
        and not (without_smm and build.needs_smm)
    )


def _feature(root: etree._Element, name: str) -> bool | None:
    feature = root.find(f"os/firmware/feature[@name='{name}']")
    return None if feature is None else feature.get("enabled") == "yes"
