"""Records of libvirt's snapshots that say what is not so, put right from the images.

libvirt 9.0 rewrites the records of all that descends from a snapshot whose record alone is removed, as `virsh
snapshot-delete --metadata` does: they then name the image of an earlier snapshot, and lack one in the chain below. What
an overlay was made on stands directly below it, whatever a record says. Images are only read.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from vmkeep.commandline import command_line
from vmkeep.definition import Definition, DefinitionError, parse_definition
from vmkeep.definition.repointing import Placed, leave_chains_to_images, restand
from vmkeep.errors import VmkeepError, VmOff
from vmkeep.host.moments.local import WITH_CHECKPOINTS
from vmkeep.host.tasks.moments import MomentsChanged, RepairSnapshots, named
from vmkeep.host.vm.chains import chain_faults
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.host.vm.images import image_chains
from vmkeep.host.vm.moments import read_for_change, read_snapshot
from vmkeep.hypervisor import Domain, DomainMoments, Hypervisor, RunState, snapshots_of
from vmkeep.moments import MomentKind, Snapshot, SnapshotLocation, format_snapshot
from vmkeep.planning.images import ImageLayer
from vmkeep.planning.snapshot_health import image_of_overlay
from vmkeep.transfer.imagefile import describe_image
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class _Mend:
    """A record as it should be, and what of it is another then, for people."""

    name: str
    record: Snapshot
    told: str


def repair_snapshots(
    domain: Domain, order: RepairSnapshots, hypervisor: Hypervisor, stop: Callable[[], None]
) -> MomentsChanged:
    """Put right what records of snapshots say of their disks; each by itself, so that it can be done again.

    Raises RelationsTorn, VmOff where this libvirt takes no record while the VM is off, and InvalidRequest for a record
    that cannot be read.
    """
    read_for_change(DomainMoments(domain, MomentKind.SNAPSHOT))
    listed = snapshots_of(domain)
    mends = [mend for xml in listed.definitions(secure=True).values() for mend in _mends(xml, domain, hypervisor)]
    mends.sort(key=lambda mend: (mend.record.creation_time or 0, mend.name))
    if not order.dry:
        current = listed.current()
        for mend in mends:
            stop()
            _redefine(listed, domain, mend, current=mend.name == current)
    return MomentsChanged(
        vm=domain.name,
        uuid=domain.uuid,
        names=tuple(mend.name for mend in mends),
        notices=tuple(mend.told for mend in mends),
    )


def _redefine(listed: DomainMoments, domain: Domain, mend: _Mend, *, current: bool) -> None:
    try:
        xml = format_snapshot(mend.record, secure=True)
        listed.redefine(mend.name, xml, state=mend.record.state, current=current)
    except VmkeepError as error:
        if WITH_CHECKPOINTS not in error.message or domain.state().run is not RunState.OFF:
            raise
        start = command_line("virsh start", domain.name, options="--paused")
        raise VmOff(
            f"VM {domain.name!r} is off and has checkpoints, and so this libvirt takes no record of a snapshot",
            vm=domain.name,
            hint=f"Start the VM (`{start}` is enough), and run the command again.",
        ) from error


def _mends(xml: str, domain: Domain, hypervisor: Hypervisor) -> Iterator[_Mend]:
    snapshot, then = read_snapshot(xml, domain)
    then = with_volumes_found(then, hypervisor)
    right = dict(_right_images(snapshot, then))
    record = replace(
        snapshot,
        domain=_mended(snapshot.domain, right, hypervisor),
        inactive_domain=_mended(snapshot.inactive_domain, right, hypervisor),
    )
    if right:
        places = named(f"{target} on {layer.path}" for target, layer in sorted(right.items()))
        yield _Mend(str(snapshot.name), record, f"its record named images of an earlier snapshot; right is {places}")
    elif record != snapshot:
        yield _Mend(str(snapshot.name), record, "its record named another chain below its images than there is")


def _right_images(snapshot: Snapshot, then: Definition) -> Iterator[tuple[str, ImageLayer]]:
    """Yield the disks whose record names the image of an earlier snapshot, with what is right."""
    for disk in snapshot.disks:
        defined = then.disk(disk.name)
        if disk.location is not SnapshotLocation.EXTERNAL or disk.source is None or defined is None:
            continue
        if defined.source is None or defined.encryption is not None:
            continue
        try:
            overlay = describe_image(disk.source, disk.format or "qcow2")
        except VmkeepError:
            continue  # health says what is wrong with it
        if image_of_overlay(overlay, defined.source) is not None:
            yield disk.name, overlay[1]


def _mended(xml: str | None, right: dict[str, ImageLayer], hypervisor: Hypervisor) -> str | None:
    """Return a definition in a record with these images, and without chains that its images do not have."""
    if xml is None:
        return None
    try:
        for target, layer in right.items():
            block = stat.S_ISBLK(Path(layer.path).stat().st_mode)
            xml = restand(xml, target, Placed(layer.path, layer.format, block=block))
        definition = with_volumes_found(parse_definition(xml), hypervisor)
        wrong = chain_faults(definition, image_chains(definition)).keys()
        return leave_chains_to_images(xml, wrong) if wrong else xml
    except (DefinitionError, OSError):
        return xml  # of the one that counts ``read_snapshot`` has complained
