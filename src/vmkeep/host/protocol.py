"""What a flow may ask of a host; the same in process and, later, through an agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vmkeep.errors import VmkeepError
from vmkeep.host.survey import Progress, SurveyedVm
from vmkeep.host.tasks import MakeSnapshot, Task
from vmkeep.hypervisor.patience import LibvirtPatience as LibvirtPatience
from vmkeep.hypervisor.patience import Silence
from vmkeep.hypervisor.patience import left_behind as left_behind
from vmkeep.repository import Unanswered

if TYPE_CHECKING:
    from vmkeep.host.checkpoint_health import CheckpointHealth
    from vmkeep.host.checkpoint_repair import RepairPlan, RepairStep
    from vmkeep.host.checkpoint_survey import CheckpointRequest, RepairRequest, StepDone
    from vmkeep.host.findings import CheckupRequest, Finding, Mend
    from vmkeep.host.momentorders import MomentChange, MomentsChanged, VmMoments
    from vmkeep.host.snapshot_health import SnapshotHealth
    from vmkeep.moments import MomentKind


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

    def moments(self, kind: MomentKind, vm: str, *, secure: bool = False, domain: bool = False) -> VmMoments:
        """Return the checkpoints, or the snapshots, that libvirt lists of a VM; raises VmNotFound."""
        ...

    def moment_xml(
        self, kind: MomentKind, vm: str, name: str, *, secure: bool = False, domain: bool = True, sizes: bool = False
    ) -> str:
        """Return the definition of one; raises MomentNotFound."""
        ...

    def moment_definitions(self, kind: MomentKind, vm: str, *, secure: bool = False) -> dict[str, str]:
        """Return the definitions of all of a kind by name."""
        ...

    def change_moments(self, order: MomentChange, *, stop: Callable[[], None] = ...) -> MomentsChanged:
        """Carry out an order under the VM's lock; raises VmBusy when another operation of vmkeep's holds it."""
        ...

    def checkpoint_health(self, request: CheckpointRequest) -> tuple[CheckpointHealth, ...]:
        """Return the health of a VM's checkpoints and bitmaps, and change nothing; raises VmNotFound."""
        ...

    def snapshot_health(self, name_or_uuid: str) -> tuple[SnapshotHealth, ...]:
        """Return the health of a VM's snapshots, and change nothing; raises VmNotFound."""
        ...

    def checkpoint_repair(self, request: RepairRequest) -> RepairPlan:
        """Return what mends a VM's checkpoints, and change nothing; the caller holds the VM's lock."""
        ...

    def repair_checkpoint(self, vm_uuid: str, step: RepairStep) -> StepDone:
        """Carry out one step of such a plan; it may be repeated. The caller holds the VM's lock."""
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
