"""The journal of a revert to a snapshot: which files the disks will be on, and which of the present ones go."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from vmkeep.config import Settings
from vmkeep.definition import Definition, parse_definition
from vmkeep.errors import VmkeepError
from vmkeep.filesystem import file_error
from vmkeep.host.records.restore import JournalDisk, JournalOverlay, RestoreJournal, SnapshotRevert
from vmkeep.host.restores.items import item_at
from vmkeep.host.restores.parking import Parking
from vmkeep.host.reverts.choice import ChosenImage, RevertPlan
from vmkeep.host.tasks.reverts import ParkForRevert
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.host.vm.moments import read_snapshot
from vmkeep.hypervisor import Domain, Hypervisor, snapshots_of
from vmkeep.moments import Snapshot, SnapshotState
from vmkeep.transfer.imagefile import OF_AN_IMAGE, describe_image, internal_snapshots, names_in_chain

# A file name has 255 bytes at most, and both parts of it may be long.
_PART_LENGTH: Final = 100
_UNFIT_FOR_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]+")
_RUNNING_THEN: Final = (SnapshotState.RUNNING, SnapshotState.BLOCKED)


def new_journal(
    settings: Settings,
    hypervisor: Hypervisor,
    parking: Parking,
    request: ParkForRevert,
    domain: Domain,
    present: str,
    definition: Definition,
    reversal: RevertPlan,
) -> RestoreJournal:
    """Return the journal of a revert that begins. ``present`` is the VM's definition as it is."""
    path, target, element = parking.place(domain, present, definition)
    discardable = _discardable(hypervisor, domain, reversal) if request.discard else frozenset()
    going = () if reversal.internal else reversal.images
    overlays = tuple(_overlay(settings, request.operation, image, reversal.snapshot, discardable) for image in going)
    revert = SnapshotRevert(
        snapshot=request.choice.snapshot,
        overlays=overlays,
        memory=reversal.memory,
        internal=reversal.internal,
        with_memory=reversal.with_memory,
        run=_run_afterwards(request.run, reversal),
        reset_nvram=request.choice.reset_nvram,
        drop_checkpoints=request.choice.drop_checkpoints,
        former_current=snapshots_of(domain).current() or "",
        aim=(request.aim.point or "", request.aim.known),
        origin=(request.origin.point or "", request.origin.known),
        states=tuple((version.kind, version.version_id) for version in reversal.versions),
        checkpoints=tuple(domain.checkpoint_definitions().values()),
        definition=present if reversal.internal else "",
    )
    return RestoreJournal(
        operation=request.operation,
        uri=hypervisor.uri,
        vm=domain.name,
        vm_uuid=domain.uuid,
        point=request.aim.point or "",
        safety=request.safety,
        disks=tuple(
            JournalDisk(image.target, image.base.path, image.base.format, made=False) for image in reversal.images
        )
        if reversal.internal
        else (),
        items=tuple(
            replace(item_at(state.kind, state.kind, state.place, request.operation), file=state.file)
            for state in reversal.states
        ),
        parked_path=path,
        parked_target=target,
        parked_element=element,
        whole=reversal.whole,
        revert=revert,
    )


def _overlay(
    settings: Settings, operation: str, image: ChosenImage, snapshot: Snapshot, discardable: frozenset[str]
) -> JournalOverlay:
    """Choose the file of a disk's new overlay: beside the image that the disk is on, if that is a file."""
    former = Path(os.path.realpath(image.former))
    beside = former if former.is_file() else Path(image.base.path)
    directory = beside.parent if beside.is_file() else settings.images_dir
    try:
        about = beside.stat()
    except OSError as error:
        raise file_error(error, beside) from error
    stem = os.fsdecode(os.fsencode(Path(image.base.path).stem)[:_PART_LENGTH])
    name = _UNFIT_FOR_NAMES.sub("-", str(snapshot.name))[:_PART_LENGTH]
    regular = beside.is_file()
    return JournalOverlay(
        target=image.target,
        path=str(directory / f"{stem}.{name}-{operation[:12]}.qcow2"),
        base=image.base.path,
        base_format=image.base.format,
        former=image.former,
        owner=about.st_uid if regular else 0,
        group=about.st_gid if regular else 0,
        mode=about.st_mode & 0o7777 if regular else 0o600,
        # What was recorded until the snapshot stands in the image below; this one goes on with it.
        bitmaps=tuple(
            (bitmap.name, bitmap.granularity_bytes)
            for bitmap in image.base.bitmaps
            if bitmap.recording and not bitmap.in_use
        ),
        discard=image.former in discardable,
    )


def _run_afterwards(asked: str, reversal: RevertPlan) -> str:
    if asked != "then":
        return asked
    if not reversal.with_memory:
        return "off"
    return "running" if reversal.snapshot.state in _RUNNING_THEN else "paused"


def _discardable(hypervisor: Hypervisor, domain: Domain, reversal: RevertPlan) -> frozenset[str]:
    """Return the present images of the disks that go back which no snapshot, and no other VM, stands on."""
    needed: set[str] = set()
    for xml in snapshots_of(domain).definitions(secure=True).values():
        snapshot, then = read_snapshot(xml, domain)
        for disk in with_volumes_found(then, hypervisor).disks:
            if disk.source is not None and any(disk.target == kept.name for kept in snapshot.disks):
                needed |= _chain(disk.source, disk.image_format)
    for image in reversal.images:
        needed |= _chain(image.base.path, image.base.format)
    going = {image.target for image in reversal.images}
    for vm in hypervisor.domains():
        for inactive in (False, True):
            definition = with_volumes_found(parse_definition(vm.definition_xml(inactive=inactive)), hypervisor)
            for disk in definition.disks:
                if disk.source is not None and not (vm.uuid == domain.uuid and disk.target in going):
                    needed |= _chain(disk.source, disk.image_format)
    return frozenset(image.former for image in reversal.images if _is_spare(image, needed))


def _chain(path: str, image_format: str) -> set[str]:
    try:
        return set(map(os.path.realpath, names_in_chain(path, image_format)))
    except OF_AN_IMAGE:
        return {os.path.realpath(path)}  # what cannot be read cannot be asked what it stands on


def _is_spare(image: ChosenImage, needed: set[str]) -> bool:
    """Tell whether an image is an overlay, made after the snapshot, that nothing needs."""
    if os.path.realpath(image.former) in needed or not Path(image.former).is_file():
        return False
    try:
        top = describe_image(image.former, "qcow2")[0]
    except VmkeepError:
        return False
    return top.backing is not None and not internal_snapshots(image.former, "qcow2")
