"""A definition on its way to fit: the tree that is changed, and what was found."""

from __future__ import annotations

from dataclasses import dataclass, field

from lxml import etree

from vmkeep.fitting.model import HostAbilities, Misfit, StoredVariables, Wish
from vmkeep.xmltext import serialise_xml, tag_name

_NAMED_BY = ("target/@dev", "mac/@address", "@name", "@type", "@model")


@dataclass(slots=True)
class Draft:
    """Every rule changes ``root`` so that what it found is out of the way of the next one, also what a person must
    decide: libvirt tells one error at a time, and what stands behind the first is heard only without it."""

    root: etree._Element
    host: HostAbilities
    wish: Wish
    variables: StoredVariables | None = None
    misfits: list[Misfit] = field(default_factory=list)

    def found(self, misfit: Misfit) -> None:
        self.misfits.append(misfit)

    @property
    def text(self) -> str:
        return serialise_xml(self.root)


def part_of(element: etree._Element, attribute: str | None = None) -> str:
    """Return where an element stands: ``devices/disk[vda]/driver@queue_size``."""
    steps: list[str] = []
    at: etree._Element | None = element
    while at is not None and at.getparent() is not None:
        name = etree.QName(tag_name(at)).localname
        parent = at.getparent()
        twins = parent is not None and len(parent.findall(tag_name(at))) > 1
        steps.append(f"{name}[{_told_apart(at)}]" if twins else name)
        at = parent
    path = "/".join(reversed(steps)) or "domain"
    return path if attribute is None else f"{path}@{attribute}"


def _told_apart(element: etree._Element) -> str:
    for xpath in _NAMED_BY:
        found = element.xpath(xpath)
        if isinstance(found, list) and found:
            return str(found[0])
    parent = element.getparent()
    assert parent is not None, "an element that has twins has a parent"
    return str(parent.findall(tag_name(element)).index(element) + 1)
