"""Each task that a host can be asked has a room whose desk knows it."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from vmkeep.host.local import _desk
from vmkeep.host.tasks.task import Task
from vmkeep.host.tasks.wire import task_classes


@pytest.mark.parametrize("task", task_classes(), ids=lambda task: task.__name__)
def test_desk_of_its_room_knows_a_task(task: type[Task[Any]]) -> None:
    desk = _desk(task.__module__.rpartition(".")[2])
    known = vars(sys.modules[desk.__module__]).values()
    assert any(kind in known for kind in task.__mro__ if kind is not Task)


def test_task_of_no_room_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="nowhere"):
        _desk("nowhere")
