"""What others may write, for the properties of their readers: good values with other fields, good bytes damaged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from hypothesis import strategies as st
from lxml import etree

from vmkeep.errors import VmkeepError
from vmkeep.repository.layout import canonical

T = TypeVar("T")


def outcome(call: Callable[[], T]) -> T | None:
    """Return the data; None for an error of ours that says what to do next. Anything else fails the test."""
    try:
        return call()
    except VmkeepError as error:
        told = error
    assert told.code != "internal-error"
    assert told.hint
    assert len(told.message) < 2000
    return None


# -- what somebody may write -------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=()), max_size=40)
numbers = st.one_of(
    st.integers(), st.sampled_from([0, -1, 1, 511, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 2**1000]), st.floats()
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the way to every field below a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, held in items:
        yield (*at, name)
        yield from places(held, (*at, name))


def changed(value: Any, way: tuple[str | int, ...], to: Any, *, gone: bool = False) -> Any:
    """Return a copy of a JSON value in which one field is another one, or is not there."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for step in way[:-1]:
        inner = inner[step]
    if gone:
        del inner[way[-1]]
    else:
        inner[way[-1]] = to
    return copy


@st.composite
def forged(draw: st.DrawFn, good: Mapping[str, Any]) -> Any:
    """Return a JSON object like a good one, in which a few fields are something else."""
    value: Any = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 3))):
        ways = list(places(value))
        if not ways:
            break
        way = draw(st.sampled_from(ways))
        found = value
        for step in way:
            found = found[step]
        like = st.sampled_from([found, [found, found], {"a": found}, f"{found}\n", f"{found}\u202e"])
        value = changed(value, way, draw(anything | like), gone=draw(st.booleans()) and draw(st.booleans()))
    return value


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Return bytes like good ones: cut, changed, put together anew."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0:
                del data[at : at + draw(st.integers(0, 64))]
            case 1:
                data[at : at + 8] = draw(st.binary(max_size=8))
            case 2:
                data[at:at] = draw(st.binary(max_size=16))
            case _:
                data[at : at + 4] = draw(st.integers(0, 2**32 - 1)).to_bytes(4, "little")
    return bytes(data)


def written(value: Any) -> bytes | None:
    """Return a value as canonical JSON; None for what nobody can write so (NaN)."""
    with suppress(ValueError):
        return canonical(value)
    return None


# What XML cannot hold nobody can write into it.
xml_texts = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), max_size=12
) | st.sampled_from(
    ["0", "-1", "1" * 30, "9" * 5000, "../../etc/passwd", "/", "yes", "no", "\u202e", "a\nb", "%s{}", "-"]
)
xml_names = st.sampled_from(
    ["disk", "source", "target", "name", "domain", "acme", "{urn:acme}tool", "backingStore", "x-y"]
)


@st.composite
def forged_xml(draw: st.DrawFn, good: str) -> str:
    """Return XML like a good one, in which a few elements are gone, twice, elsewhere, or say something else."""
    root = etree.fromstring(good.encode())
    for _ in range(draw(st.integers(1, 4))):
        elements = [each for each in root.iter() if isinstance(each.tag, str)]
        at = elements[draw(st.integers(0, len(elements) - 1))]
        other = elements[draw(st.integers(0, len(elements) - 1))]
        _CHANGES[draw(st.integers(0, len(_CHANGES) - 1))](draw, at, other)
    return etree.tostring(root, encoding="unicode")


Draw = Callable[[st.SearchStrategy[Any]], Any]


def _take_away(_draw: Draw, at: etree._Element, _other: etree._Element) -> None:
    parent = at.getparent()
    if parent is not None:
        parent.remove(at)


def _say(draw: Draw, at: etree._Element, _other: etree._Element) -> None:
    at.text = draw(xml_texts)


def _change_attribute(draw: Draw, at: etree._Element, _other: etree._Element) -> None:
    name = draw(st.sampled_from([*sorted(map(str, at.attrib)), "x-y"]))
    at.set(name, draw(xml_texts))
    if draw(st.booleans()):
        del at.attrib[name]


def _add_attribute(draw: Draw, at: etree._Element, _other: etree._Element) -> None:
    at.set(draw(xml_names), draw(xml_texts))


def _rename(draw: Draw, at: etree._Element, _other: etree._Element) -> None:
    at.tag = draw(xml_names)


def _comment(draw: Draw, at: etree._Element, _other: etree._Element) -> None:
    hidden = draw(st.sampled_from([etree.Comment("c"), etree.ProcessingInstruction("p", "q")]))
    hidden = copy.deepcopy(hidden)
    hidden.tail = draw(xml_texts)
    at.insert(0, hidden)


def _nest(draw: Draw, at: etree._Element, other: etree._Element) -> None:
    for _ in range(draw(st.sampled_from([1, 30, 240, 300]))):
        at = etree.SubElement(at, str(other.tag))


_CHANGES: Sequence[Callable[[Draw, etree._Element, etree._Element], None]] = (
    _take_away,
    lambda _draw, at, other: other.append(copy.deepcopy(at)),
    _say,
    _change_attribute,
    _add_attribute,
    _rename,
    _comment,
    _nest,
)
