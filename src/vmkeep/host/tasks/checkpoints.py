"""What a host is asked of a VM's checkpoints, and what it answers."""

from __future__ import annotations

from vmkeep.host.tasks.task import Task
from vmkeep.planning.checkpoint_health import CheckpointHealth
from vmkeep.planning.checkpoint_repair import RepairPlan, RepairStep
from vmkeep.planning.model import KnownPoint
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRequest(Task[tuple[CheckpointHealth, ...]]):
    """Tell the health of a VM's checkpoints and bitmaps, and change nothing; raises VmNotFound.

    ``repository`` is the id of ours, None when there is none; ``points`` are the VM's, newest first. ``unsure``: a
    checkpoint of ours without a point among them may have one all the same; those of ``others``, by their ids, have.
    """

    vm: str
    repository: str | None
    points: tuple[KnownPoint, ...]
    unsure: bool = False
    others: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRequest(Task[RepairPlan]):
    """Tell what mends a VM's checkpoints, and change nothing; the operation that asks holds the VM.

    ``foreign`` names what the user gave leave for, of others.

    ``refused_bitmaps``, by checkpoint and disk: libvirt refused them when their checkpoint was defined again.
    """

    checkpoints: CheckpointRequest
    foreign: frozenset[str] = frozenset()
    refused_bitmaps: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class StepDone:
    """What a step did, in words, and the disks whose bitmap libvirt refused."""

    told: str
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RepairCheckpoint(Task[StepDone]):
    """Carry out one step of a repair; it may be repeated. The operation that asks holds the VM."""

    vm_uuid: str
    step: RepairStep
