"""An exported key on paper: a page with lines that a person can type again, and the same key as a QR code.

Each line is numbered and has a check of its own, so that a slip is told by the line it is in. Letters and digits are
those of base32 (RFC 4648), and what is easily taken for one of them is: 0 for O, 1 for I, 8 for B. docs/guide/keys.md
shows a page.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from html import escape
from typing import Final

from vmkeep.errors import InvalidRequest

PAPER_BEGIN: Final = "-----BEGIN VMKEEP PAPER KEY-----"
PAPER_END: Final = "-----END VMKEEP PAPER KEY-----"
LINE_BYTES: Final = 10
GROUP_LETTERS: Final = 4
_CHECK_LETTERS: Final = 4
_LETTERS: Final = LINE_BYTES * 8 // 5
_SEEN_AS: Final = str.maketrans("018", "OIB")
_LINE: Final = re.compile(r"([0-9]{1,2})\s*[:.]?\s+(.*)")
_MOST_LINES: Final = 40
_PRE: Final = re.compile(r"<pre[^>]*>(.*?)</pre>", re.DOTALL)
_STEPS: Final = (
    "Install vmkeep on any host that reaches the repository.",
    "Scan the code into a file, with its line breaks, or type the lines between BEGIN and END, these two as well.",
    "vmkeep key import FILE asks for the passphrase of this page, which is not on it.",
    "vmkeep init --repository DIRECTORY --adopt, then vmkeep points.",
)
_STYLE: Final = (
    "@page{size:A4;margin:18mm}body{font:11pt sans-serif;margin:0;color:#000;background:#fff}"
    "h1{font-size:16pt}pre{font:13pt/1.5 monospace}table{border-collapse:collapse}td{padding:0 1em 0 0}svg{width:70mm}"
)


def typed_lines(key_id: str, content: bytes) -> str:
    """Return the lines of a key, between BEGIN and END, for a page that is typed again."""
    pieces = [content[start : start + LINE_BYTES] for start in range(0, len(content), LINE_BYTES)]
    lines = [f"Key: {' '.join(_groups(key_id, 8))}  {_check(0, key_id)}"]
    for number, piece in enumerate(pieces, 1):
        letters = base64.b32encode(piece).decode().rstrip("=")
        lines.append(f"{number:02}  {' '.join(_groups(letters, GROUP_LETTERS))}  {_check(number, letters)}")
    return "\n".join([PAPER_BEGIN, *lines, PAPER_END, ""])


def parse_lines(text: str) -> tuple[str, bytes]:
    """Return the key id and the sealed key of lines that were typed; of a page as well, whose lines are in it.

    Raises InvalidRequest naming the line that was mistyped, or is missing.
    """
    page = _PRE.search(text)
    lines = [line.strip() for line in (page[1] if page else text).splitlines()]
    if PAPER_BEGIN not in lines or PAPER_END not in lines[lines.index(PAPER_BEGIN) :]:
        raise InvalidRequest(f"this is no key from paper: the line {PAPER_BEGIN} or {PAPER_END} is missing")
    begin = lines.index(PAPER_BEGIN)
    inside = [line for line in lines[begin + 1 : lines.index(PAPER_END, begin)] if line]
    if not inside or not inside[0].lower().startswith("key:"):
        raise InvalidRequest("the line Key: is missing; it is the first one")
    key_id = _key_id(inside[0])
    pieces = []
    for number, line in enumerate(inside[1:], 1):
        last = number == len(inside) - 1
        pieces.append(_piece(number, line, last=last))
    if not pieces or len(pieces) > _MOST_LINES:
        raise InvalidRequest("the lines of the key are missing, or there are too many of them")
    return key_id, b"".join(pieces)


def page(typed: str, scanned: str, facts: list[tuple[str, str]]) -> str:
    """Return a page for a printer, as HTML without anything that is fetched: the lines, the code, and what to do."""
    import segno

    code = segno.make(scanned, error="m", micro=False).svg_inline(scale=4, border=4, light="#fff")
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    steps = "".join(f"<li>{escape(step)}</li>" for step in _STEPS)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>vmkeep key</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>vmkeep: the key of a repository</h1>\n<table>{rows}</table>\n"
        f"<pre>{escape(typed)}</pre>\n{code}\n<ol>{steps}</ol>\n"
        "<p>Keep this page away from the repository, and the passphrase away from this page.</p></body></html>\n"
    )


def _key_id(line: str) -> str:
    found = line.partition(":")[2].split()
    key_id, check = "".join(found[:-1]).lower(), found[-1] if found else ""
    if re.fullmatch("[0-9a-f]{32}", key_id) is None or check.upper().translate(_SEEN_AS) != _check(0, key_id):
        raise InvalidRequest("the line Key: was mistyped", hint="Compare it with the page, digit by digit.")
    return key_id


def _piece(number: int, line: str, *, last: bool) -> bytes:
    hint = "Compare it with the page, letter by letter. A 0 is a letter O, a 1 an I and an 8 a B."
    found = _LINE.fullmatch(line)
    if found is None or int(found[1]) != number:
        raise InvalidRequest(f"line {number:02} is missing, or was not typed with its number", hint=hint)
    letters = "".join(found[2].upper().translate(_SEEN_AS).split())
    body, check = letters[:-_CHECK_LETTERS], letters[-_CHECK_LETTERS:]
    if re.fullmatch("[A-Z2-7]{2,}", body) is None or check != _check(number, body):
        raise InvalidRequest(f"line {number:02} was mistyped", hint=hint)
    if len(body) > _LETTERS or (len(body) < _LETTERS and not last):
        raise InvalidRequest(
            f"line {number:02} has {len(body)} letters before its last group, not {_LETTERS}", hint=hint
        )
    try:
        return base64.b32decode(body + "=" * (-len(body) % 8))
    except ValueError:
        raise InvalidRequest(f"line {number:02} is too short", hint=hint) from None


def _groups(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def _check(number: int, text: str) -> str:
    """Return four letters that tell a slip within a line, and lines that were swapped; one slip in a million passes."""
    said = "\n".join(("vmkeep paper key v1", str(number), text.upper()))
    digest = hashlib.sha256(said.encode()).digest()
    return base64.b32encode(digest[:5]).decode()[:_CHECK_LETTERS]
