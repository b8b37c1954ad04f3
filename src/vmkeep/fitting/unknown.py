"""What this libvirt does not know in a definition, and what becomes of it.

Taken out is what concerns the host alone, and what stays in the machine without being named. What the guest may notice
is taken out as well, because libvirt would drop it without a word, and named. A word that libvirt does not know is a
person's to replace, unless the device can be left out. Source of the list: the schemas of libvirt 9.0 and 11.3 laid
side by side; what is not in it may be noticed.
"""

from __future__ import annotations

import re
from typing import Final

from lxml import etree

from vmkeep.definition.tree import remove
from vmkeep.fitting.devices import ELSEWHERE
from vmkeep.fitting.draft import Draft, part_of
from vmkeep.fitting.model import Misfit
from vmkeep.fitting.vocabulary import Unknown
from vmkeep.xmltext import tag_name

# Paths without what tells twins apart. The guest sees nothing of these: threads, descriptors, names on the host, and
# limits of speed.
_OF_THE_HOST: Final = frozenset(
    {
        "devices/audio@runtimeDir",
        "devices/controller/driver/iothreads",
        "devices/disk/driver/iothreads",
        "devices/disk/driver@discard_no_unref",
        "devices/disk/throttlefilters",
        "devices/filesystem/binary/openfiles",
        "devices/graphics@username",
        "devices/hostdev/driver@model",
        "devices/interface/driver@model",
        "devices/interface/mac@currentAddress",
        "devices/memory/target@dynamicMemslots",
        "devices/tpm/backend/profile",
        "devices/tpm/backend@debug",
        "iothreadids/iothread/poll",
        "throttlegroups",
    }
)
# These say in newer releases what older ones take for granted.
_TAKEN_FOR_GRANTED: Final = {
    "os/loader@format": "raw",
    "os/nvram@format": "raw",
    "os/nvram@templateFormat": "raw",
    "devices/interface/backend@type": "default",
}
_NOT_SET: Final = "if it uses the watchdog, that does not reset the machine any more"
_TWINS: Final = re.compile(r"\[[^]]*\]")


def fit_unknown(draft: Draft) -> None:
    """Take out what libvirt does not know."""
    if draft.host.vocabulary is None:
        return
    for unknown in draft.host.vocabulary.unknown(draft.root):
        if unknown.element.getroottree().getroot() is not draft.root:
            continue  # it went with what it was in
        if unknown.value is not None:
            _fit_value(draft, unknown)
        else:
            _fit_name(draft, unknown)


def _fit_name(draft: Draft, unknown: Unknown) -> None:
    element, attribute = unknown.element, unknown.attribute
    part = part_of(element, attribute)
    path = _TWINS.sub("", part)
    value = element.get(attribute) if attribute is not None else None
    told = part.rpartition("@")[2] if attribute is not None else f"<{tag_name(element)}>"
    what = f"libvirt {draft.host.release} does not know {told}" + (f"='{value}'" if value is not None else "")
    if attribute is not None and path in _TAKEN_FOR_GRANTED and value != _TAKEN_FOR_GRANTED[path]:
        draft.found(Misfit(part=part, what=what, remedy=_NVRAM_FORMAT if path.startswith("os/") else ELSEWHERE))
    else:
        silent = path in _OF_THE_HOST or path in _TAKEN_FOR_GRANTED
        draft.found(
            Misfit(
                part=part,
                what=what,
                remedy="It can be left out, as libvirt itself would do without a word.",
                change=f"{part} is left out",
                guest="" if silent else f"it may miss what {part} gave it",
            )
        )
    if attribute is not None:
        del element.attrib[attribute]
    else:
        remove(element)


_NVRAM_FORMAT: Final = (
    "libvirt 9.2 and later know it. On this host: restore with --output, make nvram.fd raw "
    "(qemu-img convert -O raw), and define domain.xml without the format."
)


def _fit_value(draft: Draft, unknown: Unknown) -> None:
    element, attribute, value = unknown.element, unknown.attribute or "", unknown.value or ""
    part = part_of(element, attribute)
    path = _TWINS.sub("", part)
    known = ", ".join(unknown.known)
    what = f"libvirt {draft.host.release} does not know {path.rpartition('/')[2]}='{value}' (it knows {known})"
    if path == "devices/watchdog@model":
        draft.found(_watchdog(draft, part, what, value))
        remove(element)
    elif _TAKEN_FOR_GRANTED.get(path) == value:
        draft.found(Misfit(part=part, what=what, remedy="It says what is so without it.", change=f"{part} is left out"))
        del element.attrib[attribute]
    else:
        draft.found(Misfit(part=part, what=what, remedy=ELSEWHERE))
        _take_away(element)


def _watchdog(draft: Draft, part: str, what: str, model: str) -> Misfit:
    """libvirt adds itco to every q35 VM (11.3 does, 9.0 does not know it): the chipset has that watchdog anyway."""
    kind = draft.root.find("os/type")
    machine = ("" if kind is None else kind.get("machine")) or ""
    built_in = model == "itco" and "q35" in machine
    return Misfit(
        part=part,
        what=what,
        remedy="The chipset has this watchdog also when the definition does not say so; it then does nothing."
        if built_in
        else "It can be left out.",
        change=f"watchdog {model} is left out of the definition",
        guest=_NOT_SET if built_in else "it has no watchdog of this model",
    )


def _take_away(element: etree._Element) -> None:
    """Take a whole device away, so that what else libvirt refuses is heard; the definition is not used then."""
    parent = element.getparent()
    while parent is not None and parent.tag not in ("devices", "domain"):
        element, parent = parent, parent.getparent()
    if parent is not None and element.tag not in ("os", "devices", "name", "memory", "vcpu"):
        remove(element)
