"""Several who use one repository, each of whose calls to the storage waits for its turn.

What happens between two calls cannot be seen by others, so an order of calls is all that there is to an interleaving.
The order is drawn from a seed. One who is killed makes no call any more, not even to clean up.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

from vmkeep.repository import Repository

CALLS = ("put", "put_pack", "make_durable", "get", "ranges", "stat", "list", "delete", "delete_all", "now")


class Killed(BaseException):
    """The process is gone."""


def hooked(repository: Repository, hook: Callable[[str, Any], None]) -> Repository:
    """Let ``hook`` be called before each call of this thread to the storage, with its name and first argument."""
    store, thread = repository._store, threading.get_ident()

    def wrapped(name: str) -> Callable[..., Any]:
        real = getattr(store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                hook(name, args[0] if args else None)
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(store, name, wrapped(name))
    return repository


class Turns:
    """Gives each actor its turns, in an order of its own for each seed."""

    def __init__(self, seed: int, open_repository: Callable[[], Repository], *, kills: int = 0) -> None:
        self.random = random.Random(seed)
        self._open = open_repository
        self._kills = kills
        self._changed = threading.Condition()
        self._waiting: set[str] = set()
        self._alive: set[str] = set()
        self._dead: set[str] = set()
        self._turn: str | None = None
        self._threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []
        self.order: list[str] = []

    def add(self, name: str, act: Callable[[Repository, Callable[[float], object]], object]) -> None:
        """Let an actor begin; it gets a repository of its own, and what it sleeps with."""
        self._alive.add(name)

        def run() -> None:
            try:
                act(
                    hooked(self._open(), lambda _call, _what: self._wait(name)),
                    lambda _: self._wait(name),
                )
            except Killed:
                pass
            except BaseException as error:
                self.failures.append(error)
            with self._changed:
                self._alive.discard(name)
                self._changed.notify_all()

        self._threads.append(threading.Thread(target=run, name=name, daemon=True))

    def run(self) -> None:
        """Let all actors act until they are done; raises what failed in one."""
        for thread in self._threads:
            thread.start()
        while True:
            with self._changed:
                assert self._changed.wait_for(lambda: self._turn is None and self._waiting >= self._alive, 60), (
                    self.order
                )
                if not self._alive:
                    break
                self._turn = self.random.choice(sorted(self._alive))
                if self._kills and self.random.random() < 0.004:
                    self._kills -= 1
                    self._dead.add(self._turn)
                self.order.append(self._turn)
                self._changed.notify_all()
        if self.failures:
            raise self.failures[0]

    def _wait(self, name: str) -> None:
        if name in self._dead:
            raise Killed
        with self._changed:
            self._waiting.add(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._turn == name)
            self._waiting.discard(name)
            self._turn = None
            self._changed.notify_all()
        if name in self._dead:
            raise Killed
