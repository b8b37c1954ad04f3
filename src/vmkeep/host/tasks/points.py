"""What a host is asked for a point of a VM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from vmkeep.custody.states import KnownState
from vmkeep.host.tasks.task import Task
from vmkeep.planning.model import KnownPoint
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class PointOpened:
    """``created`` is the instant, ISO 8601 in UTC; ``base`` the newest point that incremental disks build on."""

    point_id: str
    vm_uuid: str
    vm_name: str
    created: str
    checkpoint: str
    base: str | None
    pause_ms: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenPoint(Task[PointOpened]):
    """Plan the point and fix its instant: job, checkpoint, NVRAM and TPM. Answers PointOpened.

    ``points`` are all of the VM, newest first. The copy that follows reads from the job that this leaves running.
    ``demanded`` are disks that must be in the point, also if the VM's settings leave them out. Nothing is read against
    ``doubtful`` points, whose makers are not proved: the new one would hold, and sign, whatever was put into them.
    ``states`` are versions of the state files, the newest of each kind first: what equals one is not stored again.
    """

    point_id: str
    vm_uuid: str
    full: bool
    exclude: tuple[str, ...]
    points: tuple[KnownPoint, ...]
    states: tuple[KnownState, ...]
    quiesce: bool = False
    demanded: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PointCopied:
    """``record`` is the point's record as JSON without the definition; ``states`` those that are new versions.

    ``digest`` is that of the whole record; empty from a flow that an older release began.
    """

    record: Mapping[str, Any]
    states: tuple[Mapping[str, Any], ...]
    digest: str = ""


@dataclass(frozen=True, slots=True)
class CopyPoint(Task[PointCopied]):
    """Copy the disks of an opened point and commit the point to the repository. Answers PointCopied.

    ``sequence`` is the point's order number, ``warnings`` what else is to be kept with it.
    """

    point_id: str
    parent: str | None
    labels: Mapping[str, str] = field(default_factory=dict)
    sequence: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KeepCheckpoint(Task[None]):
    """From here on the new checkpoint is the base, whatever happens to vmkeep."""

    point_id: str


@dataclass(frozen=True, slots=True)
class PointClosed:
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClosePoint(Task[PointClosed]):
    """End the job and delete the older checkpoints of ours. Answers PointClosed."""

    point_id: str


@dataclass(frozen=True, slots=True)
class AbandonPoint(Task[None]):
    """Undo an opened point: job, checkpoint and writer; the VM is as it was before."""

    point_id: str
