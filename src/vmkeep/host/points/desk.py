"""The tasks of points, carried out."""

from __future__ import annotations

from typing import Any

from vmkeep.host.operation import Operation
from vmkeep.host.points.point import Point
from vmkeep.host.tasks.points import AbandonPoint, ClosePoint, CopyPoint, KeepCheckpoint, OpenPoint
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task; all but the first go to the point that OpenPoint made."""
    match task:
        case OpenPoint():
            return _opened(task, operation).open()
        case AbandonPoint():
            return _point(operation).abandon() if operation.has(Point) else None
        case CopyPoint():
            return _point(operation).copy(task)
        case KeepCheckpoint():
            return _point(operation).keep_checkpoint()
        case ClosePoint():
            return _point(operation).close()
    raise AssertionError(f"not a task of points: {task}")


def _opened(task: OpenPoint, operation: Operation) -> Point:
    def make() -> Point:
        point = Point(
            operation.settings,
            operation.connected(),
            operation.repository(),
            task,
            stop=operation.stop,
            watch=operation.watch,
        )
        operation.holder = point
        return point

    return operation.kept(Point, make)


def _point(operation: Operation) -> Point:
    return operation.kept(Point)
