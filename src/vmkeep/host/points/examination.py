"""A VM looked at before a point of it is planned. What of it is this repository's own is put right meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.definition import Definition, parse_definition
from vmkeep.host.checkpoints.bases import Bases, FoundBases
from vmkeep.host.vm.astray import refuse_astray, refuse_lost
from vmkeep.host.vm.definition import definition_to_keep, with_overlays_dropped, with_volumes_found
from vmkeep.host.vm.disks import disk_sizes, plannable_disks
from vmkeep.host.vm.fitness import refuse_beside_a_job, refuse_in_transition
from vmkeep.host.vm.images import image_chains
from vmkeep.host.vm.keys import key_of_disk
from vmkeep.host.vm.moments import refuse_torn_checkpoints
from vmkeep.host.vm.secrets import needed_secrets, read_secrets
from vmkeep.host.vm.standstill import as_text
from vmkeep.host.vm.states import StateSource, state_sources, state_warnings
from vmkeep.host.vm.unseen import refuse_unseen_images
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.planning import PlannableDisk, PointPlan
from vmkeep.planning.bitmaps import Chains
from vmkeep.planning.model import KnownPoint
from vmkeep.repository import BLOCK_BYTES, ExcludedDisk, PointDisk, PointRecord, PointSecret, StoredDisk
from vmkeep.repository.record import FAN_OUT, refuse_unreadable
from vmkeep.statefiles.location import StateRoots
from vmkeep.transfer.tools import require_tools
from vmkeep.values import dataclass

_NONE = "0" * 32
"""In place of the names of what is not there yet."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What the plan of a point depends on, and the point is made from.

    ``definition`` is the VM's as it stands, ``definition_xml`` the one that a restore makes. ``killed``: it is off
    because its QEMU died.
    """

    domain: Domain
    stopped: bool
    definition: Definition
    definition_xml: str
    chains: Chains
    states: tuple[StateSource, ...]
    secrets: tuple[PointSecret, ...]
    standing: FoundBases
    sizes: Mapping[str, int]
    disks: tuple[PlannableDisk, ...]
    killed: bool
    warnings: tuple[str, ...]


def examine(
    domain: Domain,
    hypervisor: Hypervisor,
    settings: Settings,
    *,
    prefix: str,
    points: Sequence[KnownPoint],
    find_point: Callable[[str], KnownPoint | None],
) -> Examined:
    """Return what is found. ``points`` are the VM's, newest first; what begins with ``prefix`` is ours.

    ``find_point`` returns a point of the VM by its id, also one that is not among ``points``.

    Raises ToolMissing; VmBusy while the VM is neither off nor standing, or another job runs; WritesAstray when QEMU has
    other images; RelationsTorn when libvirtd would not survive a change to the VM's checkpoints.
    """
    stopped = _is_stopped(domain)
    # What is read without QEMU is read through qemu-nbd.
    require_tools("qemu-img", *(("qemu-nbd", "setpriv") if stopped else ()), doing=f"read the disks of {domain.name}")
    refuse_torn_checkpoints(domain)
    live_xml = domain.definition_xml(secure=True)
    found = with_volumes_found(parse_definition(live_xml), hypervisor)
    if stopped:
        refuse_lost(domain)
    else:
        refuse_astray(domain, found, hypervisor, settings)
    if stopped or settings.scratch_dir is None:  # else a running VM is read without a file beside its image
        refuse_unseen_images(domain, found)
    chains = image_chains(found)
    live = found if stopped else with_overlays_dropped(found, chains)
    definition_xml, warnings = definition_to_keep(domain, live, live_xml, hypervisor)
    # What is read is encrypted for the VM as it stands; what is restored may name another secret.
    secrets, withheld = read_secrets(hypervisor, needed_secrets(live, parse_definition(definition_xml)))
    warnings += state_warnings(live) + withheld + _memory_warning(domain, stopped=stopped) + _crash_warning(domain)
    states = state_sources(live, StateRoots.of(hypervisor.uri))
    bases = Bases(
        domain,
        live,
        chains,
        stopped=stopped,
        prefix=prefix,
        points=points,
        find_point=find_point,
        key=partial(key_of_disk, hypervisor, live),
    )
    standing = bases.examine()
    sizes = disk_sizes(domain, live, chains)
    return Examined(
        domain=domain,
        stopped=stopped,
        definition=live,
        definition_xml=definition_xml,
        chains=chains,
        states=states,
        secrets=secrets,
        standing=standing,
        sizes=sizes,
        disks=plannable_disks(found, sizes, settings, chains, hypervisor, running=not stopped),
        killed=domain.state().killed,
        warnings=(*warnings, *standing.warnings),
    )


def _is_stopped(domain: Domain) -> bool:
    """Return whether the VM is off; raises VmBusy while it is neither off nor standing."""
    run = domain.state().run
    refuse_in_transition(run, domain.name)
    if run is not RunState.OFF:
        refuse_beside_a_job(domain)
    return run is RunState.OFF


def _crash_warning(domain: Domain) -> list[str]:
    if not domain.state().crashed:
        return []
    return [
        (
            "The guest crashed, and QEMU was kept with its disks as they were then; so the point holds them. "
            f"`{command_line('virsh destroy', domain.name)}` ends that QEMU."
        )
    ]


def _memory_warning(domain: Domain, *, stopped: bool) -> list[str]:
    if stopped and domain.has_saved_memory():
        return [
            (
                "The VM is saved with its memory (managed save), and the memory is not in the point: a restored VM "
                "boots as after a power failure."
            )
        ]
    return []


def refuse_unreadable_names(examined: Examined, plan: PointPlan, *, host: str) -> None:
    """Raise InvalidRequest, before anything is done, for a VM with names that no record of a point may hold."""
    sources = {disk.target: disk for disk in examined.definition.disks}
    draft = PointRecord(
        id=_NONE,
        vm_uuid=examined.domain.uuid,
        vm_name=examined.domain.name,
        kind="full",
        parent=None,
        created=as_text(datetime.now(UTC)),
        host=host,
        checkpoint=None,
        pause_ms=0,
        labels={},
        disks=tuple(
            PointDisk(
                disk.target,
                str(disk.mode),
                str(disk.reason),
                sources[disk.target].source or "",
                sources[disk.target].format or "",
                0,
                0,
                StoredDisk(0, BLOCK_BYTES, FAN_OUT, _NONE, None),
            )
            for disk in plan.disks
        ),
        excluded=tuple(ExcludedDisk(gone.target, str(gone.reason)) for gone in plan.excluded),
        states=(),
        definition=examined.definition_xml,
    )
    refuse_unreadable(draft)
