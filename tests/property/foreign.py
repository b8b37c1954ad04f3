"""What others may write, for the properties of their readers: good values with other fields, good bytes damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from hypothesis import strategies as st

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
