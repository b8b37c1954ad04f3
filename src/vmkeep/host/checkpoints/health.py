"""The checkpoints of a VM looked at, and a step of their repair carried out: the I/O around ``checkpoint_health``."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.definition import Definition
from vmkeep.errors import HypervisorError, InvalidRequest
from vmkeep.host.checkpoints.bindings import as_bound
from vmkeep.host.checkpoints.bitmaps import look_at_bitmaps
from vmkeep.host.checkpoints.changes import Checkpoints
from vmkeep.host.records.restore import refuse_while_pending
from vmkeep.host.tasks.checkpoints import CheckpointRequest, RepairRequest, StepDone
from vmkeep.host.vm.definition import definition_of
from vmkeep.host.vm.disks import disk_sizes, plannable_disks
from vmkeep.host.vm.fitness import refuse_beside_a_job, refuse_in_transition
from vmkeep.host.vm.images import describe_chains, images_of_others
from vmkeep.host.vm.keys import key_of_disk
from vmkeep.host.vm.moments import refuse_torn_checkpoints
from vmkeep.host.vm.processes import age_seconds
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.logs import get_logger
from vmkeep.planning import Base, BitmapHealth, Mode, PlannableDisk, PointRequest, plan_disk
from vmkeep.planning.bases import base_of, newest_by_disk
from vmkeep.planning.bitmaps import Bitmaps, Chains
from vmkeep.planning.checkpoint_health import CheckpointFacts, CheckpointHealth, Role, judge_checkpoints
from vmkeep.planning.checkpoint_repair import (
    Delete,
    DropBitmap,
    Forget,
    Hang,
    ListAgain,
    Narrow,
    RemoveBitmap,
    RepairPlan,
    RepairStep,
    plan_repair,
)
from vmkeep.planning.lineage import Lineage
from vmkeep.planning.model import KnownPoint
from vmkeep.planning.names import checkpoint_prefix
from vmkeep.transfer.imagelock import writer_of
from vmkeep.values import dataclass

_log = get_logger(__name__)
_STANDING: Final = (RunState.RUNNING, RunState.PAUSED)
# Where libvirt's system daemon writes the number of a VM's QEMU, at its start and never again.
_PID_FILES: Final = Path("/run/libvirt/qemu")
_SYSTEM: Final = "/system"
_CLOSING_SECONDS: Final = 10.0
_WAIT_SECONDS: Final = 0.02


def look_at_checkpoints(
    domain: Domain, hypervisor: Hypervisor, settings: Settings, request: CheckpointRequest
) -> tuple[CheckpointHealth, ...]:
    """Return the health of a VM's checkpoints; nothing is changed."""
    return judge_checkpoints(_facts(domain, hypervisor, settings, request))


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What is known of a VM's checkpoints, how each of them is, and what a repair would do."""

    facts: CheckpointFacts
    judged: tuple[CheckpointHealth, ...]
    plan: RepairPlan


def survey_checkpoints(
    domain: Domain, hypervisor: Hypervisor, settings: Settings, request: CheckpointRequest
) -> Surveyed:
    """Return all that there is to say of a VM's checkpoints; nothing is changed, and nothing need be held."""
    facts = _facts(domain, hypervisor, settings, request)
    judged = judge_checkpoints(facts)
    if any(checkpoint.ours and checkpoint.standing is not Role.BASE for checkpoint in judged):
        # To be removed, perhaps: only then it is asked who else uses the images, which costs a look at every VM.
        facts = _facts(domain, hypervisor, settings, request, repairing=True)
        judged = judge_checkpoints(facts)
    return Surveyed(facts, judged, plan_repair(facts, judged))


def plan_checkpoint_repair(
    domain: Domain, hypervisor: Hypervisor, settings: Settings, request: RepairRequest
) -> RepairPlan:
    """Return what mends the VM's checkpoints; nothing is changed, and the caller holds the VM's lock.

    Raises VmBusy, RestorePending, RelationsTorn, and InvalidRequest for a foreign name that is not there.
    """
    refuse_while_pending(settings, domain.name, domain.uuid)
    run = domain.state().run
    refuse_in_transition(run, domain.name)
    if run is not RunState.OFF:
        refuse_beside_a_job(domain)
    refuse_torn_checkpoints(domain)
    facts = _facts(
        domain, hypervisor, settings, request.checkpoints, repairing=True, refused_bitmaps=request.refused_bitmaps
    )
    judged = judge_checkpoints(facts)
    _refuse_unknown_names(request.foreign, judged, domain.name)
    return plan_repair(facts, judged, foreign=request.foreign, refused_bitmaps=request.refused_bitmaps)


