"""What a clone was made of, in the metadata of its own definition: libvirt keeps it, and so does every point of it."""

from __future__ import annotations

from typing import Final

from lxml import etree

from vmkeep.definition.reading import read_domain
from vmkeep.definition.tree import child_or_new, remove
from vmkeep.values import dataclass
from vmkeep.xmltext import bounded, serialise_xml

NAMESPACE: Final = "https://vmkeep.invalid/clone/1"
"""The name of the element's namespace; nothing is there."""
_CLONE: Final = f"{{{NAMESPACE}}}clone"


@dataclass(frozen=True, slots=True)
class Origin:
    """The VM that a clone was made of, by its UUID then and the name that it had."""

    uuid: str
    name: str


def with_origin(xml: str, origin: Origin) -> str:
    """Return the definition of a clone of that VM; of which one the original itself is a clone is not told any more.

    Raises DefinitionError when the XML is no domain.
    """
    root = read_domain(xml)
    metadata = child_or_new(root, "metadata")
    for before in metadata.findall(_CLONE):
        remove(before)
    etree.SubElement(metadata, _CLONE, nsmap={"vmkeep": NAMESPACE}, uuid=origin.uuid, name=origin.name)
    return serialise_xml(root)


def origin_of(xml: str) -> Origin | None:
    """Return what a definition says that its VM is a clone of. Anybody can write that; it is for people."""
    found = read_domain(xml).find(f"metadata/{_CLONE}")
    if found is None:
        return None
    return Origin(bounded(found.get("uuid") or ""), bounded(found.get("name") or ""))
