"""What libvirt's own parser refuses, all of it, although it tells one thing at a time.

A refusal is answered where its remedy is known. Else the element that it is about is searched: the one without which
libvirt says something else. Without it the next refusal is heard.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Final

from lxml import etree

from vmkeep.definition.tree import remove
from vmkeep.fitting.devices import ELSEWHERE, supported
from vmkeep.fitting.draft import Draft, part_of
from vmkeep.fitting.firmware import pin_firmware
from vmkeep.fitting.model import Misfit
from vmkeep.xmltext import element_children, serialise_xml

Trial = Callable[[str], str | None]
"""Ask libvirt to parse a definition and do no more; its words when it refuses."""

# libvirt 9.0: "loader attribute 'readonly' cannot be specified when firmware autoselection is enabled", and the same
# of the loader's path and type.
_AUTOSELECTION: Final = re.compile(r"firmware (auto ?selection|features? )|loader attribute", re.IGNORECASE)
# Of features, os and devices the children are tried one by one.
_INDISPENSABLE: Final = frozenset({"name", "uuid", "memory", "vcpu", "os", "devices", "features"})
_REFUSALS: Final = 50
_TRIALS: Final = 1000


def hear_refusals(draft: Draft, trial: Trial) -> None:
    """Change the draft until libvirt takes it, or nothing helps."""
    search = _Search(trial)
    for _ in range(_REFUSALS):
        refusal = trial(draft.text)
        if refusal is None:
            return
        if _AUTOSELECTION.search(refusal) and pin_firmware(draft):
            continue
        culprit = search.alone(draft.root, refusal)
        if culprit is None:
            culprit = search.last_of_several(draft.root, refusal)
        what = f"libvirt {draft.host.release} refuses it: {refusal}"
        if culprit is None:
            draft.found(Misfit(part="domain", what=what, remedy=ELSEWHERE))
            return
        remedy = f"{supported(draft, culprit)} {ELSEWHERE}".lstrip()
        draft.found(Misfit(part=part_of(culprit), what=what, remedy=remedy))
        remove(culprit)


class _Search:
    """Finds the element that a refusal is about, with no more than so many trials in all."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._left = _TRIALS

    def alone(self, root: etree._Element, refusal: str) -> etree._Element | None:
        """Return the one without which nothing is refused; else the first without which something else is."""
        other = None
        for element in _dispensable(root):
            without = copy.deepcopy(root)
            remove(_twin(without, element))
            answer = self._ask(without, refusal)
            if answer is None:
                return element
            if answer != refusal and other is None:
                other = element
        return other

    def last_of_several(self, root: etree._Element, refusal: str) -> etree._Element | None:
        """Return the last of those that are refused with the same words: more and more is left out until these end."""
        without = copy.deepcopy(root)
        pairs = [(element, _twin(without, element)) for element in _dispensable(root)]
        for element, twin in pairs:
            remove(twin)
            if self._ask(without, refusal) != refusal:
                return element
        return None

    def _ask(self, root: etree._Element, refusal: str) -> str | None:
        self._left -= 1
        return self._trial(serialise_xml(root)) if self._left > 0 else refusal


def _dispensable(root: etree._Element) -> list[etree._Element]:
    """Return the elements that a definition can do without."""
    places = [root.find("devices"), root.find("features"), root.find("os"), root]
    return [
        element
        for parent in places
        if parent is not None
        for element in element_children(parent)
        if element.tag not in _INDISPENSABLE and not (parent.tag == "os" and element.tag == "type")
    ]


def _twin(copied: etree._Element, element: etree._Element) -> etree._Element:
    """Return the same element of a copy of the tree."""
    steps: list[int] = []
    at = element
    parent = at.getparent()
    while parent is not None:
        steps.append(parent.index(at))
        at, parent = parent, parent.getparent()
    for step in reversed(steps):
        copied = copied[step]
    return copied
