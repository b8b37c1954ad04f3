"""Values made by `vmkeep.values` are what `dataclasses` makes of the same class."""

from __future__ import annotations

import abc
import copy
import dataclasses
import inspect
import pickle
import re
import sys
import threading
import typing
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, InitVar, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pytest

import vmkeep
from vmkeep.values import dataclass as value

Maker = Callable[..., Callable[[type[Any]], type[Any]]]
T = TypeVar("T")


def classes(maker: Maker) -> dict[str, type[Any]]:  # noqa: C901  classes, one after the other
    """Return the same classes, as a maker makes them."""

    @maker(frozen=True, slots=True)
    class Plain:
        name: str
        size: int = 3
        parts: tuple[str, ...] = ()
        labels: Mapping[str, str] = field(default_factory=dict)
        hidden: str = field(default="h", repr=False)
        beside: str = field(default="b", compare=False)
        known: ClassVar[int] = 7

        def whole(self) -> str:
            return f"{self.name}{self.size}"

    @maker(frozen=True, slots=True, kw_only=True)
    class Named:
        first: int
        second: int = 2
        made: list[int] = field(default_factory=list)

    @maker(frozen=True, slots=True)
    class PartlyNamed:
        first: int
        _: KW_ONLY
        second: int = 2
        third: int

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
    class Other(Checked):
        number: int = 5
        more: tuple[int, ...] = field(default=(1,), init=False)
        anew: list[int] = field(default_factory=lambda: [1], init=False)

    @maker(frozen=True, slots=True)
    class Empty:
        pass

    @maker(frozen=True, slots=True, repr=False)
    class Secret:
        value: bytes

    @maker(frozen=True, slots=True)
    class OfItsOwn:
        number: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, type(self)) and self.number % 10 == other.number % 10

        def __hash__(self) -> int:
            return self.number % 10

        def __repr__(self) -> str:
            return "own"

    @maker(frozen=True, slots=True)
    class ComparedByItself:
        number: int
        text: str = field(default="", hash=False)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, type(self))

    @maker(frozen=True, slots=True)
    class Unhashable:
        number: int
        __hash__ = None  # type: ignore[assignment]  # on purpose

    @maker(frozen=True, slots=True)
    class Initialised:
        number: int

        def __init__(self, text: str) -> None:
            object.__setattr__(self, "number", int(text))

    @maker(frozen=True, slots=True)
    class Typed(Generic[T]):
        of: T
        self: int = 1
        _self: int = 2

    @maker(frozen=True, slots=True)
    class Abstract(abc.ABC):
        number: int

        @abc.abstractmethod
        def told(self) -> str: ...

    @maker(frozen=True, slots=True)
    class Concrete(Abstract):
        def told(self) -> str:
            return super(Concrete, self).__class__.__name__  # noqa: UP008  slots make another class

    class Loose(Plain):
        """One of no decorator, which has a dictionary of its own."""

    made = [Plain, Named, PartlyNamed, Checked, Child, Other, Empty, Secret, OfItsOwn, ComparedByItself, Unhashable]
    return {each.__name__: each for each in (*made, Initialised, Typed, Abstract, Concrete, Loose)}


OURS, THEIRS = classes(value), classes(dataclasses.dataclass)
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Plain", ("a",), {}),
    ("Plain", ("a", 4, ("x",)), {"hidden": "z", "beside": "y"}),
    ("Plain", (), {"name": "a", "labels": {"k": "v"}}),
    ("Named", (), {"first": 1}),
    ("Named", (), {"made": [1], "first": 1}),
    ("PartlyNamed", (1,), {"third": 3}),
    ("Checked", (1,), {}),
    ("Child", (1, "x"), {}),
    ("Other", (), {}),
    ("Empty", (), {}),
    ("OfItsOwn", (11,), {}),
    ("ComparedByItself", (11,), {"text": "t"}),
    ("Unhashable", (1,), {}),
    ("Initialised", ("17",), {}),
    ("Typed", ("x", 2, 3), {}),
    ("Typed", ("x",), {"self": 7}),
    ("Concrete", (1,), {}),
    ("Loose", ("a",), {}),
]
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Plain", (), {}),
    ("Plain", ("a",), {"nothing": 1}),
    ("Plain", ("a",), {"name": "b"}),
    ("Named", (1,), {}),
    ("PartlyNamed", (1,), {}),
    ("Checked", (-1,), {}),
    ("Child", (-1,), {}),
    ("Other", (1, 2), {}),
    ("Empty", (1,), {}),
    ("Abstract", (1,), {}),
    ("Loose", (), {}),
]
NAMES = sorted(OURS)


def words(text: object) -> str:
    """Return a text without the name of the function in which the classes are."""
    return str(text).replace("classes.<locals>.", "")


def hash_of(made: object) -> int | str:
    try:
        return hash(made)
    except TypeError as error:
        return words(error)


