"""Values: frozen classes with slots, as ``dataclasses.dataclass`` makes them, in a tenth of the time.

For each class ``dataclasses`` writes six functions as text and compiles them, which was a sixth of the processor time
of a point of which nothing changed (docs/adr/0029-what-a-command-loads.md). Five of them do the same for every class,
so here they are closures; ``__init__`` is compiled after a dozen instances, which of most classes are never made in a
command. Everything else, fields, slots, ``replace``, ``asdict``, ``match`` and inheritance, is made by ``dataclasses``.

Type checkers see ``dataclasses.dataclass`` itself. What it makes otherwise is refused when the class is made: classes
that change, ``InitVar``, and a value that inherits from a frozen class of ``dataclasses`` or the other way round.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from operator import attrgetter
from reprlib import recursive_repr
from types import MethodType
from typing import TYPE_CHECKING, Any

Function = Callable[..., Any]

_FILLED_FIRST = 12

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen, slots, kw_only=False, repr=True):  # noqa: A002  its name there
        """Make a class of values; both ``frozen`` and ``slots`` must be asked for."""
        assert frozen, "a value does not change"
        assert slots, "a value has slots"
        return lambda declared: _value(declared, kw_only=kw_only, shown=repr)


def _value(declared: type[Any], *, kw_only: bool, shown: bool) -> type[Any]:
    own = vars(declared)
    if declared.__doc__ is None:
        declared.__doc__ = declared.__name__  # dataclasses would work out the signature for it, and so make __init__
    # Without any function to be made nothing is compiled. What makes it frozen stands below.
    cls = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(declared)
    fields = dataclasses.fields(cls)
    given = [field for field in cls.__dataclass_fields__.values() if repr(field._field_type) == "_FIELD_INITVAR"]
    assert not given, "an InitVar is no field: give the value a function that makes it"
    _refuse_disorder(fields)
    names = tuple(field.name for field in fields)
    functions: dict[str, Any] = {
        "__init__": _Initialiser(cls),
        "__eq__": _compared(*(field.name for field in fields if field.compare)),
        **_kept(cls, names),
        "__getstate__": _pack,
        "__setstate__": _unpack,
    }
    if shown:
        functions["__repr__"] = _shown(*(field.name for field in fields if field.repr))
    for name, function in functions.items():
        if name not in own:
            setattr(cls, name, function)
    # Python itself sets None in a class that compares in its own way; dataclasses takes that for nothing said.
    if "__hash__" not in own or (own["__hash__"] is None and "__eq__" in own):
        counting = (field.name for field in fields if (field.compare if field.hash is None else field.hash))
        cls.__hash__ = _hashed(*counting)
    return cls


def _refuse_disorder(fields: tuple[dataclasses.Field[Any], ...]) -> None:
    """Raise TypeError where ``__init__`` could not be made, as ``dataclasses`` does; here that is made later."""
    defaults = False
    for field in fields:
        if field.init and not field.kw_only:
            if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING:
                defaults = True
            elif defaults:
                raise TypeError(f"non-default argument {field.name!r} follows default argument")


def _shown(*names: str) -> Function:
    def show(self: Any) -> str:
        return f"{self.__class__.__qualname__}({', '.join([f'{name}={getattr(self, name)!r}' for name in names])})"

    return recursive_repr()(show)


def _compared(*names: str) -> Function:
    parts = _parts(*names)

    def equals(self: Any, other: object) -> Any:
        return parts(self) == parts(other) if other.__class__ is self.__class__ else NotImplemented

    return equals


def _hashed(*names: str) -> Function:
    parts = _parts(*names)
    return lambda self: hash(parts(self))


def _parts(*names: str) -> Callable[[Any], tuple[Any, ...]]:
    """Return what gives the fields of these names of a value."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple([getattr(value, name) for name in names])


