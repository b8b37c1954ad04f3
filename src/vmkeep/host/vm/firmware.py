"""The UEFI firmware of this host: its builds, and the template that the variables of a VM are made of."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from lxml import etree

from vmkeep.fitting import FirmwareBuild, firmware_files, has_secure_name, read_firmware, read_guests, template_of
from vmkeep.fitting.templates import template_in
from vmkeep.hypervisor import Hypervisor

_DESCRIPTIONS: Final = (Path("/usr/share/qemu/firmware"), Path("/etc/qemu/firmware"))
_SETTINGS: Final = Path("/etc/libvirt/qemu.conf")
# nvram = [ "CODE:VARS", ... ]
_PAIRS: Final = re.compile(r"^[ \t]*nvram[ \t]*=[ \t]*\[(.*?)\]", re.MULTILINE | re.DOTALL)
_PAIR: Final = re.compile(r"[\"']([^\"':]+):([^\"':]+)[\"']")


def template_of_vm(hypervisor: Hypervisor, root: etree._Element) -> str | None:
    """Return the file that libvirt makes the UEFI variables of a VM of; ``root`` is its definition. None: not known."""
    loader = (root.findtext("os/loader") or "").strip()
    builds = firmware_builds(filter(None, [loader]))
    machines = read_guests(hypervisor.capabilities()).machines
    return template_in(root, builds, _configured(), machines)


def _configured() -> Mapping[str, str]:
    """Return the templates that the settings of libvirt name, by firmware."""
    try:
        text = _SETTINGS.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    plain = "\n".join(line.partition("#")[0] for line in text.splitlines())
    return {code: template for pairs in _PAIRS.findall(plain) for code, template in _PAIR.findall(pairs)}


def firmware_builds(loaders: Iterable[str]) -> tuple[FirmwareBuild, ...]:
    """Return the builds that QEMU's descriptions name, in libvirt's order, and the others that libvirt lists."""
    documents = firmware_descriptions()
    templates = {code: template_of(code) for code in loaders}
    sizes = _sizes([*(path for text in documents for path in firmware_files(text)), *templates, *templates.values()])
    described = [build for text in documents for build in read_firmware(text, sizes)]
    known = {build.code for build in described}
    others = [
        FirmwareBuild(
            code=code,
            template=template,
            variables_bytes=sizes[template],
            secure_boot=(secure := has_secure_name(code)),
            enrolled_keys=".ms." in code,
            needs_smm=secure,
            described=False,
        )
        for code, template in templates.items()
        if code not in known and code in sizes and template != code and template in sizes
    ]
    return (*described, *others)


def firmware_descriptions() -> list[str]:
    """Return the descriptions of firmware; one in /etc stands for that of its name, and an empty one for none."""
    found: dict[str, Path] = {}
    for directory in _DESCRIPTIONS:
        with contextlib.suppress(OSError):
            found |= {path.name: path for path in directory.glob("*.json")}
    documents = []
    for _, path in sorted(found.items()):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            documents.append(path.read_text(encoding="utf-8"))
    return documents


def _sizes(paths: Iterable[str]) -> dict[str, int]:
    sizes = {}
    for path in paths:
        with contextlib.suppress(OSError):
            sizes[path] = Path(path).stat().st_size
    return sizes