@pytest.mark.parametrize(("name", "args", "named"), CALLS)
def test_value_is_what_dataclasses_would_make(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    ours, theirs = OURS[name](*args, **named), THEIRS[name](*args, **named)
    if name != "Secret":
        assert repr(ours) == repr(theirs)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert dataclasses.astuple(ours) == dataclasses.astuple(theirs)
    assert hasattr(ours, "__dict__") == hasattr(theirs, "__dict__") == (name == "Loose")
    same = OURS[name](*args, **named)
    assert ours == same
    assert ours != theirs
    assert ours != dataclasses.astuple(ours)
    assert copy.deepcopy(ours) == copy.copy(ours) == ours
    assert hash_of(ours) == hash_of(same) == hash_of(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_class_is_what_dataclasses_would_make(name: str) -> None:
    ours, theirs = OURS[name], THEIRS[name]
    for one, other in zip(dataclasses.fields(ours), dataclasses.fields(theirs), strict=True):
        assert repr(one) == repr(other).replace(repr(other.default_factory), repr(one.default_factory))
    assert ours.__match_args__ == theirs.__match_args__
    assert vars(ours).get("__slots__") == vars(theirs).get("__slots__")
    assert (ours.__name__, ours.__qualname__, ours.__module__) == (theirs.__name__, theirs.__qualname__, __name__)
    assert ours.__init__.__qualname__ == theirs.__init__.__qualname__
    assert inspect.isabstract(ours) == inspect.isabstract(theirs)
    # What a default stands for in the signature is not the same object, but has the same text.
    assert str(inspect.signature(ours)) == str(inspect.signature(theirs))
    assert typing.get_type_hints(ours.__init__, localns={"T": T}) == typing.get_type_hints(
        theirs.__init__, localns={"T": T}
    )


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


@pytest.mark.parametrize("maker", [value, dataclasses.dataclass])
def test_value_does_not_change(maker: Maker) -> None:
    made = classes(maker)["Plain"]("a")
    # Where it is no field, a class of dataclasses with slots says TypeError (https://github.com/python/cpython/issues/90562).
    for name in ("name", "new") if maker is value else ("name",):
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{name}'"):
            setattr(made, name, "b")
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot delete field '{name}'"):
            delattr(made, name)
    assert made.whole() == "a3"


def test_class_without_slots_that_inherits_has_more_of_its_own_and_keeps_the_fields() -> None:
    made = OURS["Loose"]("a")
    made.more = 1
    assert made.more == 1
    del made.more
    assert not hasattr(made, "more")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "b"


def test_field_that_does_not_count_is_not_compared_and_a_change_of_another_is() -> None:
    made = OURS["Plain"]("a")
    assert dataclasses.replace(made, beside="other") == made
    assert dataclasses.replace(made, size=4) != made
    assert OURS["OfItsOwn"](1) == OURS["OfItsOwn"](11)


@pytest.mark.parametrize(("name", "args"), [("Checked", (1,)), ("Child", (1,)), ("Other", ())])
def test_replaced_value_is_checked_as_a_new_one(name: str, args: tuple[Any, ...]) -> None:
    assert dataclasses.replace(OURS[name](*args), number=4).number == 4
    with pytest.raises(ValueError, match="negative"):
        dataclasses.replace(OURS[name](*args), number=-1)


def test_field_of_no_parameter_cannot_be_replaced() -> None:
    kind = ValueError if sys.version_info < (3, 13) else TypeError  # as dataclasses has it
    with pytest.raises(kind, match="init=False"):
        dataclasses.replace(OURS["Other"](), more=())


def test_each_value_has_a_default_of_its_own() -> None:
    for name, args, part in (("Plain", ("a",), "labels"), ("Other", (), "anew")):
        first, second = OURS[name](*args), OURS[name](*args)
        assert getattr(first, part) == getattr(second, part)
        assert getattr(first, part) is not getattr(second, part)


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


def test_value_that_holds_itself_can_be_shown() -> None:
    labels: dict[str, Any] = {}
    for made in (OURS["Plain"]("a", labels=labels), THEIRS["Plain"]("a", labels=labels)):
        labels["me"] = made
        assert "{'me': ...}" in repr(made)


def test_first_instance_can_be_made_by_many_threads_at_once() -> None:
    kind, made, all_ready = classes(value)["Plain"], [], threading.Barrier(8)

    def make() -> None:
        all_ready.wait()
        made.append(kind("a"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [kind("a")] * 8


def test_only_what_does_not_change_and_has_slots_is_a_value() -> None:
    with pytest.raises(AssertionError, match="does not change"):
        value(frozen=False, slots=True)
    with pytest.raises(AssertionError, match="has slots"):
        value(frozen=True, slots=False)


def test_parameter_that_is_no_field_is_refused() -> None:
    with pytest.raises(AssertionError, match="InitVar"):

        @value(frozen=True, slots=True)
        class _Given:
            number: InitVar[int]


@pytest.mark.parametrize(
    "body",
    [
        {"__annotations__": {"a": "list[int]"}, "a": []},
        {"__annotations__": {"a": "list[int]"}, "a": field(default=[])},
        {"a": field(default=1)},
        {"__annotations__": {"a": "int"}, "__slots__": ()},
        {"__annotations__": {"a": "KW_ONLY", "b": "KW_ONLY"}},
    ],
    ids=["mutable", "field-mutable", "no-annotation", "slots", "twice"],
)
def test_class_that_dataclasses_refuses_is_refused_in_the_same_words(body: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as theirs:
        dataclasses.dataclass(frozen=True, slots=True)(type("Refused", (), {**body, "__module__": __name__}))
    with pytest.raises(theirs.type) as ours:
        value(frozen=True, slots=True)(type("Refused", (), {**body, "__module__": __name__}))
    assert str(ours.value) == str(theirs.value)


def test_frozen_class_of_dataclasses_and_a_value_do_not_inherit_from_each_other() -> None:
    with pytest.raises(TypeError, match="cannot inherit"):
        value(frozen=True, slots=True)(type("Child", (THEIRS["Checked"],), {}))
    with pytest.raises(TypeError, match="cannot inherit"):
        dataclasses.dataclass(frozen=True, slots=True)(type("Child", (OURS["Checked"],), {}))


def test_every_frozen_class_of_vmkeep_is_such_a_value() -> None:
    flags = re.MULTILINE | re.DOTALL
    library = re.compile(r"^from dataclasses import [^\n]*\bdataclass\b.*^@dataclass\([^)]*frozen=True", flags)
    found = Path(vmkeep.__path__[0]).rglob("*.py")
    assert [path for path in found if library.search(path.read_text("utf-8"))] == []
