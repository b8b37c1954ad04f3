"""Small edits of a tree that leave its indentation as neat as it was."""

from __future__ import annotations

from collections.abc import Collection

from lxml import etree


def remove(element: etree._Element) -> None:
    """Remove an element with the white space that led to it; text behind it stays."""
    parent = element.getparent()
    if parent is None:
        raise ValueError("the root of a document cannot be removed")
    previous = element.getprevious()
    tail = element.tail or ""
    if tail.strip():
        # Text that is content: it joins what stands before the element.
        if previous is not None:
            previous.tail = (previous.tail or "") + tail
        else:
            parent.text = (parent.text or "") + tail
    elif element.getnext() is None:
        if previous is not None:
            previous.tail = element.tail
        else:
            parent.text = None if not (parent.text or "").strip() else parent.text
    element.tail = None
    parent.remove(element)


def remove_children(parent: etree._Element, tags: Collection[str]) -> None:
    """Remove the children of these names."""
    for child in list(parent):
        if child.tag in tags:
            remove(child)


def set_text(element: etree._Element, text: str) -> None:
    """Make an element say this and nothing else.

    What stands behind a comment or an element in it would be said as well: libvirt takes all text in an element.
    """
    for child in list(element):
        element.remove(child)
    element.text = text or None


def child_or_new(parent: etree._Element, tag: str, *, first: bool = False) -> etree._Element:
    """Return the first child of that name, made as the last (or first) one where there is none."""
    child = parent.find(tag)
    if child is not None:
        return child
    child = etree.Element(tag)
    if len(parent) == 0:
        parent.append(child)
    elif first:
        child.tail = parent.text
        parent.insert(0, child)
    else:
        last = parent[-1]
        child.tail, last.tail = last.tail, parent.text
        parent.append(child)
    return child
