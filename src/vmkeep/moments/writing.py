"""Text as libvirt 9.0 writes it: single quotes, two spaces of indentation, its own escapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_ESCAPES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&apos;", '"': "&quot;"})

# libvirt leaves out control characters, which no XML can hold.
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")

# One piece of markup. Possessive, so that hostile text costs linear time.
_MARKUP: Final = re.compile(
    r"<!--.*?-->|<!\[CDATA\[.*?\]\]>|<\?.*?\?>|<(?:[^<>\"']++|\"[^\"]*+\"|'[^']*+')*+>", re.DOTALL
)
# An attribute with the blanks before it. It begins with the first of the blanks, so that a long run costs linear time.
_ATTRIBUTE: Final = re.compile(r"""(?<!\s)\s++([^\s=<>"'/]++)\s*+=\s*+("[^"]*+"|'[^']*+')""")


def escape(text: str) -> str:
    """Return text or an attribute value as libvirt escapes it, quotes included in both places."""
    return _CONTROL.sub("", text).translate(_ESCAPES)


def attributes(values: Mapping[str, object | None]) -> str:
    """Return `` name='value'`` of each value that is not None, in order."""
    return "".join(f" {name}='{escape(str(value))}'" for name, value in values.items() if value is not None)


def child_source(document: str, tag: str) -> str | None:
    """Return the source text of the root's first child ``tag``, exactly as it stands in the document.

    The document must be well-formed. libvirt's metadata is written by another rule than the rest, so parsing
    and writing again could not give the same bytes.
    """
    depth = 0
    start: int | None = None
    for markup in _MARKUP.finditer(document):
        token = markup.group()
        if token.startswith(("<!", "<?")):
            continue
        closing = token.startswith("</")
        if closing:
            depth -= 1
        elif depth == 1 and start is None and re.match(rf"<{tag}[\s/>]", token):
            start = markup.start()
        if start is not None and depth == 1 and (closing or token.endswith("/>")):
            return document[start : markup.end()]
        if not closing and not token.endswith("/>"):
            depth += 1
    return None


def root_source(document: str) -> str:
    """Return the source text of a well-formed document's root, without what stands around it."""
    start = end = None
    for markup in _MARKUP.finditer(document):
        token = markup.group()
        if token.startswith(("<!", "<?")):
            continue
        if start is None:
            start, end = markup.span()
        elif token.startswith("</"):
            end = markup.end()
    return document[start:end]


def indentation_before(document: str, source: str) -> int:
    """Return by how many spaces ``source`` is indented in the document; 0 when it does not begin a line."""
    line = document[: document.find(source)].rpartition("\n")[2]
    return len(line) if line.strip(" ") == "" else 0


def shift_indentation(source: str, spaces: int) -> str:
    """Indent every line that begins with markup by ``spaces`` more (less, when negative).

    Lines inside text, such as a description of several lines, are content and stay. That is what libvirt does
    when it nests one document in another.
    """
    pieces: list[str] = []
    position = 0
    for markup in _MARKUP.finditer(source):
        gap = source[position : markup.start()]
        if "\n" in gap and not gap.strip(" \t\r\n"):
            head, _, indent = gap.rpartition("\n")
            gap = f"{head}\n" + " " * max(0, len(indent) + spaces)
        pieces += [gap, markup.group()]
        position = markup.end()
    return "".join(pieces) + source[position:]


def indented(source: str, spaces: int) -> str:
    """Return an element's source indented as a whole; what is text in it stays."""
    return " " * spaces + shift_indentation(source, spaces)


def without_passwords(domain: str) -> str:
    """Return a domain's XML without the passwords of its displays, which libvirt shows only when asked."""

    def without(markup: re.Match[str]) -> str:
        token = markup.group()
        if re.match(r"<graphics\s", token) is None:
            return token
        return _ATTRIBUTE.sub(lambda found: "" if found[1] == "passwd" else found[0], token)

    return _MARKUP.sub(without, domain)
