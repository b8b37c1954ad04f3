"""What a flow may ask of a host; the same in process and, later, through an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vmkeep.errors import VmkeepError
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.tasks.task import Task
from vmkeep.hypervisor.answers import attend as attend
from vmkeep.hypervisor.answers import silence as silence
from vmkeep.hypervisor.patience import LibvirtPatience as LibvirtPatience
from vmkeep.hypervisor.patience import Silence
from vmkeep.hypervisor.patience import left_behind as left_behind
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.repository import Unanswered

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class TaskState:
    """How a task stands. ``result`` and ``error`` are set when it has ended, one of them.

    ``unanswered`` is the oldest call to the repository's storage that has not come back, ``silence`` that to libvirt.
    """

    ended: bool
    result: Any = None
    error: VmkeepError | None = None
    progress: Progress | None = None
    unanswered: Unanswered | None = None
    silence: Silence | None = None


class Host(Protocol):
    """A machine with VMs. All that is asked of it is a task: a value, with an answer of its own kind.

    A short one, which looks or changes a record, is asked. All others are started, polled and cancelled by the id of
    their operation, and those of one operation run one after the other.
    """

    def ask(self, task: Task[R]) -> R:
        """Carry out a short task and return its answer; raises its error."""
        ...

    def start(self, operation: str, task: Task[Any]) -> None:
        """Begin a task; the same task of the same operation is begun only once."""
        ...

    def poll(self, operation: str, wait_seconds: float = 0.0) -> TaskState:
        """Return how the operation's latest task stands: when it ends, or else after ``wait_seconds``."""
        ...

    def cancel(self, operation: str, reason: VmkeepError) -> None:
        """Ask the running task to end with ``reason`` as its error, after cleaning up."""
        ...

    def release_guest(self, operation: str) -> None:
        """Undo what an operation does to its guest, although its task hangs and cannot do so itself."""
        ...
