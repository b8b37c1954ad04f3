"""Tasks that were made up, whose end the tests decide; their noun is the name of this module."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Final

from vmkeep.errors import NoSpace
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.tasks.task import Task
from vmkeep.repository.answers import under_way

STORAGE: Final = "/a/storage/that/stalls"
begun: list[Task[Any]] = []
go_on = threading.Event()


@dataclass(frozen=True, slots=True)
class Answer(Task[str]):
    """Answer with these words."""

    words: str


@dataclass(frozen=True, slots=True)
class Fail(Task[None]):
    """Raise NoSpace."""

    path: str


@dataclass(frozen=True, slots=True)
class Work(Task[str]):
    """Tell of progress, and then work until ``go_on`` is set or the operation is stopped."""


@dataclass(frozen=True, slots=True)
class Stall(Task[None]):
    """Wait for a storage that answers when ``go_on`` is set."""


def carry_out(task: Task[Any], operation: Operation) -> Any:
    begun.append(task)
    match task:
        case Answer():
            return task.words
        case Fail():
            raise NoSpace(f"{task.path} is full", path=task.path)
        case Work():
            operation.watch(Progress("working", None, 1, 2))
            while not go_on.wait(0.01):
                operation.stop()
            return "done"
        case Stall():
            operation.repository()
            with under_way(STORAGE):
                go_on.wait(30)
    return None
