"""Which parts of a definition reach into the host, and the definition without them.

A definition that somebody else made is no data only: it names programs that libvirt runs (emulator, scripts of
interfaces), files that QEMU is given (kernels, firmware, consoles, disks), devices, folders, and the user that QEMU
runs as. What is known to do nothing of the kind stands in ``vmkeep.fitting.allowed``; all else is a host part, also
when nobody knows what it does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Final

from lxml import etree

from vmkeep.definition.tree import remove
from vmkeep.fitting.allowed import Allowed, Rules, allowed_domain, takes
from vmkeep.values import dataclass
from vmkeep.xmltext import element_children, element_text, tag_name

MOST_PARTS: Final = 500
"""No real definition has so many; one that has more is not looked at any further."""
_MOST_SHOWN: Final = 120
_RANDOM: Final = frozenset({"/dev/urandom", "/dev/random", "/dev/hwrng"})
# What libvirt itself makes: numbered terminals, and the sockets of channels in its own folders.
_CONSOLE: Final = re.compile(r"/dev/pts/[0-9]+|(/var/lib|/run|/var/run)/libvirt/qemu/channel/(?!.*\.\.)[^\x00-\x1f]+")
_NETWORK_DEVICE: Final = re.compile(r"(vnet|macvtap|macvlan)[0-9]+", re.ASCII)
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", re.ASCII)
_INTERFACES: Final = frozenset({"network", "bridge", "direct", "null"})
_DRIVES: Final = ("cdrom", "floppy")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOwn:
    """What the host itself names, so that a definition may name it too.

    ``images`` are what the restore makes of the disks, by target, and ``media`` what may stay in a drive; ``variables``
    is the file of the UEFI variables. ``emulators``, ``loaders`` and ``templates`` are those that libvirt's
    capabilities and QEMU's descriptions of firmware name; firmware beside one of them is the host's as well.
    ``absent`` are programs and firmware of the definition that are not on the host, and ``replaced_loader`` gives way
    to a firmware that was chosen: these may be in what is yet to be made fit. In a ``session`` QEMU runs as the user,
    who reaches the host's own network anyway.
    """

    images: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    media: frozenset[str] = frozenset()
    variables: str | None = None
    emulators: frozenset[str] = frozenset()
    loaders: frozenset[str] = frozenset()
    templates: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    replaced_loader: str | None = None
    session: bool = False

    def rules(self) -> Rules:
        """Return the rules of the allow-list by name."""
        folders = {path.rpartition("/")[0] for path in self.loaders}

        def is_firmware(own: frozenset[str], path: str) -> bool:
            folder, _, name = path.rpartition("/")
            # Debian describes not all that its package holds (OVMF_CODE_4M.snakeoil.fd of 2022.11).
            return path in own or path in self.absent or (folder in folders and name.endswith(".fd"))

        interfaces = _INTERFACES | ({"user"} if self.session else frozenset())
        return {
            "emulator": (self.emulators | self.absent).__contains__,
            "loader": lambda value: value == self.replaced_loader or is_firmware(self.loaders, value),
            "template": lambda value: is_firmware(self.templates, value),
            "image": lambda value: value in self.media,
            "variables": lambda value: value == self.variables,
            "random": _RANDOM.__contains__,
            "interface": interfaces.__contains__,
            "console": lambda value: _CONSOLE.fullmatch(value) is not None,
            "network-device": lambda value: _NETWORK_DEVICE.fullmatch(value) is not None,
            "zone": lambda value: _ZONE.fullmatch(value) is not None,
        }


@dataclass(frozen=True, slots=True)
class Reaching:
    """A place in a definition that reaches into the host: an element, or an attribute of it."""

    element: etree._Element
    attribute: str | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same place of another definition that says the same."""
        if self.attribute is None:
            return (*_kinds(self.element), _canonical(self.element, outermost=True))
        return (*_kinds(self.element), self.attribute, self.element.get(self.attribute))

    @property
    def is_disk(self) -> bool:
        """Whether it is a whole disk, and no drive for media."""
        is_drive = self.element.get("device") in _DRIVES
        return self.attribute is None and self.element.tag == "disk" and not is_drive


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPart:
    """One such place as it is told.

    ``part`` is where it stands, ``what`` what it is, ``value`` what it names. ``strippable``: the definition holds
    without it.
    """

    part: str
    what: str
    value: str
    strippable: bool
    place: Reaching = field(repr=False, compare=False)


def host_parts(root: etree._Element, own: HostOwn) -> Iterator[HostPart]:
    """Return the parts of a domain that are not known to leave the host alone, in their order."""
    return (as_part(place) for place in reaching(root, own))


