"""What a flow works with, given to it and not found by it."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from vmkeep.catalog import Catalog, OperationState
from vmkeep.config import DEFAULT_REMOVED_TPM_DAYS
from vmkeep.errors import Cancelled, InvalidRequest, VmkeepError
from vmkeep.flows.patience import carry_out, patiently
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.locks import HoldVm, LetVmGo
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.tasks.task import Task
from vmkeep.repository import Repository
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.planning.retention import KeepRule

R = TypeVar("R")
T = TypeVar("T")
_PROGRESS_SECONDS = 1.0
_CANCEL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Services:
    """The collaborators of flows. ``stop`` raises when the operation was cancelled; ``watch`` is told of progress.
    ``undoing``: a step of the host is not told of that, because it puts right what was stopped.

    ``hosts`` are all that this installation keeps VMs of, by id; steps work on that of the id ``at``. A step that works
    on another one names it: ``services.on(host_id).on_host(...)``.
    """

    hosts: Mapping[str, Host]
    at: str
    catalog: Catalog
    repository: Callable[[], Repository]
    stop: Callable[[], None]
    watch: Callable[[Progress], None]
    stalled_after_seconds: float
    keep_state_versions: Callable[[], KeepRule]
    removed_tpm_days: int = DEFAULT_REMOVED_TPM_DAYS
    undoing: bool = False

    @property
    def host(self) -> Host:
        """The host that steps work on."""
        return self.hosts[self.at]

    def on(self, host_id: str) -> Services:
        """Return the same for a step that works on another host. Raises InvalidRequest for an id that is none."""
        if host_id not in self.hosts:
            raise InvalidRequest(f"there is no host {host_id!r} here", hint=f"Known are: {', '.join(self.hosts)}.")
        return dataclasses.replace(self, at=host_id)

    def on_each(self) -> Iterator[Services]:
        """Yield the same for each host: what was left over is asked of all of them."""
        return (self.on(host_id) for host_id in self.hosts)

    def on_host(self, operation: str, task: Task[R]) -> R:
        """Run a task on the host ``at`` to its end, as ``carry_out``; its progress is noted in the catalogue."""
        recorded = time.monotonic()

        def watch(progress: Progress) -> None:
            nonlocal recorded
            self.watch(progress)
            if progress.note is None and time.monotonic() - recorded >= _PROGRESS_SECONDS:
                recorded = time.monotonic()
                self.catalog.report_progress(operation, progress.stage, progress.done_bytes, progress.total_bytes)

        return carry_out(
            self.host,
            operation,
            task,
            stop=self.stop,
            watch=watch,
            limit_seconds=self.stalled_after_seconds,
            stoppable=not self.undoing,
        )

    def warn(self, sentence: str) -> None:
        """Tell a person, now, what keeps nothing from going on."""
        self.watch(Progress("ending", note=f"warning: {sentence}"))

    def with_repository(self, call: Callable[[Repository], T]) -> T:
        """Call something of the repository from a flow itself. Raises GivenUp when its storage does not answer."""
        return patiently(lambda: call(self.repository()), self.stalled_after_seconds, watch=self.watch, stop=self.stop)


class _Cancellation:
    """Raises what ends an operation: what the process itself was told, or that another one asked it to stop.

    That stands in the catalogue, which is asked once a second; a catalogue that fails stops nothing.
    """

    def __init__(self, services: Services, operation: str) -> None:
        self._services = services
        self._operation = operation
        self._looked = time.monotonic()
        self._asked: Cancelled | None = None

    def __call__(self) -> None:
        self._services.stop()
        if self._asked is None and time.monotonic() - self._looked >= _CANCEL_SECONDS:
            self._looked = time.monotonic()
            with suppress(VmkeepError):
                if self._services.catalog.cancel_requested(self._operation):
                    self._asked = Cancelled("The operation was stopped by `vmkeep ops cancel`")
        if self._asked is not None:
            raise self._asked


def stoppable(services: Services, operation: str) -> Services:
    """Return the same for a flow, which other processes may ask to stop."""
    return dataclasses.replace(services, stop=_Cancellation(services, operation))


@contextmanager
def held_vm(host: Host, vm_uuid: str, vm: str, doing: str, *, wait: bool = True) -> Iterator[None]:
    """Hold a VM on its host for tasks that belong together. Raises VmBusy, as HoldVm."""
    operation = uuid.uuid4().hex
    host.ask(HoldVm(operation, vm_uuid, vm, doing, wait))
    try:
        yield
    finally:
        host.ask(LetVmGo(operation))


def end_operation(
    catalog: Catalog, executor: str, operation: str, state: OperationState, error: VmkeepError | None
) -> None:
    """Note how an operation ended; a catalogue that fails here must not hide what happened."""
    with suppress(VmkeepError):
        catalog.move_operation(operation, executor, state, error.as_dict() if error is not None else None)
