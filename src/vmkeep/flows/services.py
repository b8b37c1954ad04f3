"""What a flow works with, given to it and not found by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from vmkeep.catalog import Catalog
from vmkeep.errors import Interrupted, VmkeepError
from vmkeep.flows.patience import Patience, patiently
from vmkeep.host.protocol import Host, LibvirtPatience, TaskState, left_behind
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.tasks.task import Task
from vmkeep.repository import Repository

R = TypeVar("R")
T = TypeVar("T")
_POLL_SECONDS = 0.05
_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Services:
    """The collaborators of flows. ``stop`` raises when the operation was cancelled; ``watch`` is told of progress."""

    host: Host
    catalog: Catalog
    repository: Callable[[], Repository]
    stop: Callable[[], None]
    watch: Callable[[Progress], None]
    stalled_after_seconds: float

    def on_host(self, operation: str, task: Task[R]) -> R:
        """Run a task on the host to its end and return its result, or raise its error.

        Starting the same operation's task twice is harmless, so this is a step's body. Cancelling reaches the
        task at its next look; its own clean-up is waited for, but not for storage or a libvirt that does not answer
        (GivenUp).
        """
        self.host.start(operation, task)
        told: Progress | None = None
        recorded = time.monotonic()
        cancelled = False
        patience = Patience(
            self.stalled_after_seconds, watch=self.watch, let_go=lambda: self.host.let_guest_go(operation)
        )
        libvirt = LibvirtPatience(
            self.stalled_after_seconds,
            tell=lambda sentence: self.watch(Progress("waiting for libvirt", note=sentence)),
        )
        while True:
            try:
                state: TaskState = self.host.poll(operation, _POLL_SECONDS)
            except Interrupted as reason:
                # Raised by the signal itself while what was interrupted before is put right.
                waiting = self.host.poll(operation).silence
                if waiting is None:
                    raise
                raise left_behind(reason, waiting.message()) from reason
            if state.progress is not None and state.progress != told:
                told = state.progress
                self.watch(told)
                if time.monotonic() - recorded >= _PROGRESS_SECONDS:
                    recorded = time.monotonic()
                    self.catalog.report_progress(operation, told.stage, told.done_bytes, told.total_bytes)
            if state.ended:
                if state.error is not None:
                    raise state.error
                return cast("R", state.result)  # the host answers as the task says
            if not cancelled:
                try:
                    self.stop()
                except VmkeepError as reason:
                    cancelled = True
                    patience.cancel(reason)
                    libvirt.cancel(reason)
                    self.host.cancel(operation, reason)
            patience.look(state.unanswered)
            libvirt.look(state.silence)

    def with_repository(self, call: Callable[[Repository], T]) -> T:
        """Call something of the repository from a flow itself. Raises GivenUp when its storage does not answer."""
        return patiently(lambda: call(self.repository()), self.stalled_after_seconds, watch=self.watch, stop=self.stop)
