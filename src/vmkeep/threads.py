"""Threads that work for an operation, and the threads that those start.

What waits for a storage or for libvirt is noted where the call is made. Of several operations in one process only the
one whose call it is must hear of it, so each thread knows for which it works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class _Here(threading.local):
    operation: str = ""


_here = _Here()


def operation_here() -> str:
    """Return the id of the operation that this thread works for; empty for none."""
    return _here.operation


@contextmanager
def working_for(operation: str) -> Iterator[None]:
    """Let this thread work for an operation for as long as the block takes."""
    before, _here.operation = _here.operation, operation
    try:
        yield
    finally:
        _here.operation = before


def carried(call: Callable[P, R]) -> Callable[P, R]:
    """Return the call for another thread, which then works for the operation of this one."""
    operation = operation_here()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with working_for(operation):
            return call(*args, **kwargs)

    return run
