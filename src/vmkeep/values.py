"""Values: frozen classes with slots, as ``dataclasses.dataclass`` makes them, in a twentieth of the time.

For each class ``dataclasses`` writes six functions as text and compiles them, which was a sixth of the processor time
of a point of which nothing changed (docs/adr/0029-what-a-command-loads.md). Five of them do the same for every class,
so here they are closures; ``__init__`` is compiled after a dozen instances, which of most classes are never made in a
command. Fields and slots of a class that has nothing rare are laid out here as well; where there is anything else
(``ClassVar``, ``KW_ONLY``, annotations that are no texts, what is refused) ``dataclasses`` does it. ``replace``,
``asdict`` and ``match`` work on what both leave in the class, which is the same.

Type checkers see ``dataclasses.dataclass`` itself. What it makes otherwise is refused when the class is made: classes
that change, ``InitVar``, and a value that inherits from a frozen class of ``dataclasses`` or the other way round.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from reprlib import recursive_repr
from types import MemberDescriptorType, MethodType
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
    if declared.__doc__ is None:
        declared.__doc__ = declared.__name__  # dataclasses would work out the signature for it, and so make __init__
    owner = _Initialiser()
    every = _plain_fields(declared, kw_only=kw_only)
    if every is not None:
        functions = _functions(declared, every, owner, shown=shown)
        owner.cls = _laid_out(declared, every, functions, _MODELS[kw_only])
        return owner.cls
    # Without any function to be made nothing is compiled.
    owner.cls = cls = _by_library(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(declared)
    every = cls.__dataclass_fields__
    given = [name for name, field in every.items() if repr(field._field_type) == "_FIELD_INITVAR"]
    assert not given, "an InitVar is no field: give the value a function that makes it"
    for name, function in _functions(declared, every, owner, shown=shown).items():
        setattr(cls, name, function)
    return cls


def _functions(declared: type[Any], every: Mapping[str, Any], owner: _Initialiser, *, shown: bool) -> dict[str, Any]:
    """Return what makes a value of a class with these fields, but for what it has declared itself."""
    own = vars(declared)
    fields = [field for field in every.values() if field._field_type is _FIELD]
    _refuse_disorder(fields)
    functions: dict[str, Any] = {
        "__init__": owner,
        "__eq__": _compared(*[field.name for field in fields if field.compare]),
        **_kept(owner, frozenset([field.name for field in fields])),
        "__getstate__": _pack,
        "__setstate__": _unpack,
    }
    if shown:
        functions["__repr__"] = _show
    for name in functions.keys() & own.keys():
        del functions[name]
    # Python itself sets None in a class that compares in its own way; dataclasses takes that for nothing said.
    if "__hash__" not in own or (own["__hash__"] is None and "__eq__" in own):
        counting = [field.name for field in fields if (field.compare if field.hash is None else field.hash)]
        functions["__hash__"] = _hashed(*counting)
    return functions


def _plain_fields(declared: type[Any], *, kw_only: bool) -> dict[str, Any] | None:
    """Return the fields of a class as ``dataclasses`` finds them; None where something of it is rare.

    By its own way each annotation is looked through three times with a regular expression, and the class is made, and
    asked for its bases, more often: 45 of 70 microseconds. Where this returns None nothing was changed.
    """
    kinds: dict[str, Any] = vars(declared).get("__annotations__", {})
    given = {name: getattr(declared, name, dataclasses.MISSING) for name in kinds}
    bases: list[Any] = [base for base in declared.__mro__[-2:0:-1] if "__dataclass_fields__" in vars(base)]
    if _is_rare(declared, kinds, given, bases):
        return None
    every: dict[str, Any] = {}
    for base in bases:
        every.update(base.__dataclass_fields__)
    for name, default in given.items():
        if type(default) is dataclasses.Field:
            field: Any = default
        else:  # what stands for a slot of a base is no default
            field = dataclasses.field(default=dataclasses.MISSING if type(default) is MemberDescriptorType else default)
        field.name, field.type, field._field_type = name, kinds[name], _FIELD
        if field.kw_only is dataclasses.MISSING:
            field.kw_only = kw_only
        every[name] = field
    return every


def _is_rare(declared: type[Any], kinds: Mapping[str, Any], given: Mapping[str, Any], bases: Sequence[Any]) -> bool:
    """Tell whether something may be no field, or is refused. Defaults that have no hash are: they could be changed."""
    for name, kind in kinds.items():
        if not isinstance(kind, str) or "ClassVar" in kind or "InitVar" in kind or "KW_ONLY" in kind:
            return True
        default = given[name]
        if type(default.default if type(default) is dataclasses.Field else default).__hash__ is None:
            return True
    for name, each in vars(declared).items():
        if name == "__slots__" or (type(each) is dataclasses.Field and name not in kinds):
            return True
    return any(base.__dataclass_params__.frozen for base in bases)


def _laid_out(
    declared: type[Any], every: dict[str, Any], functions: dict[str, Any], model: Mapping[str, Any]
) -> type[Any]:
    """Return the class made anew, as ``dataclasses`` does: slots cannot be added to one that is there."""
    names = [name for name, field in every.items() if field._field_type is _FIELD]
    inherited = {name for base in declared.__mro__[1:-1] for name in _slots(base)}
    positional = [name for name in names if every[name].init and not every[name].kw_only]
    content = dict(vars(declared))
    for name in (*names, "__dict__", "__weakref__"):  # what a class without slots has for its instances
        content.pop(name, None)
    content.setdefault("__match_args__", tuple(positional))
    if "__replace__" in model:  # from Python 3.13 on
        content.setdefault("__replace__", model["__replace__"])
    content.update(
        functions,
        __slots__=tuple([name for name in names if name not in inherited]),
        __dataclass_fields__=every,
        __dataclass_params__=model["__dataclass_params__"],
        __qualname__=declared.__qualname__,
    )
    make: Function = type(declared)  # which may be ABCMeta
    made: type[Any] = make(declared.__name__, declared.__bases__, content)
    return made


def _slots(base: type) -> tuple[str, ...]:
    slots = vars(base).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _refuse_disorder(fields: Sequence[dataclasses.Field[Any]]) -> None:
    """Raise TypeError where ``__init__`` could not be made, as ``dataclasses`` does; here that is made later."""
    defaults = False
    for field in fields:
        if field.init and not field.kw_only:
            if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING:
                defaults = True
            elif defaults:
                raise TypeError(f"non-default argument {field.name!r} follows default argument")


@recursive_repr()
def _show(self: Any) -> str:
    shown = [f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr]
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


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


def _kept(owner: _Initialiser, names: frozenset[str]) -> dict[str, Function]:
    """Return what refuses to change a value. A class without slots that inherits from it may have more of its own."""

    def set_none(self: Any, name: str, value: object) -> None:
        if type(self) is owner.cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(owner.cls, self).__setattr__(name, value)

    def delete_none(self: Any, name: str) -> None:
        if type(self) is owner.cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(owner.cls, self).__delattr__(name)

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

    __slots__ = ("_left", "_plan", "cls")

    cls: type[Any]

    def __init__(self) -> None:
        self._left = _FILLED_FIRST
        self._plan: _Plan | None = None

    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        # Python 3.13 asks with the class in place of an instance when it looks for the signature.
        if self._left == 0 or not isinstance(instance, self.cls):
            made = _initialiser(self.cls)
            self.cls.__init__ = made
            return made.__get__(instance, owner)
        self._left -= 1
        return MethodType(self._fill, instance)

    def _fill(self, instance: Any, /, *values: Any, **named: Any) -> None:
        """Set the fields as ``__init__`` does."""
        plan = self._plan = self._plan or _Plan(self.cls)
        given = dict(zip(plan.positional, values, strict=False))
        taken = len(given) + len(named)
        given.update(named)
        if len(values) > len(plan.positional) or len(given) < taken or not plan.required <= given.keys() <= plan.all:
            _initialiser(self.cls)(instance, *values, **named)  # which says what is wrong
            raise AssertionError(f"{self.cls.__qualname__} can be made so, and was refused")
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


_by_library = dataclasses.dataclass
_MODELS = {
    kw_only: vars(
        _by_library(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(
            type("_Model", (), {"__annotations__": {"field": "str"}, "__doc__": "", "__module__": __name__})
        )
    )
    for kw_only in (False, True)
}
"""What ``dataclasses`` leaves in a class of values, with and without ``kw_only``."""
_FIELD = _MODELS[False]["__dataclass_fields__"]["field"]._field_type

_MADE_ANEW: Any = type("_MadeAnew", (), {"__repr__": lambda _self: "<factory>"})()
"""The default of a parameter whose field is made anew for each instance."""