def repair_checkpoint(domain: Domain, hypervisor: Hypervisor, step: RepairStep) -> StepDone:
    """Carry out one step. The caller holds the VM's lock."""
    definition = definition_of(domain, hypervisor)
    chains, _ = describe_chains(definition)
    stopped = domain.state().run not in _STANDING
    key = partial(key_of_disk, hypervisor, definition)
    checkpoints = Checkpoints(domain, definition, chains, stopped=stopped, key=key)
    _log.info("repair", vm=domain.name, step=str(step))
    match step:
        case ListAgain(name, targets, parents, made):
            listed = domain.checkpoint_names()
            parent = next((above for above in parents if above in listed), None)
            found = checkpoints.list_again(name, targets, parent=parent, creation_time=made)
            refused = tuple(sorted(set(targets) - found))
            if not found:
                return StepDone(f"libvirt finds no bitmap of {name} sound, so it was not defined again", refused)
            return StepDone(f"defined the checkpoint {name} again, with {', '.join(sorted(found))}", refused)
        case Narrow(name, keep, _, drop):
            checkpoints.narrow(name, keep, drop)
        case Delete(name):
            checkpoints.remove(name)
        case Forget(name):
            domain.forget_checkpoint(name)
        case DropBitmap(name, targets):
            domain.drop_bitmaps(name, targets)
        case RemoveBitmap(name, target, image):
            checkpoints.remove_bitmap_of(name, target, (image,))
        case Hang(name, parent):
            if parent not in domain.checkpoint_names():
                return StepDone(f"libvirt does not list {parent}, so {name} stays where it is")
            domain.hang_checkpoint(name, parent)
    return StepDone(f"done: {step}")


def _refuse_unknown_names(names: frozenset[str], judged: Sequence[CheckpointHealth], vm: str) -> None:
    foreign = {checkpoint.name for checkpoint in judged if checkpoint.standing is Role.FOREIGN}
    for name in sorted(names - foreign):
        raise InvalidRequest(
            f"VM {vm!r} has no checkpoint or bitmap {name!r} that is not vmkeep's",
            vm=vm,
            hint=f"`{command_line('vmkeep checkpoint health', vm)}` lists them. Those of vmkeep need no --foreign.",
        )


# -- what is known -----------------------------------------------------------------------------------------------


def _facts(
    domain: Domain,
    hypervisor: Hypervisor,
    settings: Settings,
    request: CheckpointRequest,
    *,
    repairing: bool = False,
    refused_bitmaps: frozenset[tuple[str, str]] = frozenset(),
) -> CheckpointFacts:
    state = domain.state()
    stopped = state.run not in _STANDING
    definition = definition_of(domain, hypervisor)
    chains, unread = describe_chains(definition)
    if stopped:
        _wait_for_tools(chains)
        chains, unread = describe_chains(definition)
    listed = {str(checkpoint.name): checkpoint for checkpoint in domain.checkpoints()}
    bitmaps = _bitmaps(domain, definition, chains, unread, listed, stopped=stopped)
    prefix = None if request.repository is None else checkpoint_prefix(request.repository)
    facts = CheckpointFacts(
        prefix=prefix,
        points={} if prefix is None else dict(Lineage.of(prefix, request.points).points),
        listed=listed,
        bitmaps=bitmaps,
        unsure=request.unsure,
        others=frozenset() if prefix is None else frozenset(prefix + point_id for point_id in request.others),
    )
    if not stopped:
        facts = replace(facts, in_memory=_perhaps_in_memory(facts, domain, hypervisor.uri))
    if repairing or any(facts.is_ours(name) and name not in listed for name in facts.names()):
        used = images_of_others(hypervisor, domain.uuid)
        own = {layer.path for chain in bitmaps.chains.values() for layer in chain}
        facts = replace(facts, shared={path: used[real] for path in own if (real := os.path.realpath(path)) in used})
    sizes = disk_sizes(domain, definition, bitmaps.chains)
    disks = plannable_disks(definition, sizes, settings, bitmaps.chains, hypervisor, running=not stopped)
    bases = next_bases(facts, disks, vm=domain.name, killed=state.killed, refused_bitmaps=refused_bitmaps)
    # One that no next point would start from is not asked for: the disk is another image by now, or holds no bitmaps.
    hoped = {target: name for target, name in facts.in_memory.items() if bases.get(target) == name}
    return replace(facts, bases=bases, in_memory=hoped)


def _wait_for_tools(chains: Chains) -> None:
    """Wait for a qemu-img that changes an image, as a killed vmkeep leaves one: it is about to be done.

    While it writes the list of an image's bitmaps anew, the image shows none at all.
    """
    deadline = time.monotonic() + _CLOSING_SECONDS
    for layer in (layer for chain in chains.values() for layer in chain):
        while (writer_of(layer.path) or "").startswith("qemu-img ") and time.monotonic() < deadline:
            time.sleep(_WAIT_SECONDS)


