"""Fields of JSON that others wrote, parsed: what a function here returns can be used as it is, everywhere.

A repository has more writers than this host, and what one of them stores goes into file names, SQL, terminals and
definitions on all the others. So a field is not only of the right type: a time is a time, a number fits, a text can be
shown on one line. Whatever is not so is ``WrongField``, which says where and what, and never repeats the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from vmkeep.repository.layout import is_name

T = TypeVar("T")

NUMBER_LIMIT: Final = 1 << 63
"""Numbers are below it: SQL and the kernel's interfaces hold no greater ones."""
NAME_BYTES_LIMIT: Final = 255
"""Of names of VMs, hosts and checkpoints. libvirt keeps a VM in a file of its name, so 251 bytes are the longest."""
TEXT_BYTES_LIMIT: Final = 128 * 1024
"""Of labels and warnings: what one argument of a command can have on Linux (MAX_ARG_STRLEN)."""
DEPTH_LIMIT: Final = 64

# Control characters steer a terminal; marks of direction (UAX 9) let a text read as another one; the separators of
# lines and paragraphs end a line for some readers. Joiners, which names in many scripts need, are none of these.
_UNFIT_FOR_A_LINE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_UNFIT_FOR_A_TEXT: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
_UNFIT_FOR_XML: Final = "[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # takes 3 ms to compile
_ASCII_OF_XML: Final = bytes([9, 10, 13, *range(32, 128)])
_TARGET: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}", re.ASCII)
_WORD: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_INSTANT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}(Z|\+00:00)")
# Shown in any zone, an instant must stay within what datetime can hold.
_FIRST, _END = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


class WrongField(ValueError):
    """What is wrong; with its ``place``, as the end of a sentence about the object that it is in."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(f"has a wrong {place}: {what}" if place else what)
        self.what = what
        self.place = place


class Fields:
    """An object of foreign JSON, whose fields are taken out one by one. Raises WrongField for what is no object."""

    def __init__(self, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise WrongField("is no object")
        self._value = value

    def take(self, name: str, parse: Callable[[Any], T]) -> T:
        """Return a field as ``parse`` returns it."""
        if name not in self._value:
            raise WrongField("it is not there", name)
        return _parsed(self._value[name], name, parse)

    def each(self, name: str, parse: Callable[[Any], T]) -> tuple[T, ...]:
        """Return a list, each of it as ``parse`` returns it."""
        items = self.take(name, _list)
        return tuple(_parsed(item, f"{name}[{number}]", parse) for number, item in enumerate(items))


def _parsed(value: Any, where: str, parse: Callable[[Any], T]) -> T:
    try:
        return parse(value)
    except WrongField as error:
        place = f"{where}.{error.place}" if error.place else where
        raise WrongField(error.what, place) from None


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise WrongField("no list")
    return value


def optional(parse: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """Return what parses a field that may be null."""
    return lambda value: None if value is None else parse(value)


def one_of(*words: str) -> Callable[[Any], str]:
    """Return what parses one of a few words."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise WrongField(f"not one of {', '.join(words)}")
        return value

    return parse


def number(value: Any, *, least: int = 0, most: int = NUMBER_LIMIT - 1) -> int:
    """Return a whole number between the two, which are included."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise WrongField(f"no whole number from {least} to {most}")
    return value


def numbered(*, least: int = 0, most: int = NUMBER_LIMIT - 1) -> Callable[[Any], int]:
    """Return what parses a number between the two."""
    return lambda value: number(value, least=least, most=most)


def milliseconds(value: Any) -> float:
    """Return a length of time: finite, not negative, and no longer than anything can have lasted."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise WrongField("no number")
    if not 0 <= value < 1 << 53 or not math.isfinite(value):
        raise WrongField("no length of time")
    return value


