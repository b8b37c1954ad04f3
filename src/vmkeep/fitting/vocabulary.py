"""The elements, attributes and words that a libvirt knows in the definition of a VM, taken from its own schema.

libvirt drops an element or attribute that it does not know without a word, and refuses a word that it does not know
with an error, the first one only. Its RELAX NG schema (package libvirt0, /usr/share/libvirt/schemas) names all of
them. Validating by it would say no more than that something is wrong somewhere below ``<devices>``; so the patterns
are taken apart here, and every part of a definition is held against the patterns that its place allows. What depends
on two parts at once is left to libvirt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Final, Self

from lxml import etree

from vmkeep.values import dataclass
from vmkeep.xmltext import XmlLimits, element_children, parse_xml

_RNG: Final = "{http://relaxng.org/ns/structure/1.0}"
_FREE_TEXT: Final = frozenset(_RNG + name for name in ("data", "text", "list", "empty"))
# A schema is libvirt's own and not hostile; 9.0's largest document has 8,400 lines.
_LIMITS: Final = XmlLimits(characters=16 * 1024 * 1024, elements=500_000)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A part that libvirt does not know: an element, its ``attribute``, or the ``value`` of that.

    ``known`` are the values that stand there in its schema.
    """

    element: etree._Element
    attribute: str | None = None
    value: str | None = None
    known: tuple[str, ...] = ()


@dataclasses.dataclass(slots=True)
class _Contents:
    """What may be in an element. ``attributes`` maps to the values allowed, or None for any."""

    attributes: dict[str, set[str] | None] = field(default_factory=dict)
    children: dict[str, list[etree._Element]] = field(default_factory=dict)
    any_attribute: bool = False
    any_child: bool = False


class Vocabulary:
    """The words of one release of libvirt."""

    def __init__(self, definitions: Mapping[str, Sequence[etree._Element]], root: str) -> None:
        self._definitions = definitions
        self._root = root
        self._contents: dict[etree._Element, _Contents] = {}

    @classmethod
    def of(cls, documents: Mapping[str, str], start: str = "domain.rng", root: str = "domain") -> Self:
        """Return the vocabulary of a schema: the documents by name, and the one to begin with.

        Raises KeyError when a document is missing, and XmlRefused for one that is no XML.
        """
        definitions: dict[str, list[etree._Element]] = {}
        read: set[str] = set()

        def include(name: str) -> None:
            if name in read:
                return
            read.add(name)
            for element in parse_xml(documents[name], limits=_LIMITS).iter(f"{_RNG}include", f"{_RNG}define"):
                if element.tag == f"{_RNG}include":
                    include(element.get("href", ""))
                else:
                    definitions.setdefault(element.get("name", ""), []).append(element)

        include(start)
        return cls(definitions, root)

    def unknown(self, root: etree._Element) -> list[Unknown]:
        """Return every part of a definition that is not in the vocabulary, in its order.

        What is below an unknown element is not told as well.
        """
        patterns = [each for define in self._definitions.get(self._root, ()) for each in _patterns_in(define)]
        return list(self._unknown(root, patterns))

    def _unknown(self, element: etree._Element, patterns: Sequence[etree._Element]) -> Iterator[Unknown]:
        contents = [self._contents_of(pattern) for pattern in patterns]
        if not any(each.any_attribute for each in contents):
            for name, value in element.attrib.items():
                allowed = [each.attributes[str(name)] for each in contents if name in each.attributes]
                if not allowed:
                    yield Unknown(element, str(name))
                elif (known := _union(allowed)) is not None and value not in known:
                    yield Unknown(element, str(name), str(value), tuple(sorted(known)))
        if any(each.any_child for each in contents):
            return
        for child in element_children(element):
            possible = [pattern for each in contents for pattern in each.children.get(str(child.tag), ())]
            if possible:
                yield from self._unknown(child, possible)
            else:
                yield Unknown(child)

    def _contents_of(self, pattern: etree._Element) -> _Contents:
        if pattern not in self._contents:
            contents = _Contents()
            self._collect(_without_name(pattern), contents, set())
            self._contents[pattern] = contents
        return self._contents[pattern]

    def _collect(self, parts: Sequence[etree._Element], contents: _Contents, seen: set[str]) -> None:
        for part in parts:
            if part.tag == f"{_RNG}element":
                names = _names(part)
                contents.any_child = contents.any_child or names is None
                for name in names or ():
                    contents.children.setdefault(name, []).append(part)
            elif part.tag == f"{_RNG}attribute":
                self._collect_attribute(part, contents)
            elif part.tag == f"{_RNG}ref":
                name = part.get("name", "")
                if name not in seen:
                    seen.add(name)
                    for define in self._definitions.get(name, ()):
                        self._collect(element_children(define), contents, seen)
            else:
                self._collect(element_children(part), contents, seen)

    def _collect_attribute(self, attribute: etree._Element, contents: _Contents) -> None:
        names = _names(attribute)
        if names is None:
            contents.any_attribute = True
            return
        values: set[str] = set()
        inside = _without_name(attribute)
        free = not inside or self._collect_values(inside, values, set())
        for name in names:
            before = contents.attributes.get(name, set())
            contents.attributes[name] = None if free or before is None else before | values

    def _collect_values(self, parts: Sequence[etree._Element], values: set[str], seen: set[str]) -> bool:
        """Collect the values that are named; True when others are allowed as well."""
        free = False
        for part in parts:
            if part.tag == f"{_RNG}value":
                values.add((part.text or "").strip())
            elif part.tag in _FREE_TEXT:
                free = True
            elif part.tag == f"{_RNG}ref":
                name = part.get("name", "")
                if name not in seen:
                    seen.add(name)
                    for define in self._definitions.get(name, ()):
                        free |= self._collect_values(element_children(define), values, seen)
            else:
                free |= self._collect_values(element_children(part), values, seen)
        return free


def _patterns_in(define: etree._Element) -> list[etree._Element]:
    return [each for each in element_children(define) if each.tag == f"{_RNG}element"]


def _union(allowed: Sequence[set[str] | None]) -> set[str] | None:
    union: set[str] = set()
    for values in allowed:
        if values is None:
            return None
        union |= values
    return union


def _name_class(pattern: etree._Element) -> etree._Element | None:
    """Return the child that names an element or attribute which has no name in its own attribute."""
    if pattern.get("name") is not None:
        return None
    return next(iter(element_children(pattern)), None)


def _without_name(pattern: etree._Element) -> list[etree._Element]:
    name_class = _name_class(pattern)
    return [child for child in element_children(pattern) if child is not name_class]


def _names(pattern: etree._Element) -> list[str] | None:
    """Return the names of a pattern as lxml writes them; None when it takes any."""
    name = pattern.get("name")
    if name is not None:
        return [_qualified(name, pattern)]
    name_class = _name_class(pattern)
    if name_class is None or next(name_class.iter(f"{_RNG}anyName", f"{_RNG}nsName"), None) is not None:
        return None
    return [_qualified((each.text or "").strip(), each) for each in name_class.iter(f"{_RNG}name")]


def _qualified(name: str, pattern: etree._Element) -> str:
    """Return a name with its namespace, which an element has from its ancestors, and an attribute of its own only."""
    of_attribute = pattern.tag == f"{_RNG}attribute"
    holders = [pattern] if of_attribute else [pattern, *pattern.iterancestors()]
    namespace = next((holder.get("ns") for holder in holders if holder.get("ns") is not None), "")
    return f"{{{namespace}}}{name}" if namespace else name