def _bitmaps(
    domain: Domain,
    definition: Definition,
    chains: Chains,
    unread: Mapping[str, str],
    listed: Collection[str],
    *,
    stopped: bool,
) -> Bitmaps:
    """Return what is known of the bitmaps. A libvirt that does not answer for them is no reason to say nothing."""
    unasked = None if stopped else _why_not_to_ask(domain)
    try:
        return look_at_bitmaps(domain, definition, chains, listed, stopped=stopped, unread=unread, unasked=unasked)
    except HypervisorError as error:
        unasked = error.message
    return look_at_bitmaps(domain, definition, chains, listed, stopped=stopped, unread=unread, unasked=unasked)


def _why_not_to_ask(domain: Domain) -> str | None:
    """Return why libvirt would not answer for the bitmaps: it does so beside a backup job and beside no other."""
    if domain.has_job() and domain.backup_socket() is None:
        return "libvirt is at another operation on the VM (a migration, save or dump)"
    return None


def _perhaps_in_memory(facts: CheckpointFacts, domain: Domain, uri: str) -> dict[str, str]:
    """Return, by disk, the newest point's checkpoint when libvirt has lost it and QEMU alone may have the bitmap.

    A bitmap that was made since QEMU was started is in no image yet.
    """
    found = newest_by_disk(facts.points, facts.bitmaps.chains)
    lost = {
        target: name
        for target, name in found.items()
        if name not in facts.listed and not facts.bitmaps.holders(name, target)
    }
    started = _started(_PID_FILES / f"{domain.name}.pid") if _SYSTEM in uri else -math.inf
    return {target: name for target, name in lost.items() if _made(facts.points[name]) >= started}


def _started(pid_file: Path) -> float:
    """Return when QEMU was started at the earliest, in seconds since 1970; of one that is unknown, long ago.

    The file has what the clock said then, and the age of the process what it should have said by the clock of now. The
    clock may have been set in between, and the point may have been made before that or after it.
    """
    try:
        then = pid_file.stat().st_mtime
        age = age_seconds(int(pid_file.read_text()))
    except (OSError, ValueError):
        return -math.inf  # it is kept elsewhere
    return min(then, time.time() - age)


def _made(point: KnownPoint) -> float:
    """Return when a point was made, in seconds since 1970; where it does not tell, it may have been just now."""
    return datetime.fromisoformat(point.created).timestamp() if point.created else math.inf


def next_bases(
    facts: CheckpointFacts,
    disks: Sequence[PlannableDisk],
    *,
    vm: str,
    killed: bool,
    refused_bitmaps: frozenset[tuple[str, str]] = frozenset(),
) -> dict[str, str]:
    """Return the checkpoint that each disk's next point would be read against, by the plan of a point itself.

    Of a VM that runs, a lost checkpoint's bitmap is hoped to be sound until libvirt refuses it (``refused_bitmaps``).
    """
    lost = set(facts.in_memory.values())
    known = [name for name in facts.points if name in facts.listed or facts.stored_targets(name) or name in lost]
    bases = tuple(_as_base(facts, name, refused_bitmaps) for name in known)
    request = PointRequest(vm=vm, running=facts.bitmaps.running, disks=tuple(disks), bases=bases, killed=killed)
    plans = [plan_disk(disk, request) for disk in disks if disk.target in facts.bitmaps.chains]
    return {
        plan.target: plan.base_checkpoint
        for plan in plans
        if plan.mode is Mode.INCREMENTAL and plan.base_checkpoint is not None
    }


def _as_base(facts: CheckpointFacts, name: str, refused_bitmaps: frozenset[tuple[str, str]]) -> Base:
    """Return a point as the next one may start from it. A lost checkpoint counts as one that is defined again."""
    told = facts.listed[name].description if name in facts.listed else None
    base = base_of(as_bound(facts.points[name], told, facts.bitmaps.chains), name, facts.bitmaps, listed=True)
    if name in facts.listed or not facts.bitmaps.running:
        return base
    hoped = {
        target
        for target, found in base.bitmaps.items()
        # Of a bitmap that QEMU has loaded its image tells the same as of one that nobody closed properly.
        if (found is BitmapHealth.INCONSISTENT and not facts.is_of_others(name, target))
        or facts.in_memory.get(target) == name
    }
    hoped -= {target for refused, target in refused_bitmaps if refused == name}
    health = {target: BitmapHealth.SOUND if target in hoped else found for target, found in base.bitmaps.items()}
    return replace(base, bitmaps=health)