def _kept(cls: type[Any], names: tuple[str, ...]) -> dict[str, Function]:
    """Return what refuses to change a value. A class without slots that inherits from it may have more of its own."""

    def set_none(self: Any, name: str, value: object) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def delete_none(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    return {"__setattr__": set_none, "__delattr__": delete_none}


def _pack(self: Any) -> list[Any]:
    """Return what copies and pickles are made of: no field can be set."""
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _unpack(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)


class _Initialiser:
    """Stands as ``__init__`` of a class until that is worth compiling: after some instances, or when it is looked at.

    Compiling takes as long as thirty instances made here do. Then it leaves its place to the real one, which also gets
    each call that is wrong, to say so. Two threads that ask at once make the same one twice.
    """

    __slots__ = ("_cls", "_left", "_plan")

    def __init__(self, cls: type[Any]) -> None:
        self._cls = cls
        self._left = _FILLED_FIRST
        self._plan: _Plan | None = None

    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        # Python 3.13 asks with the class in place of an instance when it looks for the signature.
        if self._left == 0 or not isinstance(instance, self._cls):
            made = _initialiser(self._cls)
            self._cls.__init__ = made
            return made.__get__(instance, owner)
        self._left -= 1
        return MethodType(self._fill, instance)

    def _fill(self, instance: Any, /, *values: Any, **named: Any) -> None:
        """Set the fields as ``__init__`` does."""
        plan = self._plan = self._plan or _Plan(self._cls)
        given = dict(zip(plan.positional, values, strict=False))
        taken = len(given) + len(named)
        given.update(named)
        if len(values) > len(plan.positional) or len(given) < taken or not plan.required <= given.keys() <= plan.all:
            _initialiser(self._cls)(instance, *values, **named)  # which says what is wrong
            raise AssertionError(f"{self._cls.__qualname__} can be made so, and was refused")
        for name, default, make in plan.fields:
            if name in given:
                object.__setattr__(instance, name, given[name])
            elif make is not None:
                object.__setattr__(instance, name, make())
            elif default is not dataclasses.MISSING:
                object.__setattr__(instance, name, default)
        if plan.ends:
            instance.__post_init__()


class _Plan:
    """The parameters of ``__init__``, and what becomes of the fields of which it is told nothing."""

    __slots__ = ("all", "ends", "fields", "positional", "required")

    def __init__(self, cls: type[Any]) -> None:
        fields = dataclasses.fields(cls)
        taken = [field for field in fields if field.init]
        self.positional = tuple(field.name for field in taken if not field.kw_only)
        self.all = frozenset(field.name for field in taken)
        self.required = frozenset(
            field.name
            for field in taken
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        self.fields = tuple(
            (field.name, field.default, None if field.default_factory is dataclasses.MISSING else field.default_factory)
            for field in fields
        )
        self.ends = hasattr(cls, "__post_init__")


def _initialiser(cls: type[Any]) -> Any:
    """Return the function that sets the fields, compiled as ``dataclasses`` would have it."""
    self = "__dataclass_self__" if "self" in cls.__dataclass_fields__ else "self"  # as it is called there
    scope: dict[str, Any] = {"_set": object.__setattr__, "_made_anew": _MADE_ANEW}
    parameters: dict[bool, list[str]] = {False: [], True: []}
    lines: list[str] = []
    for field in dataclasses.fields(cls):
        name = field.name
        value, default = name, ""
        if field.default is not dataclasses.MISSING:
            scope[f"_default_{name}"] = field.default
            value, default = (name if field.init else f"_default_{name}"), f"=_default_{name}"
        elif field.default_factory is not dataclasses.MISSING:
            scope[f"_factory_{name}"] = field.default_factory
            made = f"_factory_{name}()"
            value, default = (f"{made} if {name} is _made_anew else {name}" if field.init else made), "=_made_anew"
        if field.init:
            parameters[bool(field.kw_only)].append(f"{name}{default}")
        if field.init or default:
            lines.append(f"_set({self}, {name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append(f"{self}.__post_init__()")
    named = ["*", *parameters[True]] if parameters[True] else []
    head = f"def __init__({', '.join([self, *parameters[False], *named])}):"
    # Within a function of the defaults, so that the names of the class's module can be seen where its types are asked.
    body = "\n".join((f" {head}", *(f"  {line}" for line in lines or ["pass"]), " return __init__"))
    written: dict[str, Any] = {}
    exec(f"def _make({', '.join(scope)}):\n{body}", vars(sys.modules[cls.__module__]), written)  # noqa: S102  our own classes
    initialise = written["_make"](**scope)
    initialise.__qualname__ = f"{cls.__qualname__}.__init__"
    types = {field.name: field.type for field in dataclasses.fields(cls) if field.init}
    initialise.__annotations__ = {**types, "return": None}
    return initialise


_MADE_ANEW: Any = type("_MadeAnew", (), {"__repr__": lambda _self: "<factory>"})()
"""The default of a parameter whose field is made anew for each instance."""
