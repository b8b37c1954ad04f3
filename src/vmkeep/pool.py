"""A pool of threads that work for an operation. Who has none, as a guardian, does without what it loads: logging."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from vmkeep.threads import carried

P = ParamSpec("P")
R = TypeVar("R")


class Pool(ThreadPoolExecutor):
    """A pool whose threads work for the operation that gives them work."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        return super().submit(carried(fn), *args, **kwargs)
