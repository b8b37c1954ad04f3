"""A definition of a secret for libvirt (docs/formatsecret): what it is for, and never its value."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from lxml import etree
from lxml.builder import E

USAGE_ELEMENTS: Final[Mapping[str, str]] = MappingProxyType({"volume": "volume", "vtpm": "name"})
"""The element that names what a secret is for, by libvirt's word for its usage."""


def secret_definition(uuid: str, usage: str, usage_id: str, description: str) -> str:
    """Return the XML of a secret that libvirt keeps, and tells the value of; for usages of ``USAGE_ELEMENTS``."""
    named = E.usage(E(USAGE_ELEMENTS[usage], usage_id), type=usage)
    element = E.secret(E.uuid(uuid), named, ephemeral="no", private="no")
    if description:
        element.insert(1, E.description(description))
    return etree.tostring(element, encoding="unicode", pretty_print=True)
