"""What a terminal is given: letters and line ends, whoever wrote them.

Names, titles, labels, paths, and the words of libvirt, QEMU and guests are texts of others. Control characters in them
(C0, DEL, and C1, which a terminal in UTF-8 takes as well) steer a terminal; marks of direction, line separators and
invisible letters make it show another text than there is. So all of these are written as escapes:

- what is told people, everywhere (``printable``), and what must be one line as one line (``one_line``);
- what a program reads in the notation of its format, which keeps the value exact: ``printable_json`` everywhere, and
  ``printable_xml`` on a terminal.

``Console`` writes all that vmkeep itself says, by these. ``Screened`` lies below it, for what others print: the parser
of options, warnings of Python, libraries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, TextIO

_UNCOMMON: Final = re.compile(r"[^\n -~]")  # found at the speed of C, in documents of megabytes
_UNCOMMON_OR_TAB: Final = re.compile(r"[^\t\n -~]")
_QUOTED: Final = "\n    | "
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
_OWN: Final = re.compile(f"({re.escape(BOLD)}|{re.escape(PLAIN)})")


def printable(text: str) -> str:
    """Return the text with what could steer a terminal written as escapes; line ends stay."""
    return _escaped(text, _UNCOMMON, _as_python)


def one_line(text: str) -> str:
    """Return the text as ``printable`` does, line ends as escapes too."""
    return printable(text).replace("\n", "\\n")


def statement(text: str) -> str:
    """Return a sentence of ours, in which a text of others may have several lines: none of them looks like ours."""
    return printable(text).replace("\n", _QUOTED)


def printable_json(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    r"""Return a JSON document of letters and line ends; what JSON has no letter for is a ``\u`` in its strings."""
    return escaped_json(json.dumps(value, ensure_ascii=False, indent=indent, default=default))


def escaped_json(document: str) -> str:
    """Return the same JSON document, as ``printable_json`` writes it."""
    return _escaped(document, _UNCOMMON, lambda char: json.dumps(char)[1:-1])


def printable_xml(xml: str) -> str:
    """Return an XML document with character references for what could steer a terminal: the same document.

    What no XML may hold, and a reference could not stand for, is written as an escape.
    """
    return _escaped(
        xml, _UNCOMMON_OR_TAB, lambda char: f"&#x{ord(char):x};" if _may_be_in_xml(char) else _as_python(char)
    )


class Screened:
    """A standard stream of which a terminal gets nothing that steers it, whoever prints.

    ``always``: nor does a pipe, which ends on a terminal or in a journal as a rule. Standard output may carry a
    document, which a program gets as it is.
    """

    def __init__(self, stream: TextIO, *, always: bool) -> None:
        self.unscreened = stream
        self._always = always

    def write(self, text: str) -> int:
        return self.unscreened.write(_screen(text) if self._always or self.unscreened.isatty() else text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unscreened, name)


def unscreened(stream: Any) -> Any:
    """Return the stream for what draws on a terminal: the progress bar, whose texts were made printable."""
    return getattr(stream, "unscreened", stream)


def _screen(text: str) -> str:
    return "".join(
        part if part in (BOLD, PLAIN) else _escaped(part, _UNCOMMON_OR_TAB, _as_python) for part in _OWN.split(text)
    )


def _escaped(text: str, uncommon: re.Pattern[str], escape: Callable[[str], str]) -> str:
    return uncommon.sub(lambda found: found[0] if found[0].isprintable() else escape(found[0]), text)


def _as_python(char: str) -> str:
    return ascii(char)[1:-1]


def _may_be_in_xml(char: str) -> bool:
    return char >= "\x7f" and not "\ud800" <= char <= "\udfff" and char not in "\ufffe\uffff"
