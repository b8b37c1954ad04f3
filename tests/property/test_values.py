"""Values made by `vmkeep.values` behave as those that `dataclasses` makes, of whatever class."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.values import dataclass as value

Maker = Callable[..., Callable[[type[Any]], type[Any]]]
Declared = list[tuple[str, dict[str, Any]]]

CONTENTS = st.none() | st.integers(-2, 2) | st.text(max_size=2) | st.tuples(st.integers(0, 1))
FLAGS = st.fixed_dictionaries(
    {},
    optional={
        "repr": st.booleans(),
        "compare": st.booleans(),
        "hash": st.none() | st.booleans(),
        "init": st.booleans(),
        "kw_only": st.booleans(),
        "default": CONTENTS,
    },
)
NAMES = ["a", "b", "self", "_c", "d"]
FIELDS = st.lists(st.tuples(st.sampled_from(NAMES), FLAGS), unique_by=lambda field: field[0], max_size=4)
ARGUMENTS = st.tuples(st.lists(CONTENTS, max_size=4), st.dictionaries(st.sampled_from([*NAMES, "none"]), CONTENTS))


def made(maker: Maker, fields: Declared, base: type[Any] | None, **options: bool) -> type[Any] | str:
    """Return the class that a maker makes of these fields, or the words in which it refuses them."""
    body: dict[str, Any] = {"__annotations__": {name: "object" for name, _ in fields}, "__module__": __name__}
    for name, flags in fields:
        body[name] = dataclasses.field(**flags)
    try:
        return maker(frozen=True, slots=True, **options)(type("Made", (base,) if base else (), body))
    except (TypeError, ValueError) as error:
        return str(error)


def outcome(done: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Return what a call gives, or how it fails."""
    try:
        return done(*args, **named)
    except Exception as error:
        return type(error), str(error)


@given(
    fields=FIELDS,
    more=FIELDS,
    kw_only=st.booleans(),
    compiled=st.booleans(),
    calls=st.lists(ARGUMENTS, min_size=1, max_size=4),
)
def test_value_is_what_dataclasses_would_make(
    fields: Declared, more: Declared, kw_only: bool, compiled: bool, calls: list[tuple[list[Any], dict[str, Any]]]
) -> None:
    kinds = []
    for maker in (value, dataclasses.dataclass):
        base = made(maker, fields, None, kw_only=kw_only)
        kinds.append(base if isinstance(base, str) else made(maker, more, base))
    ours, theirs = kinds
    if isinstance(ours, str) or isinstance(theirs, str):
        assert isinstance(ours, str)
        assert str(theirs).startswith(ours)  # which says more since Python 3.13
        return
    if compiled:
        assert inspect.signature(ours) == inspect.signature(theirs)  # which its first dozen instances do without
    assert ours.__match_args__ == theirs.__match_args__
    values: list[tuple[Any, Any]] = []
    for args, named in calls:
        one, other = (outcome(kind, *args, **named) for kind in (ours, theirs))
        if isinstance(one, ours):
            values.append((one, other))
        else:
            assert one == other
    for one, other in values:
        for told in (repr, hash, dataclasses.astuple):
            assert outcome(told, one) == outcome(told, other)
        assert outcome(_survives_copying, one) == outcome(_survives_copying, other)
        for another, another_other in values:
            # Since 3.13 dataclasses looks at no field of an object beside itself, also not at one that was never set.
            if one is another and not all(hasattr(one, field.name) for field in dataclasses.fields(one)):
                continue
            assert outcome(operator.eq, one, another) == outcome(operator.eq, other, another_other)


def _survives_copying(it: Any) -> bool:
    return bool(copy.copy(it) == it)
