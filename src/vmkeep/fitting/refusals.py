"""What libvirt's own parser refuses, all of it, although it tells one thing at a time.

A refusal is answered where its remedy is known. Else the element that it is about is searched: the one without which
libvirt says something else. Without it the next refusal is heard.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Final

from lxml import etree

from vmkeep.definition.tree import remove
from vmkeep.fitting.devices import ELSEWHERE
from vmkeep.fitting.draft import Draft, part_of
from vmkeep.fitting.firmware import pin_firmware
from vmkeep.fitting.model import Misfit
from vmkeep.xmltext import element_children, serialise_xml

Trial = Callable[[str], str | None]
"""Ask libvirt to parse a definition and do no more; its words when it refuses."""

# libvirt 9.0: "loader attribute 'readonly' cannot be specified when firmware autoselection is enabled", and the same
# of the loader's path and type.
_AUTOSELECTION: Final = re.compile(r"firmware (auto ?selection|features? )|loader attribute", re.IGNORECASE)
_INDISPENSABLE: Final = frozenset({"name", "uuid", "memory", "vcpu", "os", "devices"})
_REFUSALS: Final = 50
_TRIALS: Final = 1000


def hear_refusals(draft: Draft, trial: Trial) -> None:
    """Change the draft until libvirt takes it, or nothing helps."""
    left = _TRIALS
    for _ in range(_REFUSALS):
        refusal = trial(draft.text)
        if refusal is None:
            return
        if _AUTOSELECTION.search(refusal) and pin_firmware(draft):
            continue
        culprit, tried = _culprit(draft.root, refusal, trial, left)
        left -= tried
        part = "domain" if culprit is None else part_of(culprit)
        draft.found(Misfit(part=part, what=f"libvirt {draft.host.release} refuses it: {refusal}", remedy=ELSEWHERE))
        if culprit is None:
            return
        remove(culprit)


def _culprit(root: etree._Element, refusal: str, trial: Trial, left: int) -> tuple[etree._Element | None, int]:
    """Return the element that a refusal is about, and how many trials it took to find it.

    The one without which nothing is refused; else the first one without which something else is.
    """
    other = None
    tried = 0
    for element, without in _each_left_out(root):
        if tried >= left:
            break
        tried += 1
        answer = trial(serialise_xml(without))
        if answer is None:
            return element, tried
        if answer != refusal and other is None:
            other = element
    return other, tried


def _each_left_out(root: etree._Element) -> Iterator[tuple[etree._Element, etree._Element]]:
    """Yield every element that a definition can do without, with the definition that lacks it."""
    places = [root.find("devices"), root.find("features"), root.find("os"), root]
    for parent in [place for place in places if place is not None]:
        for element in element_children(parent):
            if element.tag in _INDISPENSABLE or (parent.tag == "os" and element.tag == "type"):
                continue
            without = copy.deepcopy(root)
            twin = without.find(root.getroottree().getelementpath(element)) if parent is not root else None
            if twin is None:
                position = list(root).index(element) if parent is root else -1
                if position < 0:
                    continue
                twin = without[position]
            remove(twin)
            yield element, without
