"""Documents that stand inside a moment's: domains and cookies, kept as text and not understood.

libvirt writes its metadata by another rule than the rest of a domain, so reading and writing again could not
give the same bytes. Only the indentation of markup changes with the nesting.
"""

from __future__ import annotations

from lxml import etree

from vmkeep.moments.reading import read_root
from vmkeep.moments.writing import (
    child_source,
    indentation_before,
    indented,
    root_source,
    shift_indentation,
    without_passwords,
)
from vmkeep.xmltext import XmlRefused, parse_xml


def read_nested(xml: str, element: etree._Element) -> str:
    """Return ``element``, the first child of its name in the root of ``xml``, as a document of its own."""
    tag = str(element.tag)
    source = child_source(xml, tag)
    if source is not None:
        source = shift_indentation(source, -indentation_before(xml, source))
        try:
            found = parse_xml(source).tag
        except XmlRefused:
            found = None  # a prefix declared on an element around it
        if found != tag:
            source = None
    return (source or etree.tostring(element, encoding="unicode", with_tail=False)) + "\n"


def read_nested_domain(xml: str, element: etree._Element) -> str:
    """Return a domain's definition as a ``<domain>`` document, whatever the element is called."""
    return _renamed(read_nested(xml, element).rstrip("\n"), str(element.tag), "domain") + "\n"


def read_unknown(element: etree._Element) -> str:
    """Return the XML of an element that nothing is known of, as if it stood at the beginning of a line."""
    before = element.getprevious()
    gap = element.getparent().text if before is None else before.tail  # type: ignore[union-attr]  # never the root
    indentation = len((gap or "").rpartition("\n")[2])
    return shift_indentation(etree.tostring(element, encoding="unicode", with_tail=False), -indentation)


def write_nested(document: str, tag: str) -> str:
    """Return a document, whose root must be ``tag``, as the child of a root. Raises MomentError."""
    read_root(document.strip(), tag)
    return indented(root_source(document), 2)


def write_nested_domain(domain: str, tag: str = "domain", *, secure: bool) -> str:
    """Return a ``<domain>`` document as the child ``tag`` of a root; without passwords unless ``secure``."""
    read_root(domain.strip(), "domain")
    source = root_source(domain)
    return indented(_renamed(source if secure else without_passwords(source), "domain", tag), 2)


def _renamed(source: str, tag: str, new_tag: str) -> str:
    """Return an element's source under another name."""
    if tag == new_tag:
        return source
    body = source.removeprefix(f"<{tag}")
    head, closing, tail = body.rpartition(f"</{tag}")
    return f"<{new_tag}{head}</{new_tag}{tail}" if closing else f"<{new_tag}{body}"
