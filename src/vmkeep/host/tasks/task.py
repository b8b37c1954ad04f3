"""What every task is: a frozen value that says what a host is asked to do, and of which kind the answer is."""

from __future__ import annotations

from typing import Generic, TypeVar

R = TypeVar("R", covariant=True)


class Task(Generic[R]):
    """Something that a host can be asked to do. ``R`` is what it answers: a plain value, or None.

    A task is a frozen dataclass of plain values: it is stored with its flow, and goes over the wire to a host that is
    another machine. No path of the asking side, nothing that can be called, and nothing of a process is in it.
    """

    __slots__ = ()