def reaching(root: etree._Element, own: HostOwn) -> Iterator[Reaching]:
    """Return where a domain is not known to leave the host alone, in its order."""
    seen: set[etree._Element] = set()
    rules = own.rules()
    for found, named in _unknown(root, allowed_domain(), rules, own):
        whole = _whole(found)
        element, attribute = (found, named) if whole is None else (whole, None)
        if element in seen or any(above in seen for above in element.iterancestors()):
            continue  # it goes with what it stands in
        if attribute is None:
            seen.add(element)
        yield Reaching(element, attribute)


def strip_host_parts(parts: Iterable[HostPart]) -> None:
    """Take the parts out of the tree that they were found in; what cannot be taken out stays."""
    for part in parts:
        if not part.strippable:
            continue
        element, attribute = part.place.element, part.place.attribute
        if attribute is not None:
            element.attrib.pop(attribute, None)
        elif element.getparent() is not None:
            remove(element)


def _unknown(
    element: etree._Element, allowed: Allowed, rules: Rules, own: HostOwn
) -> Iterator[tuple[etree._Element, str | None]]:
    if allowed.anything:
        return
    if element.tag == "disk":
        rules = _rules_of_disk(element, rules, own)
    if not _is_of_a_kind(element, allowed, rules):
        yield element, None
        return
    for name, value in element.attrib.items():
        rule = allowed.attributes.get(str(name))
        if rule is None or not takes(rule, str(value), rules):
            yield element, str(name)
    for child in element_children(element):
        below = allowed.children.get(tag_name(child))
        if below is None:
            yield child, None
        else:
            yield from _unknown(child, below, rules, own)


def _is_of_a_kind(element: etree._Element, allowed: Allowed, rules: Rules) -> bool:
    """Return whether an element is of a kind that is let through, its text too, and a disk said once only."""
    tags = [tag_name(child) for child in element_children(element)]
    if element.tag == "disk" and len(set(tags)) < len(tags):  # which of two counts is libvirt's affair, and changes
        return False
    for kind in allowed.kinds:
        value = element.get(kind)
        if value is not None and not takes(allowed.attributes[kind], value, rules):
            return False
    if allowed.text is not None:
        text = element_text(element).strip()
        return not text or takes(allowed.text, text, rules)
    return not _own_text(element)


def _rules_of_disk(disk: etree._Element, rules: Rules, own: HostOwn) -> Rules:
    """Return the rules with those for one disk: an image is that of its target, and no other's."""
    target = disk.find("target")
    image = own.images.get("" if target is None else target.get("dev", ""))
    if disk.get("device", "disk") in _DRIVES:
        return rules
    return {**rules, "image": lambda value: value == image}


def _own_text(element: etree._Element) -> str:
    return "".join([element.text or "", *(child.tail or "" for child in element)]).strip()


def _device(element: etree._Element) -> etree._Element | None:
    """Return the device that an element is or stands directly in."""
    for each in (element, element.getparent()):
        parent = None if each is None else each.getparent()
        if parent is not None and parent.tag == "devices":
            return each
    return None


def _whole(element: etree._Element) -> etree._Element | None:
    """Return the device that is nothing without this part of it: a disk's source, what an RNG draws from."""
    device = _device(element)
    if device is None or device is element:
        return None
    if element.tag == "backend" and device.tag != "interface":
        return device
    if element.tag == "source" and device.tag == "disk" and device.get("device", "disk") not in _DRIVES:
        return device
    return None


# -- how a part is told ------------------------------------------------------------------------------------------

