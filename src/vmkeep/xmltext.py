"""XML text from anywhere, read as if it were hostile.

A domain's XML comes from libvirt, but also from a repository, from another host and from a user's editor. The
parser therefore takes no document type (so there are no entities to expand and nothing to fetch), and refuses
what is larger, deeper or more numerous than any real document: libvirt's own limit for one string on the wire
is 4 MiB, and its chains of 200 backing files nest 200 deep.
"""

from __future__ import annotations

import copy
import re
from typing import Any, Final

from lxml import etree

from vmkeep.values import dataclass


class XmlRefused(ValueError):
    """Text that is not well-formed XML, or that exceeds a limit; the message says which."""


@dataclass(frozen=True, slots=True)
class XmlLimits:
    """What one document may hold at most."""

    characters: int = 4 * 1024 * 1024
    depth: int = 250
    elements: int = 100_000
    attributes_per_element: int = 1_000


DEFAULT_LIMITS: Final = XmlLimits()
_MOST_WORDS: Final = 1500

# The prolog may hold a declaration, comments and processing instructions before a document type. Possessive
# quantifiers: a prolog of a million unclosed "<!--" must not make the search go back and forth.
_PROLOG: Final = re.compile(r"(?:\s++|<\?(?:[^?]|\?(?!>))*+\?>|<!--(?:[^-]|-(?!->))*+-->)*+")
# Compiled by who meets a text that is not ASCII: that takes 3 ms, in each command and in its guardian.
_FORBIDDEN_IN_XML: Final = "[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
_ASCII_OF_XML: Final = bytes([9, 10, 13, *range(32, 128)])


def parse_xml(text: str, *, limits: XmlLimits = DEFAULT_LIMITS) -> etree._Element:
    """Return the root element of a document.

    An encoding declaration is ignored, because the text is decoded already. Raises XmlRefused.
    """
    _refuse_before_parsing(text, limits)
    # A parser of its own per document: libxml2 keeps names of all documents in a shared parser's dictionary.
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        dtd_validation=False,
        attribute_defaults=False,
        huge_tree=False,
    )
    try:
        root = etree.fromstring(text.removeprefix("\ufeff").encode("utf-8"), parser)
    except (etree.XMLSyntaxError, UnicodeEncodeError) as error:
        raise XmlRefused(f"not well-formed XML: {error}") from error
    _refuse_after_parsing(text, root, limits)
    return root


def serialise_xml(root: etree._Element) -> str:
    """Return the document of ``root`` as text, with the comments around it, each on a line of its own."""
    before = [*root.itersiblings(preceding=True)][::-1]
    parts = [*before, root, *root.itersiblings()]
    return "".join(etree.tostring(part, encoding="unicode", with_tail=False) + "\n" for part in parts)


def is_xml_text(text: str) -> bool:
    """Return whether every character of ``text`` may stand in an XML document."""
    if text.isascii():
        return not text.encode().translate(None, _ASCII_OF_XML)
    return re.search(_FORBIDDEN_IN_XML, text) is None


def bounded(words: str) -> str:
    """Return what is told of a document, which may quote any length of it, at a length for people."""
    return words if len(words) <= _MOST_WORDS else f"{words[: _MOST_WORDS - 3]}..."


def tag_name(element: etree._Element) -> str:
    """Return the name of an element, with its namespace in braces where it has one."""
    return str(element.tag)


def element_children(element: etree._Element) -> list[etree._Element]:
    """Return the children that are elements: not comments, not processing instructions."""
    return [child for child in element if isinstance(child.tag, str)]


def element_text(element: etree._Element) -> str:
    """Return all character data below ``element``, as XPath ``string()`` does."""
    if len(element) == 0:  # most elements; comments would count
        return element.text or ""
    return str(element.xpath("string()"))


def find_in_xml(text: str, xpath: str, *, wrap: bool = False) -> list[str]:
    """Return what an XPath finds, each as virsh writes it; with ``wrap`` as one element ``nodes``.

    Raises ValueError for an expression that is none, or that finds a number or a truth.
    """
    root = parse_xml(text)
    try:
        found = root.xpath(xpath)
    except etree.XPathError as error:
        raise ValueError(str(error)) from error
    if not isinstance(found, list):
        raise ValueError("it finds no nodes")
    nodes = [_found_node(node) for node in found]
    if not wrap:
        return nodes
    indented = "".join("".join(f"  {line}\n" for line in node.splitlines()) for node in nodes)
    return [f"<nodes>\n{indented}</nodes>"]


def _found_node(node: Any) -> str:
    if isinstance(node, str):
        attribute = getattr(node, "attrname", None)
        return str(node) if attribute is None else f" {attribute}={_quoted(node)}"
    alone = copy.deepcopy(node)
    etree.indent(alone, space="  ")
    return etree.tostring(alone, encoding="unicode", with_tail=False)


def _quoted(value: str) -> str:
    import html  # with a table of 2,000 names, for one option of two commands

    return f'"{html.escape(value)}"'


def _refuse_before_parsing(text: str, limits: XmlLimits) -> None:
    if len(text) > limits.characters:
        raise XmlRefused(f"{len(text)} characters of XML; the limit is {limits.characters}")
    if text.count("<") > 2 * limits.elements:
        raise XmlRefused(f"more than {limits.elements} elements")
    prolog = _PROLOG.match(text.removeprefix("\ufeff"))
    if prolog is not None and text.removeprefix("\ufeff").startswith("<!", prolog.end()):
        raise XmlRefused("a document type is not allowed")


def _refuse_after_parsing(text: str, root: etree._Element, limits: XmlLimits) -> None:
    docinfo = root.getroottree().docinfo
    if docinfo.internalDTD is not None or docinfo.externalDTD is not None:
        raise XmlRefused("a document type is not allowed")
    # Fewer signs than the limits allow of what each announces: there is nothing to count, and most documents are so.
    if text.count("<") <= min(limits.depth, limits.elements) and text.count("=") <= limits.attributes_per_element:
        return
    depth = elements = 0
    for event, element in etree.iterwalk(root, events=("start", "end")):
        if event == "end":
            depth -= 1
            continue
        depth += 1
        elements += 1
        if depth > limits.depth:
            raise XmlRefused(f"elements nested deeper than {limits.depth}")
        if elements > limits.elements:
            raise XmlRefused(f"more than {limits.elements} elements")
        if len(element.attrib) > limits.attributes_per_element:
            raise XmlRefused(f"more than {limits.attributes_per_element} attributes on <{tag_name(element)}>")