def yes_or_no(value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise WrongField("neither true nor false")
    return value


def name(value: Any) -> str:
    """Return the name of an object: 32 hexadecimal digits."""
    if not isinstance(value, str) or not is_name(value):
        raise WrongField("not 32 hexadecimal digits")
    return value


def uuid(value: Any) -> str:
    """Return a UUID in the one form in which libvirt gives it."""
    return _matching(value, _UUID, "no UUID")


def digest(value: Any) -> str:
    """Return a SHA-256 as 64 hexadecimal digits."""
    return _matching(value, _DIGEST, "not 64 hexadecimal digits")


def target(value: Any) -> str:
    """Return the target of a disk ("vda"), which can be a file's name."""
    return _matching(value, _TARGET, "no target of a disk")


def word(value: Any) -> str:
    """Return a word such as a format of images has; it may be empty."""
    return "" if value == "" else _matching(value, _WORD, "no word")


def instant(value: Any) -> str:
    """Return a time in the form that sorts as text: ISO 8601 in UTC (Z or +00:00) with microseconds, 1970 to 9998."""
    text = _matching(value, _INSTANT, "no time in UTC with microseconds")
    try:
        sensible = _FIRST <= datetime.fromisoformat(text) < _END
    except ValueError:
        sensible = False
    if not sensible:
        raise WrongField("no time from 1970 to 9998")
    return text


def line(value: Any, *, most_bytes: int = NAME_BYTES_LIMIT) -> str:
    """Return a text of one line: without control characters and marks of direction, and of bounded length."""
    return _text(value, _UNFIT_FOR_A_LINE, most_bytes)


def lines(value: Any, *, most_bytes: int = TEXT_BYTES_LIMIT) -> str:
    """Return a text like ``line``, in which lines may end and tabs may stand."""
    return _text(value, _UNFIT_FOR_A_TEXT, most_bytes)


def as_lines(text: str) -> str:
    """Return a text of anybody's, a program's message for instance, so that ``lines`` takes it: the rest is escaped."""
    shown = _UNFIT_FOR_A_TEXT.sub(lambda found: ascii(found[0])[1:-1], text)
    plain = shown.encode("utf-8", "backslashreplace")
    return plain[:TEXT_BYTES_LIMIT].decode("utf-8", "ignore")


def vm_name(value: Any) -> str:
    """Return the name of a VM: libvirt takes no empty one, and none with a slash or the end of a line."""
    text = line(value)
    if not text or "/" in text:
        raise WrongField("no name of a VM")
    return text


def place_of_disk(value: Any) -> str:
    """Return the path or network name of a disk, with room for the longest path that Linux has."""
    return line(value, most_bytes=16 * 1024)


def xml(value: Any, *, most_characters: int = 4 << 20) -> str:
    """Return a text that can be XML. Its marks of direction belong to titles, and it is never shown."""
    if not isinstance(value, str) or len(value) > most_characters:
        raise WrongField("no text of XML")
    # Definitions have tens of kilobytes, and are nearly always ASCII: 40 times as fast as the expression.
    unfit = value.encode().translate(None, _ASCII_OF_XML) if value.isascii() else re.search(_UNFIT_FOR_XML, value)
    if unfit:
        raise WrongField("no text of XML")
    return value


def texts_by_name(value: Any) -> dict[str, str]:
    """Return an object of texts."""
    if not isinstance(value, Mapping):
        raise WrongField("no object")
    return {line(key, most_bytes=TEXT_BYTES_LIMIT): lines(text) for key, text in value.items()}


def later(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields that a later version added, which are kept as they are; what could not be kept is wrong."""
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        held, depth = waiting.pop()
        if depth > DEPTH_LIMIT:
            raise WrongField(f"deeper than {DEPTH_LIMIT}", "field of a later version")
        if isinstance(held, str):
            _parsed(held, "field of a later version", _utf8)
        elif isinstance(held, Mapping):
            waiting += [(each, depth + 1) for pair in held.items() for each in pair]
        elif isinstance(held, list):
            waiting += [(each, depth + 1) for each in held]
    return dict(value)


def all_different(values: Iterable[str], what: str) -> None:
    """Raise WrongField when one of the values is there twice."""
    known: set[str] = set()
    for value in values:
        if value in known:
            raise WrongField(f"has {what} twice")
        known.add(value)


def _matching(value: Any, pattern: re.Pattern[str], wrong: str) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise WrongField(wrong)
    return value


def _text(value: Any, unfit: re.Pattern[str], most_bytes: int) -> str:
    if not isinstance(value, str):
        raise WrongField("no text")
    if len(value) > most_bytes or len(_utf8(value)) > most_bytes:
        raise WrongField(f"longer than {most_bytes} bytes")
    if unfit.search(value):
        raise WrongField("control characters or marks of direction")
    return value


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise WrongField("not to be written as UTF-8") from None