_WHAT: Final = (
    ("devices/emulator", "the program that libvirt runs as QEMU is none that this host's libvirt names"),
    ("devices/hostdev", "a device of the host"),
    ("devices/filesystem", "a folder of the host"),
    ("devices/disk", "a disk or medium that the point does not hold"),
    ("devices/interface/script", "a script that libvirt runs as root"),
    ("devices/interface/downscript", "a script that libvirt runs as root"),
    ("devices/interface/target", "the name of a network device of the host"),
    ("devices/interface/source", "how a network device of the host is used"),
    ("devices/interface", "a way into the host's network that is not a libvirt network or a bridge"),
    ("devices/shmem", "memory that others on the host share"),
    ("devices/vsock", "a socket between guest and host"),
    ("devices/tpm", "a TPM that is no emulator of libvirt's"),
    ("devices/rng", "a file or socket of the host"),
    ("devices/graphics", "a file, socket or device of the host"),
    ("devices/audio", "sound of the host"),
    ("devices/input", "an input device of the host"),
    ("devices/memory", "memory in a file or of a kind of the host"),
    ("devices/watchdog", "the memory is written to a file of the host whenever the guest wishes"),
    ("os/loader", "firmware that is none which this host's libvirt or QEMU names"),
    ("os/nvram", "a file of the host"),
    ("os/kernel", "a file of the host"),
    ("os/initrd", "a file of the host"),
    ("os/cmdline", "belongs to a kernel of the host"),
    ("os/dtb", "a file of the host"),
    ("os/acpi", "a file of the host"),
    ("os/smbios", "what the host says of itself is shown to the guest"),
    ("sysinfo/entry", "a file of the host"),
    ("seclabel", "the user or label that QEMU runs under"),
    ("memoryBacking", "how memory of the host is taken"),
    ("on_crash", "the memory is written to a file of the host whenever the guest wishes"),
    ("launchSecurity", "keys and firmware of the host's processor"),
    ("cputune", "precedence over what else the host does"),
    ("qemu:commandline", "arguments for QEMU, which may be anything"),
    ("qemu:override", "arguments for QEMU, which may be anything"),
    ("qemu:capabilities", "what libvirt takes QEMU for"),
)
_CONSOLES: Final = frozenset({"serial", "parallel", "console", "channel", "redirdev", "smartcard"})
_UNKNOWN: Final = "not known to leave the host alone"
# Without these the machine would be another one, or none.
_NEEDED: Final = ("os/loader", "os/nvram", "os/type", "vcpu", "memory", "name", "uuid", "devices", "os")


def as_part(place: Reaching) -> HostPart:
    """Return how a place is told."""
    element, attribute = place.element, place.attribute
    steps = _steps(element)
    path = "/".join(name for name, _ in steps)
    told = "/".join(name + (f"[{which}]" if which else "") for name, which in steps) or "domain"
    value = element.get(attribute, "") if attribute is not None else _value(element)
    return HostPart(
        part=told if attribute is None else f"{told}@{attribute}",
        what=_what(path, of_disk=attribute is None or element.tag == "source"),
        value=value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}...",
        strippable=attribute == "template" or path not in ("", *_NEEDED),
        place=place,
    )


def _what(path: str, *, of_disk: bool) -> str:
    first, _, rest = path.partition("/")
    if first == "devices" and rest.partition("/")[0] in _CONSOLES:
        return "a file, device, socket or address of the host"
    if path.startswith("devices/disk") and not (of_disk and path in ("devices/disk", "devices/disk/source")):
        return "how a disk of the host is reached"
    found = [what for prefix, what in _WHAT if path == prefix or path.startswith(f"{prefix}/")]
    return found[0] if found else _UNKNOWN


def _steps(element: etree._Element) -> list[tuple[str, str]]:
    """Return the names from below the domain to the element, each with what tells it from its twins."""
    steps: list[tuple[str, str]] = []
    at: etree._Element | None = element
    while at is not None and (parent := at.getparent()) is not None:
        local = etree.QName(tag_name(at)).localname
        prefix = "qemu" if etree.QName(tag_name(at)).namespace == _QEMU else at.prefix
        steps.append((f"{prefix}:{local}" if prefix else local, _which(at, parent)))
        at = parent
    return steps[::-1]


_QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"


def _which(element: etree._Element, parent: etree._Element) -> str:
    target = element.find("target")
    name = None if target is None else target.get("dev")
    if element.tag == "disk" and name:
        return name
    twins = parent.findall(tag_name(element))
    return str(twins.index(element) + 1) if len(twins) > 1 else ""


def _value(element: etree._Element) -> str:
    """Return what an element names: the first path in it, else its text, else its words."""
    texts = [
        str(text).strip()
        for each in element.iter(etree.Element)
        for text in (each.text or "", *each.attrib.values())
        if str(text).strip()
    ]
    paths = [text for text in texts if text.startswith("/")]
    return paths[0] if paths else " ".join(texts)


def _kinds(element: etree._Element) -> tuple[object, ...]:
    """Return the elements from the domain to this one, by what makes their kind."""
    line = [*reversed(list(element.iterancestors())), element]
    return tuple((tag_name(each), *(each.get(name) for name in ("type", "device", "mode", "name"))) for each in line)


def _canonical(element: etree._Element, *, outermost: bool = False) -> tuple[object, ...]:
    """Return an element as it counts: without white space, comments, and where libvirt put the device."""
    children = [child for child in element_children(element) if not (outermost and child.tag in ("alias", "address"))]
    return (
        tag_name(element),
        tuple(sorted((str(name), str(value)) for name, value in element.attrib.items())),
        _own_text(element),
        tuple(_canonical(child) for child in children),
    )
