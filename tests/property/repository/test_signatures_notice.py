"""Whatever is changed in a signed point is noticed: any byte, any field, any value put in another one's place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.unit.repository.signed import REPOSITORY, signed_point
from vmkeep.errors import ObjectDamaged
from vmkeep.repository.layout import canonical, parse_canonical
from vmkeep.repository.signatures import prove_point

POINT = "ab" * 16
SIGNED = signed_point(POINT)
PLAIN = canonical(SIGNED)
Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, below in items:
        yield from places(below, (*at, name))


def at(value: Any, place: Place) -> Any:
    for step in place:
        value = value[step]
    return value


PLACES = sorted(places(SIGNED), key=str)
LEAVES = [place for place in PLACES if not isinstance(at(SIGNED, place), dict | list)]


def is_noticed(value: dict[str, Any]) -> None:
    with pytest.raises(ObjectDamaged) as caught:
        prove_point(value, REPOSITORY, POINT, f"points/{POINT}")
    assert POINT in caught.value.message


@given(st.integers(0, len(PLAIN) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_noticed(place: int, bits: int) -> None:
    changed = bytearray(PLAIN)
    changed[place] ^= bits
    try:
        value = parse_canonical(bytes(changed), f"points/{POINT}")
    except ObjectDamaged:
        return
    if "signature" not in value:
        # The name of the field itself was changed: then the point counts as one that nobody signed.
        assert prove_point(value, REPOSITORY, POINT, "here") is None
        return
    is_noticed(value)


@given(st.sampled_from([place for place in PLACES if place != ("signature",)]))
def test_anything_left_out_is_noticed(place: Place) -> None:
    value = copy.deepcopy(SIGNED)
    del at(value, place[:-1])[place[-1]]
    is_noticed(value)


@given(st.sampled_from(LEAVES), st.sampled_from(LEAVES))
def test_two_values_that_change_places_are_noticed(one: Place, other: Place) -> None:
    assume(at(SIGNED, one) != at(SIGNED, other))
    value = copy.deepcopy(SIGNED)
    at(value, one[:-1])[one[-1]], at(value, other[:-1])[other[-1]] = at(SIGNED, other), at(SIGNED, one)
    is_noticed(value)


@given(
    st.sampled_from([(), ("labels",), ("signature",), ("signature", "states")]),
    st.text(min_size=1, max_size=8),
    st.none() | st.text(max_size=5) | st.integers(),
)
def test_anything_added_is_noticed(place: Place, name: str, content: object) -> None:
    value = copy.deepcopy(SIGNED)
    assume(name not in at(value, place))
    at(value, place)[name] = content
    is_noticed(value)
