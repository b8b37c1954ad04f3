"""How long a command waits for the storage of the repository, and what happens when that does not answer.

A stalled device gives no error, and a thread that hangs in a call to it cannot be ended. So the flow never is that
thread: it watches, says what is waited for, and in the end gives up. Then the guest is let go, and the command ends as
if it was killed; whatever is left in the repository is put right by the next command, as after any crash.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar, cast

from vmkeep.errors import GivenUp, Interrupted, Stalled, VmkeepError
from vmkeep.host.protocol import Host, LibvirtPatience, TaskState, left_behind, silence
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.tasks.task import Task
from vmkeep.repository import Unanswered, unanswered
from vmkeep.threads import working_for

R = TypeVar("R")
T = TypeVar("T")
_TELL_SECONDS = 10.0
# Storage that is only slow ends its calls meanwhile, and everything is undone in order.
_LET_GO_SECONDS = 1.0
_GIVE_UP_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_LEFT_HINT = "The VM was let go on; what the point left in the repository is removed by the next command."


class Patience:
    """Watches one wait. ``let_go`` frees the guest, if the wait holds one; ``watch`` is told what is waited for."""

    def __init__(
        self, limit_seconds: float, *, watch: Callable[[Progress], None], let_go: Callable[[], None] = lambda: None
    ) -> None:
        self._limit = limit_seconds
        self._watch = watch
        self._let_go = let_go
        self._told = False
        self._cancelled: VmkeepError | None = None
        self._free = False
        # Which call is waited for, and how long that was seen, in all and since the operation was cancelled.
        self._number = 0
        self._seen = self._seen_cancelled = 0.0
        self._looked = time.monotonic()

    def cancel(self, reason: VmkeepError) -> None:
        """The operation was asked to end."""
        if self._cancelled is None:
            self._cancelled = reason

    def look(self, waiting: Unanswered | None) -> None:
        """Raise GivenUp when there is no more to be waited for."""
        self._count(waiting)
        if waiting is None:
            return
        if self._cancelled is not None and self._seen_cancelled >= _LET_GO_SECONDS:
            self._free_guest()
        if self._cancelled is not None and self._seen_cancelled >= _GIVE_UP_SECONDS:
            self._cancelled.hint = _LEFT_HINT
            self._give_up(self._cancelled, f"the repository's storage does not answer at {waiting.path}")
        message = f"the repository's storage has not answered for {self._seen:.0f} s, at {waiting.path}"
        if self._seen >= min(self._limit, _TELL_SECONDS) and not self._told:
            self._told = True
            self._watch(Progress("waiting for the repository's storage", note=f"{message}; waiting"))
        if self._seen >= self._limit:
            self._give_up(Stalled(message, path=waiting.path), None)

    def _count(self, waiting: Unanswered | None) -> None:
        now = time.monotonic()
        # A process that was stopped (Ctrl-Z) did not wait for anything meanwhile.
        since, self._looked = min(now - self._looked, _LET_GO_SECONDS), now
        if waiting is None or waiting.number != self._number:
            self._number = 0 if waiting is None else waiting.number
            self._seen = self._seen_cancelled = 0.0
            return
        self._seen += since
        self._seen_cancelled += since if self._cancelled is not None else 0.0

    def _give_up(self, error: VmkeepError, note: str | None) -> None:
        self._free_guest()
        if note is not None and note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise GivenUp(error)

    def _free_guest(self) -> None:
        if not self._free:
            self._free = True
            self._let_go()


def patiently(
    call: Callable[[], T],
    limit_seconds: float,
    *,
    watch: Callable[[Progress], None],
    stop: Callable[[], None] = lambda: None,
) -> T:
    """Return what a call that reaches the repository, or libvirt, returns. Raises GivenUp when one does not answer."""
    outcome: dict[str, Any] = {}
    ended = threading.Event()

    operation = uuid.uuid4().hex  # of its own: what other operations wait for is not its matter

    def run() -> None:
        try:
            with working_for(operation):
                outcome["result"] = call()
        except BaseException as error:
            outcome["error"] = error
        finally:
            ended.set()

    threading.Thread(target=run, name="vmkeep-repository", daemon=True).start()
    patience = Patience(limit_seconds, watch=watch)
    libvirt = LibvirtPatience(
        limit_seconds, tell=lambda sentence: watch(Progress("waiting for libvirt", note=sentence))
    )
    while not ended.wait(_LOOK_SECONDS):
        try:
            stop()
        except VmkeepError as reason:
            patience.cancel(reason)
            libvirt.cancel(reason)
        patience.look(unanswered(operation))
        libvirt.look(silence(operation))
    if "error" in outcome:
        raise outcome["error"]
    result: T = outcome["result"]
    return result


def carry_out(
    host: Host,
    operation: str,
    task: Task[R],
    *,
    stop: Callable[[], None],
    watch: Callable[[Progress], None],
    limit_seconds: float,
    stoppable: bool = True,
) -> R:
    """Run a task on a host to its end and return its answer, or raise its error.

    Starting the same operation's task twice is harmless, so this can be a step's body. ``stop`` raises when the
    operation is cancelled. That reaches the task at its next look; its own clean-up is waited for, but not for storage
    or a libvirt that does not answer (GivenUp). One that is not ``stoppable`` is not reached: it is an undo.
    """
    host.start(operation, task)
    told: Progress | None = None
    cancelled = False
    patience = Patience(limit_seconds, watch=watch, let_go=lambda: host.release_guest(operation))
    libvirt = LibvirtPatience(
        limit_seconds, tell=lambda sentence: watch(Progress("waiting for libvirt", note=sentence))
    )
    while True:
        try:
            state: TaskState = host.poll(operation, _LOOK_SECONDS)
        except Interrupted as reason:
            # Raised by the signal itself while what was interrupted before is put right.
            waiting = host.poll(operation).silence
            if waiting is None:
                raise
            raise left_behind(reason, waiting.message()) from reason
        if state.progress is not None and state.progress != told:
            told = state.progress
            watch(told)
        if state.ended:
            if state.error is not None:
                raise state.error
            return cast("R", state.result)  # the host answers as the task says
        if not cancelled:
            try:
                stop()
            except VmkeepError as reason:
                cancelled = True
                patience.cancel(reason)
                libvirt.cancel(reason)
                if stoppable:
                    host.cancel(operation, reason)
        patience.look(state.unanswered)
        libvirt.look(state.silence)
