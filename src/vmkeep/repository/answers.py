"""What this process waits for in the storage of a repository.

A device that stalls gives no error: the call does not come back, and a thread in it cannot be ended (a write to a
frozen file system, a suspended device or a dead NFS server sleeps uninterruptibly). So each call to a store is noted
while it is under way, and whoever waits for such a thread can tell how long, and for what.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vmkeep.threads import operation_here
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The oldest call that has not come back: which one, where it went, and since when."""

    number: int
    path: str
    seconds: float


_calls: dict[int, tuple[str, float, str]] = {}
_numbers = itertools.count(1)
_lock = threading.Lock()


@contextmanager
def under_way(path: str) -> Iterator[None]:
    """Note a call to a store for as long as the block takes."""
    number = next(_numbers)
    with _lock:
        _calls[number] = (path, time.monotonic(), operation_here())
    try:
        yield
    finally:
        with _lock:
            del _calls[number]


def unanswered(operation: str | None = None) -> Unanswered | None:
    """Return the oldest call that is under way, or None: for an operation, or of all."""
    with _lock:
        number = min((number for number, call in _calls.items() if operation in (None, call[2])), default=None)
        if number is None:
            return None
        path, since, _ = _calls[number]
    return Unanswered(number, path, time.monotonic() - since)
