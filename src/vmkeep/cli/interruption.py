"""Ctrl-C and SIGTERM: an operation that runs is asked to stop, and its clean end is waited for.

Ctrl-Z: the process stops when no guest stands still because of it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from vmkeep.errors import Interrupted, Terminated
from vmkeep.stillness import forget_stop, stop_this_process

Cancel = Callable[[Interrupted], None]


class Interruption:
    """Turns signals into errors of the tree: raised at once, or handed to the operation that runs."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.received: Interrupted | None = None
        self._cancel: Cancel | None = None
        self._postponed = False
        self._tell = tell

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals; only the main thread may."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:  # whoever started it may have it ignored
            before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, lambda _number, _frame: stop_this_process())
            before[signal.SIGCONT] = signal.signal(signal.SIGCONT, lambda _number, _frame: forget_stop())
        tell_swallowed = sys.unraisablehook
        sys.unraisablehook = lambda told: None if isinstance(told.exc_value, Interrupted) else tell_swallowed(told)
        try:
            yield
        finally:
            sys.unraisablehook = tell_swallowed
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """While this holds, a signal is only noted; it is raised at the end. For imports, which take a second at most.

        Modules of others try one import after another and take whatever is raised for the failure of one (seen: a
        SIGTERM in DBOS's import of psycopg came out as "no pq wrapper available").
        """
        self._postponed = True
        try:
            yield
        finally:
            self._postponed = False
        self.check()

    @contextlib.contextmanager
    def handed_to(self, cancel: Cancel) -> Iterator[None]:
        """While this holds, a signal calls ``cancel`` and raises nothing: the operation itself ends with the error.

        Raises what was received before. It was raised then, but Python swallows what is raised in a callback of a weak
        reference, of which an import has many (seen with 3.11: Ctrl-C while a restore began was lost).
        """
        self._cancel = cancel
        try:
            self.check()
            yield
        finally:
            self._cancel = None

    def check(self) -> None:
        """Raise what was received: between operations of one command."""
        if self.received is not None:
            raise self.received

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        reason = Terminated("Ended by SIGTERM") if number == signal.SIGTERM else Interrupted("Interrupted by Ctrl-C")
        repeated = self.received is not None
        if not repeated:
            self.received = reason
        if self._postponed:
            return
        if self._cancel is None:
            raise reason
        self._cancel(self.received or reason)
        if not repeated:
            self._tell("Stopping: what was begun is being undone.")
