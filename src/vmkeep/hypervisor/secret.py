"""libvirt's secrets: what VMs need to open what is encrypted, a vTPM's state for instance.

Their values are read through libvirt's API only; a private one is not given out, to nobody. Nothing here puts a value
into an error, a log or a repr.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import libvirt
from lxml import etree
from lxml.builder import E

# libvirt's word for what a secret is for, the number of the API, and the element that names the thing.
USAGES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "volume": libvirt.VIR_SECRET_USAGE_TYPE_VOLUME,
        "vtpm": libvirt.VIR_SECRET_USAGE_TYPE_VTPM,
    }
)
_ELEMENTS: Final[Mapping[str, str]] = MappingProxyType({"volume": "volume", "vtpm": "name"})


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret with its value. ``usage_id`` is the name or path of what it is for, unique within its usage."""

    uuid: str
    usage: str
    usage_id: str
    description: str
    ephemeral: bool
    value: bytes = field(repr=False)


class Withheld(StrEnum):
    """Why libvirt does not give a secret's value out."""

    ABSENT = "absent"
    """There is no secret of that UUID."""
    EMPTY = "empty"
    """It is defined, and has no value: that of an ephemeral one is gone when the daemon has ended."""
    PRIVATE = "private"
    """It is private."""
    REFUSED = "refused"
    """This user may not read it."""
    FOREIGN = "foreign"
    """It is for something that vmkeep does not know."""


def read_secret(handle: libvirt.virSecret) -> Secret | Withheld:
    """Return the secret; raises libvirtError, whose meaning ``reason_withheld`` knows."""
    described = etree.fromstring(handle.XMLDesc().encode())
    usage = str(described.xpath("string(usage/@type)"))
    if usage not in USAGES:
        return Withheld.FOREIGN
    try:
        value = handle.value()
    except libvirt.libvirtError as error:
        # The same number as for a secret that is not there; this one is.
        if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
            return Withheld.EMPTY
        raise
    return Secret(
        uuid=handle.UUIDString(),
        usage=usage,
        usage_id=described.findtext(f"usage/{_ELEMENTS[usage]}") or "",
        description=described.findtext("description") or "",
        ephemeral=described.get("ephemeral") == "yes",
        value=value,
    )


def reason_withheld(error: libvirt.libvirtError) -> Withheld | None:
    """Return what an error says about a secret's value; None for one that says nothing about it."""
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_NO_SECRET:
        return Withheld.ABSENT
    if code == libvirt.VIR_ERR_INVALID_SECRET:  # "secret is private", on 9.0
        return Withheld.PRIVATE
    if code in (libvirt.VIR_ERR_OPERATION_DENIED, libvirt.VIR_ERR_ACCESS_DENIED):
        return Withheld.REFUSED
    return None


def secret_xml(secret: Secret, *, usage_taken: bool = False) -> str:
    """Return the definition of a persistent secret with the usage of this one.

    ``usage_taken``: another secret has the usage, which libvirt gives to one only; a VM names its secret by the UUID,
    so that becomes part of it.
    """
    usage_id = f"{secret.usage_id} {secret.uuid}" if usage_taken else secret.usage_id
    usage = E.usage(E(_ELEMENTS[secret.usage], usage_id), type=secret.usage)
    element = E.secret(E.uuid(secret.uuid), usage, ephemeral="no", private="no")
    if secret.description:
        element.insert(1, E.description(secret.description))
    return etree.tostring(element, encoding="unicode", pretty_print=True)
