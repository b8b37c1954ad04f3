"""What a flow may ask of a host; the same in process and, later, through an agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from vmkeep.errors import VmkeepError
from vmkeep.host.findings import CheckupRequest, Finding, Mend
from vmkeep.host.survey import Progress, SurveyedVm
from vmkeep.host.tasks import MakeSnapshot, Task
from vmkeep.repository import Unanswered


@dataclass(frozen=True, slots=True)
class TaskState:
    """How a task stands. ``result`` and ``error`` are set when it has ended, one of them.

    ``unanswered`` is the oldest call to the repository's storage that has not come back.
    """

    ended: bool
    result: Any = None
    error: VmkeepError | None = None
    progress: Progress | None = None
    unanswered: Unanswered | None = None


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """A host's UUID as libvirt knows it, and its name."""

    uuid: str
    name: str


class Host(Protocol):
    """A machine with VMs. Tasks of one operation run one after the other; all are started, polled and cancelled."""

    def identity(self) -> HostIdentity:
        """Return which host this is."""
        ...

    def vm_uuid(self, name_or_uuid: str) -> str:
        """Return the UUID of a VM without looking at the rest of it; raises VmNotFound."""
        ...

    def vms(self) -> tuple[SurveyedVm, ...]:
        """Return the VMs of the host by name."""
        ...

    def vm(self, name_or_uuid: str) -> SurveyedVm:
        """Return one VM; raises VmNotFound."""
        ...

    def snapshot_xml(self, request: MakeSnapshot) -> str:
        """Return what libvirt would be asked for; raises what refuses the snapshot. Nothing is changed."""
        ...

    def checkup(self, request: CheckupRequest) -> tuple[Finding, ...]:
        """Look at the host and its VMs and change nothing; raises VmNotFound for a VM asked for that is not there."""
        ...

    def mend(self, order: Mend) -> str:
        """Carry out what a finding says and return a sentence about it; the caller holds the VM's lock."""
        ...

    def start(self, operation: str, task: Task) -> None:
        """Begin a task; the same task of the same operation is begun only once."""
        ...

    def poll(self, operation: str, wait_seconds: float = 0.0) -> TaskState:
        """Return how the operation's latest task stands: when it ends, or else after ``wait_seconds``."""
        ...

    def cancel(self, operation: str, reason: VmkeepError) -> None:
        """Ask the running task to end with ``reason`` as its error, after cleaning up."""
        ...

    def let_guest_go(self, operation: str) -> None:
        """Undo what an operation does to its guest, although its task hangs and cannot do so itself."""
        ...
