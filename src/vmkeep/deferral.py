"""Modules that a library imports for what does not occur here: they are loaded when something of them is used.

Some libraries import at their start all that any of their users may need. Within ``deferred`` such imports give a
placeholder; each name that is taken from one is a class of its own, and does what it stands for when it is called or
asked for something: it imports the real module then. So nothing is lost, and what is never used is never loaded. What
is called within the block already, as the library makes something at its import, gives a promise of its result.

``shown`` does the like for packages of vmkeep's own.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def deferred(
    *names: str,
    given: Mapping[str, Mapping[str, object]] | None = None,
    raised: Mapping[str, Collection[str]] | None = None,
) -> Iterator[None]:
    """Within the block, importing one of these modules gives a placeholder. Whole names: "psycopg", "psycopg.errors".

    A module that is loaded already is left as it is. After the block everybody who imports one gets the real one; only
    what was imported within it keeps its placeholders, and what asks such a module itself for a name after the block
    has the real one. Not for names that are bases of classes, or that were taken from a module and stand in ``except``:
    a placeholder is neither. ``given`` are names of a module that are to be something else for whoever imports them
    within the block, where a placeholder would be looked into. ``raised`` are exceptions of a module that are looked
    for whatever went wrong: until it is loaded nothing raises them, and no error is made worse by an import.
    """
    placeholders = {name: _Placeholder(name, (raised or {}).get(name, ())) for name in names if name not in sys.modules}
    sys.modules.update(placeholders)
    for name, placeholder in placeholders.items():
        vars(placeholder).update((given or {}).get(name, {}))
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:  # `import a.b` binds a, and looks for b in it
            setattr(sys.modules[parent], child, placeholder)
    try:
        yield
    finally:
        for name, placeholder in placeholders.items():
            if sys.modules.get(name) is placeholder:
                del sys.modules[name]
            parent, _, child = name.rpartition(".")
            if parent not in placeholders and vars(sys.modules.get(parent, sys)).get(child) is placeholder:
                delattr(sys.modules[parent], child)


class _Placeholder(ModuleType):
    """A module that was not loaded."""

    def __init__(self, name: str, raised: Collection[str] = ()) -> None:
        super().__init__(name)
        self.__raised = raised
        self.__path__: list[str] = []  # a package, so that modules within it can be asked for

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for some that no module must have
            raise AttributeError(name)
        if name in self.__raised and not _is_loaded(self.__name__):
            return _NeverRaised
        if not _stands(self.__name__):  # of a function that runs after the block, and may catch what it asks for
            return getattr(importlib.import_module(self.__name__), name)
        return _Deferred(name, (), {"__module__": self.__name__})


class _NeverRaised(BaseException):
    """What of a module that is not loaded nothing can raise."""


class _Deferred(type):
    """What was taken from a placeholder, as a class: annotations may name it, and whatever else is asked loads it."""

    def __call__(cls, *args: Any, **named: Any) -> Any:
        if _stands(cls.__module__):
            return _Promise(cls.__module__, lambda: cls._real()(*args, **named))
        return cls._real()(*args, **named)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if _stands(cls.__module__):
            return _Promise(cls.__module__, lambda: getattr(cls._real(), name))
        return getattr(cls._real(), name)

    def __getitem__(cls, _parameters: object) -> _Deferred:
        return cls  # of an annotation

    def __instancecheck__(cls, instance: object) -> bool:
        # Nothing is an instance of a class that was never loaded. So no error is made worse by an import.
        return cls.__module__ in sys.modules and isinstance(instance, cls._real())

    def _real(cls) -> Any:
        return getattr(importlib.import_module(cls.__module__), cls.__name__)


def _is_loaded(module: str) -> bool:
    return not isinstance(sys.modules.get(module), _Placeholder | None)


def _stands(module: str) -> bool:
    """Tell whether a placeholder stands for this module, which is so within the block."""
    return isinstance(sys.modules.get(module), _Placeholder)


class _Promise:
    """What a call or an attribute of something deferred will be: it is made when it is used after the block."""

    def __init__(self, module: str, make: Callable[[], Any]) -> None:
        self._module = module
        self._make = make
        self._made: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if _stands(self._module):
            return _Promise(self._module, lambda: getattr(self._real(), name))
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        if _stands(self._module):
            return _Promise(self._module, lambda: self._real()(*args, **named))
        return self._real()(*args, **named)

    def _real(self) -> Any:
        if not self._made:
            self._made.append(self._make())
        return self._made[0]


def shown(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package that shows names of its modules, and imports each when it is asked for.

    ``names`` are those of each module, separated by blanks. Importing one module of the package then loads no others.
    """
    modules = {name: module for module, of_it in names.items() for name in of_it.split()}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
