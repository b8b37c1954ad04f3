"""The health of a VM's checkpoints and snapshots, with what the catalogue knows of them, and the repair of checkpoints.

No flow of DBOS: nothing of it must be finished after a crash, because looking again finds what is left. A repair works
under the VM's lock, under which no point of this installation begins, and plans again until nothing is left to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Final

from vmkeep.errors import PointNotFound, VmkeepError
from vmkeep.flows.installation import Premises, known_from_catalogue
from vmkeep.flows.services import held_vm
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.checkpoints import CheckpointRequest, RepairCheckpoint, RepairRequest
from vmkeep.host.tasks.locks import WhoHoldsVm
from vmkeep.host.tasks.snapshots import LookAtSnapshots
from vmkeep.host.tasks.survey import FindVm
from vmkeep.logs import get_logger
from vmkeep.planning.checkpoint_health import CheckpointHealth, Role, health_texts
from vmkeep.planning.checkpoint_repair import RepairPlan, RepairStep
from vmkeep.planning.lineage import newest_first
from vmkeep.planning.model import KnownPoint
from vmkeep.planning.snapshot_health import SnapshotHealth, snapshot_texts
from vmkeep.repository.record import known_point
from vmkeep.values import dataclass

_log = get_logger(__name__)
# Usually the second round finds nothing. Each checkpoint that libvirt refuses to list again takes one more.
_ROUNDS: Final = 32
_POINT_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class StepTaken:
    """One step of a repair, with what it did, or what stood in the way (then ``done`` is False)."""

    step: RepairStep
    told: str
    done: bool


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did, what it left and why, and the health that was found afterwards."""

    taken: tuple[StepTaken, ...]
    plan: RepairPlan
    health: tuple[CheckpointHealth, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do, and nothing of ours is broken or could not be judged."""
        if self.plan.steps or any(checkpoint.trouble for checkpoint in self.health):
            return False
        return not any(checkpoint.standing is Role.UNKNOWN for checkpoint in self.health)


@dataclass(frozen=True, slots=True)
class LookedAt:
    """The health of a VM's checkpoints. ``busy`` says what works on the VM now, so that not all could be told."""

    health: tuple[CheckpointHealth, ...]
    busy: str | None = None


class MomentHealth:
    """Looks at the moments of VMs of one host, for one installation."""

    def __init__(self, premises: Premises, host: Host) -> None:
        self._premises = premises
        self._host = host

    # -- looking -----------------------------------------------------------------------------------------------

    def checkpoints(self, vm: str) -> LookedAt:
        """Return the health of a VM's checkpoints; nothing is changed. Raises VmNotFound."""
        uuid = self._host.ask(FindVm(vm))
        busy = self._host.ask(WhoHoldsVm(uuid))
        # The point that is being taken has a checkpoint, and is not in the catalogue before its end.
        return LookedAt(self._judged(self._request(uuid, unsure=busy is not None)), busy)

    def checkpoint_texts(self, vm: str) -> Mapping[str, str]:
        """Return the health of each checkpoint of a VM in a few words, by name."""
        return health_texts(self.checkpoints(vm).health)

    def snapshots(self, vm: str) -> tuple[SnapshotHealth, ...]:
        """Return the health of a VM's snapshots; nothing is changed. Raises VmNotFound."""
        return self._host.ask(LookAtSnapshots(vm))

    def snapshot_texts(self, vm: str) -> Mapping[str, str]:
        """Return the health of each snapshot of a VM in a few words, by name."""
        return snapshot_texts(self.snapshots(vm))

    # -- repairing ---------------------------------------------------------------------------------------------

    def plan(self, vm: str, foreign: Collection[str] = ()) -> Repaired:
        """Return what a repair would do, and change nothing. Raises as ``repair``."""
        uuid = self._host.ask(FindVm(vm))
        with self._lock(uuid, vm):
            request = self._request(uuid)
            plan = self._host.ask(RepairRequest(checkpoints=request, foreign=frozenset(foreign)))
            return Repaired((), plan, self._judged(request))

    def repair(self, vm: str, foreign: Collection[str] = ()) -> Repaired:
        """Mend the checkpoints and bitmaps of ours, and those of others in ``foreign``.

        Raises VmBusy while something works on the VM, RestorePending, VmNotFound, and InvalidRequest for a name in
        ``foreign`` that is not there. A step that fails is told; the others are carried out.
        """
        uuid = self._host.ask(FindVm(vm))
        with self._lock(uuid, vm):
            request = self._request(uuid)
            allowed = frozenset(foreign)
            taken: list[StepTaken] = []
            refused_bitmaps: frozenset[tuple[str, str]] = frozenset()
            failed: set[RepairStep] = set()
            left: dict[str, None] = {}
            for _ in range(_ROUNDS):
                wanted = RepairRequest(checkpoints=request, foreign=allowed, refused_bitmaps=refused_bitmaps)
                plan = self._host.ask(wanted)
                left |= dict.fromkeys(plan.left)
                steps = [step for step in plan.steps if step not in failed]
                if not steps:
                    break
                for step in steps:
                    done, refused = self._take(uuid, step)
                    taken.append(done)
                    failed |= set() if done.done else {step}
                    refused_bitmaps |= {(step.checkpoint, target) for target in refused}
                allowed &= {checkpoint.name for checkpoint in self._judged(request)}
            return Repaired(tuple(taken), RepairPlan(plan.steps, tuple(left)), self._judged(request, refused_bitmaps))

    def _take(self, vm_uuid: str, step: RepairStep) -> tuple[StepTaken, tuple[str, ...]]:
        try:
            done = self._host.ask(RepairCheckpoint(vm_uuid, step))
        except VmkeepError as error:
            _log.info("not repaired", step=str(step), error=error.message)
            return StepTaken(step, f"could not {step}: {error.message}", done=False), ()
        return StepTaken(step, done.told, done=True), done.refused

    def _lock(self, vm_uuid: str, vm: str) -> AbstractContextManager[None]:
        return held_vm(self._host, vm_uuid, vm, f"checkpoint repair of {vm}")

    # -- what the catalogue and the repository know ------------------------------------------------------------

    def _request(self, vm_uuid: str, *, unsure: bool = False) -> CheckpointRequest:
        catalog = self._premises.catalog
        known = catalog.repository()
        points = tuple(known_from_catalogue(point) for point in catalog.points_of_vm(vm_uuid))
        request = CheckpointRequest(
            vm=vm_uuid, repository=None if known is None else known.id, points=points, unsure=unsure
        )
        return request if unsure else self._with_points_of_others(request)

    def _with_points_of_others(self, request: CheckpointRequest) -> CheckpointRequest:
        """Return the request with the points of the VM that only the repository knows.

        Another installation may keep the same VM in the same repository, and its checkpoints are as good as ours. When
        the repository cannot be asked, nothing that is not in the catalogue is called a left-over.
        """
        judged = self._host.ask(request)
        strange = [checkpoint.name for checkpoint in judged if checkpoint.standing is Role.LEFT_OVER]
        found: list[KnownPoint] = []
        for name in strange:
            point_id = name.rpartition("-")[2]
            if _POINT_ID.fullmatch(point_id) is None:
                continue  # a bitmap may have any name
            try:
                record = self._premises.repository.point(point_id)
            except PointNotFound:
                continue
            except VmkeepError as error:
                _log.info("repository not asked", checkpoint=name, error=error.message)
                return CheckpointRequest(
                    vm=request.vm, repository=request.repository, points=request.points, unsure=True
                )
            if record.vm_uuid == request.vm:
                found.append(known_point(record))
        points = newest_first((*request.points, *found)) if found else request.points
        return CheckpointRequest(vm=request.vm, repository=request.repository, points=points)

    def _judged(
        self, request: CheckpointRequest, refused_bitmaps: frozenset[tuple[str, str]] = frozenset()
    ) -> tuple[CheckpointHealth, ...]:
        """Return the health, without what a repair has just found to be nothing at all."""
        judged = self._host.ask(request)
        return tuple(
            checkpoint
            for checkpoint in judged
            if checkpoint.listed
            or any(disk.images or (checkpoint.name, disk.target) not in refused_bitmaps for disk in checkpoint.disks)
        )
