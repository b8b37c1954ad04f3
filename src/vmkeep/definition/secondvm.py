"""A definition made one of a second VM that runs beside the first: what only one of two can have.

Name, UUID and places of disks are ``remap``'s. Here go the ends of the host that a device has for itself: sockets and
files of consoles, ports, numbers of vsock, names of network devices. What is a matter of the guest stays, as serial
numbers of disks do, because guests look for those.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from lxml import etree

from vmkeep.definition.reading import read_domain
from vmkeep.definition.tree import remove
from vmkeep.values import dataclass
from vmkeep.xmltext import element_children, serialise_xml, tag_name

_CONSOLES: Final = ("serial", "parallel", "console", "channel")
_LIBVIRTS_OWN: Final = "/qemu/channel/"
# What a VM has alone, or writes to, and for which there is no second one to choose.
_SHARED: Final = (
    ("devices/hostdev", "a device of the host"),
    ("devices/filesystem", "a folder of the host"),
    ("devices/shmem", "memory that is shared with others"),
    ("devices/memory/source/path", "memory that lies in a file"),
    ("devices/interface[@type='hostdev']", "a network device of the host"),
    ("devices/interface[@type='vhostuser']", "a socket of a switch"),
    ("devices/interface[@type='vdpa']", "a network device of the host"),
    ("devices/tpm/backend[@type='passthrough']", "the TPM of the host"),
    ("devices/tpm/backend[@type='external']", "a TPM that libvirt does not start"),
    ("devices/redirdev[@type='tcp']", "a network address of the host"),
    ("devices/lease", "a lease"),
)


@dataclass(frozen=True, slots=True)
class SecondVm:
    """``definition`` is the second VM's; ``told`` are sentences about what is other than in the first, or is shared."""

    definition: str
    told: tuple[str, ...] = ()


def second_vm(xml: str, before: str, after: str) -> SecondVm:
    """Return the definition of a VM called ``after`` in which nothing of the host is held that ``before`` has alone.

    ``xml`` is an inactive definition. Raises DefinitionError when it is no domain.
    """
    root = read_domain(xml)
    places = _Places(before, after)
    told = [
        *_consoles(root, places),
        *_graphics(root, places),
        *_numbers(root),
        *_pstores(root, places),
        *_shared(root, after),
    ]
    return SecondVm(serialise_xml(root), tuple(told))


def encrypt_tpm_with(xml: str, secret: str) -> str:
    """Return a definition whose emulated TPM is encrypted with the secret of this UUID, if it is encrypted."""
    root = read_domain(xml)
    for encryption in root.findall("devices/tpm/backend/encryption"):
        encryption.set("secret", secret)
    return serialise_xml(root)


class _Places:
    """Paths that carry the second VM's name in place of the first's."""

    def __init__(self, before: str, after: str) -> None:
        self._before = before
        self._after = after

    def of(self, path: str) -> str:
        place = PurePosixPath(path)
        if self._before and self._before in place.name:
            return str(place.with_name(place.name.replace(self._before, self._after)))
        return str(place.with_name(f"{self._after}-{place.name}")) if place.name else path


def _consoles(root: etree._Element, places: _Places) -> Iterator[str]:
    done: set[str] = set()
    for tag, device in ((each, found) for each in _CONSOLES for found in root.findall(f"devices/{each}")):
        source, log = device.find("source"), device.find("log")
        if log is not None and log.get("file"):
            yield from _moved(log, "file", places, f"the log of its {tag}", done)
        if source is None:
            continue
        kind, path = device.get("type"), source.get("path") or ""
        if kind == "unix" and _LIBVIRTS_OWN in path:
            remove(source)  # libvirt makes one for each VM
        elif kind == "unix" and path and source.get("mode") != "connect":
            yield from _moved(source, "path", places, f"the socket of its {tag}", done)
        elif kind == "file" and path:
            yield from _moved(source, "path", places, f"the file of its {tag}", done)
        elif kind in ("dev", "pipe") and path and path not in done:
            done.add(path)
            yield f"Its {tag} is {path}, which both VMs have: only one of them can use it."
        elif kind in ("tcp", "udp") and source.get("mode") != "connect":
            port = source.get("service") or ""
            if port not in done:
                done.add(port)
                yield f"Its {tag} listens on port {port}, as that of the original: only one of them can run."


def _moved(element: etree._Element, attribute: str, places: _Places, what: str, done: set[str]) -> Iterator[str]:
    """Give an element the second VM's path. A serial port is there once more as a console, with the same path."""
    path = places.of(element.get(attribute) or "")
    element.set(attribute, path)
    if path not in done:
        done.add(path)
        yield f"{what[0].upper()}{what[1:]} is {path}."


def _graphics(root: etree._Element, places: _Places) -> Iterator[str]:
    for graphics in root.findall("devices/graphics"):
        kind = graphics.get("type") or ""
        fixed = graphics.get("autoport") != "yes" and any(
            (graphics.get(name) or "-1") not in ("-1", "0") for name in ("port", "tlsPort")
        )
        if fixed:
            for name in ("port", "tlsPort"):
                if name in graphics.attrib:
                    graphics.set(name, "-1")
            graphics.set("autoport", "yes")
            yield f"Its {kind} display is on a port that libvirt chooses: the original has a fixed one."
        if (graphics.get("websocket") or "-1") != "-1":
            graphics.set("websocket", "-1")
        listening = [each for each in graphics.findall("listen") if each.get("socket")]
        for element in [graphics, *listening] if graphics.get("socket") or listening else ():
            if element.get("socket"):
                path = places.of(element.get("socket") or "")
                element.set("socket", path)
                if element is not graphics or not listening:
                    yield f"The socket of its {kind} display is {path}."


def _numbers(root: etree._Element) -> Iterator[str]:
    for cid in root.findall("devices/vsock/cid"):
        if cid.get("auto") != "yes":
            yield f"Its vsock has an address that libvirt chooses: the original has {cid.get('address')}."
        cid.set("auto", "yes")
        cid.attrib.pop("address", None)
    for interface in root.findall("devices/interface"):
        target = interface.find("target")
        if target is not None and target.get("dev") and interface.get("type") != "vhostuser":
            yield f"The name of its network device is libvirt's choice: the original has {target.attrib.pop('dev')}."
            if not target.attrib and len(target) == 0:
                remove(target)
        for parameters in interface.findall("virtualport/parameters"):
            parameters.attrib.pop("interfaceid", None)
            parameters.attrib.pop("instanceid", None)


def _pstores(root: etree._Element, places: _Places) -> Iterator[str]:
    for path in root.findall("devices/pstore/path"):
        if path.text:
            path.text = places.of(path.text)
            yield f"The file of its pstore is {path.text}."


def _shared(root: etree._Element, after: str) -> Iterator[str]:
    for path, what in _SHARED:
        if root.findall(path):
            yield f"{after} has {what} that the original has too: where only one of them can, the other does not start."
    if any(tag_name(child).endswith("}commandline") for child in element_children(root)):
        yield f"Arguments of QEMU's command line are in {after} as they are in the original."
