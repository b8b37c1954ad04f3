"""Values made by `vmkeep.values` are what `dataclasses` makes of the same class."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

import pytest

from vmkeep.values import dataclass as value

Maker = Callable[..., Callable[[type[Any]], type[Any]]]


def classes(maker: Maker) -> dict[str, type[Any]]:
    """Return the same classes, as a maker makes them."""

    @maker(frozen=True, slots=True)
    class Plain:
        name: str
        size: int = 3
        parts: tuple[str, ...] = ()
        labels: Mapping[str, str] = field(default_factory=dict)
        hidden: str = field(default="h", repr=False)
        beside: str = field(default="b", compare=False)

        def whole(self) -> str:
            return f"{self.name}{self.size}"

    @maker(frozen=True, slots=True, kw_only=True)
    class Named:
        first: int
        second: int = 2

    @maker(frozen=True, slots=True)
    class Checked:
        number: int

        def __post_init__(self) -> None:
            if self.number < 0:
                raise ValueError("negative")

    @maker(frozen=True, slots=True)
    class Child(Checked):
        more: str = "m"

    @maker(frozen=True, slots=True)
    class Empty:
        pass

    @maker(frozen=True, slots=True)
    class OfItsOwn:
        number: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, type(self)) and self.number % 10 == other.number % 10

        def __hash__(self) -> int:
            return self.number % 10

        def __repr__(self) -> str:
            return "own"

    return {each.__name__: each for each in (Plain, Named, Checked, Child, Empty, OfItsOwn)}


OURS, THEIRS = classes(value), classes(dataclasses.dataclass)
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Plain", ("a",), {}),
    ("Plain", ("a", 4, ("x",)), {"hidden": "z", "beside": "y"}),
    ("Plain", (), {"name": "a", "labels": {"k": "v"}}),
    ("Named", (), {"first": 1}),
    ("Checked", (1,), {}),
    ("Child", (1, "x"), {}),
    ("Empty", (), {}),
    ("OfItsOwn", (11,), {}),
]
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Plain", (), {}),
    ("Plain", ("a",), {"nothing": 1}),
    ("Plain", ("a",), {"name": "b"}),
    ("Named", (1,), {}),
    ("Checked", (-1,), {}),
    ("Empty", (1,), {}),
]


def words(text: object) -> str:
    """Return a text without the name of the function in which the classes are."""
    return str(text).replace("classes.<locals>.", "")


@pytest.mark.parametrize(("name", "args", "named"), CALLS)
def test_value_is_what_dataclasses_would_make(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    ours, theirs = OURS[name](*args, **named), THEIRS[name](*args, **named)
    assert repr(ours) == repr(theirs)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert [each.name for each in dataclasses.fields(ours)] == [each.name for each in dataclasses.fields(theirs)]
    assert type(ours).__match_args__ == type(theirs).__match_args__
    assert type(ours).__slots__ == type(theirs).__slots__
    assert not hasattr(ours, "__dict__")
    same = OURS[name](*args, **named)
    assert ours == same
    assert ours != theirs
    assert copy.deepcopy(ours) == copy.copy(ours) == dataclasses.replace(ours) == ours
    if "labels" not in type(ours).__match_args__:
        assert hash(ours) == hash(same) == hash(theirs)


@pytest.mark.parametrize(("name", "args", "named"), WRONG)
def test_what_cannot_be_made_is_refused_in_the_same_words(
    name: str, args: tuple[Any, ...], named: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError)) as theirs:
        THEIRS[name](*args, **named)
    for made in (classes(value)[name], OURS[name]):  # of a class without an instance, and of one that may have some
        with pytest.raises(theirs.type) as ours:
            made(*args, **named)
        assert words(ours.value) == words(theirs.value)


def test_value_does_not_change() -> None:
    made = OURS["Plain"]("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.new = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        del made.name
    assert made.whole() == "a3"


def test_field_that_does_not_count_is_not_compared_and_a_change_of_another_is() -> None:
    made = OURS["Plain"]("a")
    assert dataclasses.replace(made, beside="other") == made
    assert dataclasses.replace(made, size=4) != made
    assert OURS["OfItsOwn"](1) == OURS["OfItsOwn"](11)


def test_each_value_has_a_default_of_its_own() -> None:
    first, second = OURS["Plain"]("a"), OURS["Plain"]("a")
    assert first.labels == {}
    assert first.labels is not second.labels


def test_value_is_matched_by_its_fields() -> None:
    match OURS["Child"](7, "x"):
        case Child(number, more) if isinstance(Child, type):
            assert (number, more) == (7, "x")
        case _:
            pytest.fail("not matched")


Child = OURS["Child"]


@value(frozen=True, slots=True)
class Packed:
    number: int
    text: str = ""


def test_value_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Packed(3, "x"))) == Packed(3, "x")  # noqa: S301  it is our own


def test_only_what_does_not_change_is_a_value() -> None:
    with pytest.raises(AssertionError, match="does not change"):
        value(frozen=False, slots=True)
