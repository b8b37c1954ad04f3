"""Values: frozen classes with slots, as ``dataclasses.dataclass`` makes them, in a tenth of the time.

For each class ``dataclasses`` writes six functions as text and compiles them. Of the 240 classes that a point loads
that was a fifth of the command's processor time (Python 3.11). Five of the six do the same for every class, so here
they are shared; ``__init__`` is compiled when the first instance is made, which of most classes is never in a command.
Fields, slots, ``replace``, ``asdict``, ``match`` and inheritance are those of ``dataclasses``, which makes the class.

Type checkers see ``dataclasses.dataclass`` itself. It is for modules with many classes; a single one, or one that
changes, is as well made by ``dataclasses``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

Function = Callable[..., Any]

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen, slots, kw_only=False):
        """Make a class of values; both ``frozen`` and ``slots`` must be asked for."""
        assert frozen, "a value does not change"
        assert slots, "a value has slots"
        return lambda made: _value(made, kw_only=kw_only)


def _value(declared: type[Any], *, kw_only: bool) -> type[Any]:
    own = vars(declared)
    if declared.__doc__ is None:
        declared.__doc__ = declared.__name__  # dataclasses would work out the signature for it
    # Without any function to be made: nothing is compiled. What makes it frozen stands below.
    cls = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(declared)
    fields = dataclasses.fields(cls)
    functions = {
        "__init__": _first_initialiser(cls),
        "__repr__": _shown(*(field.name for field in fields if field.repr)),
        "__eq__": _compared(*(field.name for field in fields if field.compare)),
        "__setattr__": _refuse_to_set,
        "__delattr__": _refuse_to_delete,
        **_packed(*(field.name for field in fields)),
    }
    if "__eq__" not in own:  # as dataclasses has it: what compares in its own way is hashed in its own way
        functions["__hash__"] = _hashed(
            *(field.name for field in fields if (field.compare if field.hash is None else field.hash))
        )
    for name, function in functions.items():
        if own.get(name) is None:
            setattr(cls, name, function)
    return cls


def _shown(*names: str) -> Function:
    def show(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join([f'{name}={getattr(self, name)!r}' for name in names])})"

    return show


def _compared(*names: str) -> Function:
    parts = _parts(*names)

    def equals(self: Any, other: object) -> Any:
        return parts(self) == parts(other) if other.__class__ is self.__class__ else NotImplemented

    return equals


def _hashed(*names: str) -> Function:
    parts = _parts(*names)
    return lambda self: hash(parts(self))


def _packed(*names: str) -> dict[str, Function]:
    """Return what copies and pickles a value, whose fields nobody may set."""

    def unpack(self: Any, state: list[Any]) -> None:
        for name, value in zip(names, state, strict=True):
            object.__setattr__(self, name, value)

    return {"__getstate__": lambda self: [getattr(self, name) for name in names], "__setstate__": unpack}


def _parts(*names: str) -> Callable[[Any], tuple[Any, ...]]:
    """Return what gives the fields of these names of a value."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple([getattr(value, name) for name in names])


def _refuse_to_set(_self: Any, name: str, _value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(_self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _first_initialiser(cls: type[Any]) -> Function:
    """Return what compiles the real one, at the first instance, and leaves its place to it."""

    def initialise(self: Any, *args: Any, **named: Any) -> None:
        made = _initialiser(cls)
        cls.__init__ = made
        made(self, *args, **named)

    return initialise


def _initialiser(cls: type[Any]) -> Any:
    """Return the function that sets the fields, from its text, as ``dataclasses`` would have made it."""
    scope: dict[str, Any] = {"_set": object.__setattr__, "_made_anew": _MADE_ANEW}
    parameters: dict[bool, list[str]] = {False: [], True: []}
    lines: list[str] = []
    for field in dataclasses.fields(cls):
        given = field.name
        default = ""
        if field.default is not dataclasses.MISSING:
            scope[f"_default_{given}"] = field.default
            default = f"=_default_{given}"
        elif field.default_factory is not dataclasses.MISSING:
            scope[f"_factory_{given}"] = field.default_factory
            default = "=_made_anew"
        if not field.init:
            if default:
                value = f"_default_{given}" if default != "=_made_anew" else f"_factory_{given}()"
                lines.append(f"_set(self, {given!r}, {value})")
            continue
        parameters[bool(field.kw_only)].append(f"{given}{default}")
        value = given if default != "=_made_anew" else f"_factory_{given}() if {given} is _made_anew else {given}"
        lines.append(f"_set(self, {given!r}, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    named = ["*", *parameters[True]] if parameters[True] else []
    text = f"def __init__({', '.join(['self', *parameters[False], *named])}):\n"
    exec(text + "\n".join(f" {line}" for line in lines or ["pass"]), scope)  # noqa: S102  the text is of our own classes
    made = scope["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made


_MADE_ANEW = object()
"""The default of a parameter whose field is made anew for each instance."""
