"""A command for a host that is another machine: a task with its place among those of its operation, as bytes.

Who reads it is root on a host with VMs, and whoever wrote it may be anybody who has the server in hand. So it is a task
that has a name, with exactly the types that its class declares, or it is refused; there is no other way to say
something. What the values mean is judged by the rooms, as for a task of the machine at hand.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from vmkeep.errors import InvalidRequest, VmkeepError
from vmkeep.host.tasks.task import Task
from vmkeep.host.tasks.wire import Codec, classes_within, task_classes
from vmkeep.values import dataclass

MOST_BYTES: Final = 8 * 1024 * 1024
_LARGEST: Final = 2**63 - 1
_FIELDS: Final = {"operation", "epoch", "order", "task"}
_OPERATION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_HINT: Final = (
    "Nothing was done. Server and agent must be of the same release; if they are, look who changed the command."
)
# What a codec, a class and a text that are not meant for each other may raise.
_UNFIT: Final = (AssertionError, AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Command:
    """A task of an operation: ``order`` counts those of the operation, ``epoch`` the servers that led it in turn."""

    operation: str
    epoch: int
    order: int
    task: Task[Any]


def write_command(command: Command) -> bytes:
    """Return a command as JSON."""
    told = {"operation": command.operation, "epoch": command.epoch, "order": command.order}
    return json.dumps({**told, "task": _codec().encode(command.task)}).encode()


def read_command(raw: bytes) -> Command:
    """Return what ``write_command`` wrote. Raises InvalidRequest for all else, whatever it is."""
    if len(raw) > MOST_BYTES:
        raise _refusal(f"it has {len(raw)} bytes, and may have {MOST_BYTES}")
    try:
        told = json.loads(raw, parse_constant=_no_constant)
        if not isinstance(told, dict) or set(told) != _FIELDS:
            raise _refusal("it has other fields than a command")
        task = _codec().decode(told["task"])
        if type(task) not in _known_tasks():
            raise _refusal("it names no task")
        if not conforms(task, type(task)):
            raise _refusal(f"a field of its task {type(task).__name__} has not the type that it must have")
    except (VmkeepError, *_UNFIT) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise _refusal("it is no command that is known here") from error
    operation = told["operation"]
    if not isinstance(operation, str) or _OPERATION.fullmatch(operation) is None:
        raise _refusal("its operation has no id")
    return Command(operation, _count(told["epoch"]), _count(told["order"]), task)


def conforms(value: Any, declared: Any) -> bool:  # noqa: C901  one arm a kind of type, and nothing else
    """Say whether a value is of a declared type, in all its parts: a number is no truth, and a list no tuple."""
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if isinstance(declared, typing.TypeVar):
        return any(conforms(value, each) for each in declared.__constraints__ or (declared.__bound__,))
    if origin in (typing.Union, types.UnionType):
        return any(conforms(value, each) for each in parts)
    if origin is typing.Literal:
        return any(type(value) is type(each) and value == each for each in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(parts) == 2 and parts[1] is Ellipsis:
            return all(conforms(each, parts[0]) for each in value)
        return len(value) == len(parts) and all(map(conforms, value, parts))
    if origin in (frozenset, list):
        return isinstance(value, origin) and all(conforms(each, parts[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(
            conforms(key, parts[0]) and conforms(held, parts[1]) for key, held in value.items()
        )
    kind = origin or declared
    if kind is None or kind is type(None):
        return value is None
    if kind is float:
        return type(value) in (int, float)
    if kind in (bool, int, str, bytes):
        return type(value) is kind
    if not isinstance(kind, type) or not isinstance(value, kind):
        return False
    if isinstance(value, Enum):
        return True
    held: type[Any] = type(value)
    return dataclasses.is_dataclass(held) and all(
        conforms(getattr(value, name), hint) for name, hint in _hints(held).items()
    )


@functools.cache
def _known_tasks() -> frozenset[type[Any]]:
    """Return what a command may ask for."""
    return frozenset(task_classes())


@functools.cache
def _codec() -> Codec:
    """Of tasks alone: no class of an answer is made of what a server says."""
    return Codec({kind: None for task in task_classes() for kind in classes_within(task)})


@functools.cache
def _hints(kind: type[Any]) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise _refusal("its epoch or its order is no count")
    return value


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _refusal(why: str) -> InvalidRequest:
    return InvalidRequest(f"The server sent a command that is refused: {why}", hint=_HINT)
