"""Tasks and answers as JSON, for a host that is another machine, and for flows that outlive their process.

What is written names its class, and only classes that were named to the codec are made again: what comes over a wire,
or out of a database, brings in no others, and never pickle.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import pkgutil
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from vmkeep.errors import VmkeepError
from vmkeep.host import tasks
from vmkeep.host.tasks.task import Task


class Codec:
    """Values to JSON and back: texts, numbers, tuples, lists, sets, mappings, errors of ours, and some classes."""

    def __init__(self, classes: Iterable[type[Any]]) -> None:
        """``classes`` are the dataclasses and enumerations that may be in a value. Their names must differ."""
        self._classes: dict[str, type[Any]] = {}
        for kind in classes:
            known = self._classes.setdefault(kind.__name__, kind)
            assert known is kind, f"two classes that cross the door are called {kind.__name__}"

    def encode(self, value: Any) -> Any:  # noqa: C901  one arm a kind of value, and nothing else
        """Return the value as what ``json`` can write. Raises TypeError for one of a class that was not named."""
        kind = type(value).__name__
        if isinstance(value, Enum) and self._classes.get(kind) is type(value):
            return {"$enum": kind, "value": value.value}
        if value is None or isinstance(value, str | int | float):
            return value
        if isinstance(value, bytes):
            return {"$bytes": value.hex()}
        if isinstance(value, tuple):
            return {"$tuple": [self.encode(item) for item in value]}
        if isinstance(value, frozenset):
            return {"$set": [self.encode(item) for item in sorted(value)]}
        if isinstance(value, list):
            return [self.encode(item) for item in value]
        if isinstance(value, Mapping):
            # A key that begins with the mark of ours would be taken for one.
            assert not any(str(key).startswith("$") for key in value), "a mapping has a key that begins with $"
            return {str(key): self.encode(item) for key, item in value.items()}
        if isinstance(value, VmkeepError):
            return {"$error": value.as_dict(), "code": value.code}
        if isinstance(value, BaseException):
            return {"$fault": f"{type(value).__name__}: {value}"}
        if dataclasses.is_dataclass(value) and self._classes.get(kind) is type(value):
            fields = {
                field.name: self.encode(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init
            }
            return {"$value": kind, "fields": fields}
        raise TypeError(f"a {kind} cannot cross to another process")

    def decode(self, value: Any) -> Any:
        """Return what was encoded. Raises KeyError for a class that was not named."""
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$bytes" in value:
            return bytes.fromhex(value["$bytes"])
        if "$tuple" in value:
            return tuple(self.decode(item) for item in value["$tuple"])
        if "$set" in value:
            return frozenset(self.decode(item) for item in value["$set"])
        if "$enum" in value:
            return self._classes[value["$enum"]](value["value"])
        if "$error" in value:
            return VmkeepError.from_dict(value["$error"])
        if "$fault" in value:
            return VmkeepError(value["$fault"])
        if "$value" in value:
            kind = self._classes[value["$value"]]
            # It may have been written by another release: fields that a class lost since are dropped, new ones have
            # defaults (docs/internals/flows.md, rules for changing a flow).
            known = {field.name for field in dataclasses.fields(kind)}
            return kind(**{name: self.decode(item) for name, item in value["fields"].items() if name in known})
        return {key: self.decode(item) for key, item in value.items()}


def task_classes() -> tuple[type[Task[Any]], ...]:
    """Return every task that a host can be asked."""
    names = [module.name for module in pkgutil.iter_modules(tasks.__path__)]
    known = [vars(importlib.import_module(f"{tasks.__name__}.{name}")).values() for name in names]
    kinds = [kind for kind in itertools.chain(*known) if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    return tuple(dict.fromkeys(kind for kind in kinds if issubclass(kind, Task)))


def answer_of(task: type[Task[Any]]) -> Any:
    """Return the type of what a task answers, as it is declared."""
    for base in task.__mro__:
        for declared in getattr(base, "__orig_bases__", ()):
            if typing.get_origin(declared) is Task:
                return typing.get_args(declared)[0]
    raise AssertionError(f"{task.__name__} does not say what it answers")


def classes_within(declared: Any) -> Iterator[type[Any]]:
    """Yield the dataclasses and enumerations that a value of a declared type may hold, each once."""
    seen: set[Any] = set()
    todo = [declared]
    while todo:
        each = todo.pop()
        if isinstance(each, typing.TypeVar):
            todo += each.__constraints__ or ([each.__bound__] if each.__bound__ is not None else [])
            continue
        todo += [part for part in typing.get_args(each) if not isinstance(part, str)]
        if typing.get_origin(each) is not None or not isinstance(each, type) or each in seen:
            continue
        seen.add(each)
        if dataclasses.is_dataclass(each):
            todo += typing.get_type_hints(each).values()
            todo += _subclasses(each)
            yield each
        elif issubclass(each, Enum):
            yield each
        elif issubclass(each, Task):
            todo += _subclasses(each)


def _subclasses(kind: type[Any]) -> list[type[Any]]:
    """Return the classes below one. A dataclass with slots is made twice, and the first of the two is nobody's."""
    return [
        each for each in kind.__subclasses__() if getattr(sys.modules[each.__module__], each.__name__, None) is each
    ]


def codec_of_tasks() -> Codec:
    """Return the codec for all that a host can be asked, and all that it answers."""
    kinds: dict[type[Any], None] = {}
    for task in task_classes():
        for declared in (task, answer_of(task)):
            kinds |= dict.fromkeys(classes_within(declared))
    return Codec(kinds)
