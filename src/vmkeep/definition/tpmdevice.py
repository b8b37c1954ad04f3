"""The TPM of a definition taken out and put in: one element, and nothing else changes.

A POWER guest may have a second device, the proxy to the host's TPM (``spapr-tpm-proxy``), which is left where it is.
"""

from __future__ import annotations

from lxml import etree

from vmkeep.definition.model import DefinitionError
from vmkeep.definition.reading import read_domain
from vmkeep.definition.tree import remove
from vmkeep.values import dataclass
from vmkeep.xmltext import XmlRefused, parse_xml, serialise_xml

_PROXY = "spapr-tpm-proxy"
_PCR_BANKS = ("sha1", "sha256", "sha384", "sha512")
"""Those that libvirt knows (docs/formatdomain)."""


@dataclass(frozen=True, slots=True)
class TakenTpm:
    """``definition`` has no TPM; ``element`` is the ``<tpm>`` that it had, ``place`` its number among the devices."""

    definition: str
    element: str
    place: int


def take_tpm_out(xml: str) -> TakenTpm | None:
    """Return a definition without its TPM, and that device; None when it has none. Raises DefinitionError.

    ``xml`` is the inactive definition with its secrets, because all of it is defined again.
    """
    root = read_domain(xml)
    device = _device(root)
    if device is None:
        return None
    parent = device.getparent()
    assert parent is not None, "a TPM is below <devices>"
    place = parent.index(device)
    remove(device)
    # Those of the domain (qemu:commandline) are declared on each element that is taken out of it.
    etree.cleanup_namespaces(device)
    element = etree.tostring(device, encoding="unicode", with_tail=False)
    return TakenTpm(serialise_xml(root), element, place)


def put_tpm_in(xml: str, element: str, place: int | None = None) -> str:
    """Return a definition with this TPM, at its number among the devices; None means last.

    Raises DefinitionError when there is a TPM already, or ``element`` is none.
    """
    root = read_domain(xml)
    if _device(root) is not None:
        raise DefinitionError("the domain has a TPM already")
    try:
        device = parse_xml(element)
    except XmlRefused as error:
        raise DefinitionError(f"what was kept of the TPM cannot be read: {error}") from error
    if device.tag != "tpm" or device.get("model") == _PROXY:
        raise DefinitionError("what was kept is no TPM")
    devices = root.find("devices")
    if devices is None:
        raise DefinitionError("the domain has no devices")
    number = len(devices) if place is None else min(place, len(devices))
    before = devices[number - 1] if number else None
    if number < len(devices):
        device.tail = devices.text if before is None else before.tail
    elif before is not None:
        device.tail, before.tail = before.tail, devices.text
    else:
        device.tail = devices.text
    devices.insert(number, device)
    return serialise_xml(root)


def tpm_element(model: str, version: str, secret: str = "", *, like: str = "") -> str:
    """Return the element of an emulated TPM; ``secret`` is the UUID of what encrypts its state, empty for none.

    ``like`` is the element of one whose settings it has besides: whether the state of a transient VM stays, and which
    PCR banks are active. Where the state lies is not among them. Raises DefinitionError when it cannot be read.
    """
    device = etree.Element("tpm", model=model)
    backend = etree.SubElement(device, "backend", type="emulator", version=version)
    if secret:
        etree.SubElement(backend, "encryption", secret=secret)
    present = _backend(like) if like else None
    if present is not None:
        stays = present.get("persistent_state")
        if stays in ("yes", "no"):
            backend.set("persistent_state", stays)
        banks = [each.tag for each in present.iterfind("active_pcr_banks/*") if each.tag in _PCR_BANKS]
        if banks and version == "2.0":
            active = etree.SubElement(backend, "active_pcr_banks")
            for bank in banks:
                etree.SubElement(active, bank)
    return etree.tostring(device, encoding="unicode")


def with_secret(element: str, secret: str) -> str:
    """Return the element of an emulated TPM with another secret that encrypts its state; empty for none.

    Raises DefinitionError when it is no such element.
    """
    backend = _backend(element)
    if backend is None:
        raise DefinitionError("the TPM is none that libvirt emulates")
    device = backend.getparent()
    assert device is not None
    for present in backend.findall("encryption"):
        remove(present)
    if secret:
        etree.SubElement(backend, "encryption", secret=secret)
    return etree.tostring(device, encoding="unicode", with_tail=False)


def _backend(element: str) -> etree._Element | None:
    try:
        return parse_xml(element).find("backend[@type='emulator']")
    except XmlRefused as error:
        raise DefinitionError(f"the TPM cannot be read: {error}") from error


def _device(root: etree._Element) -> etree._Element | None:
    return next((each for each in root.findall("devices/tpm") if each.get("model") != _PROXY), None)
