"""What came of a snapshot: libvirt's record of it, held against what is kept of it on the host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vmkeep.errors import SnapshotIncomplete
from vmkeep.host.records.snapshot import KeptStates, SnapshotRecord, kept_states, remove_keepsake
from vmkeep.host.tasks.snapshots import SnapshotMade
from vmkeep.hypervisor import Domain, DomainSnapshots
from vmkeep.moments import Snapshot, SnapshotLocation, SnapshotState, parse_snapshot

_WHAT = {"tpm": "TPM state file", "nvram": "file of UEFI variables"}


def recorded_snapshot(domain: Domain, keepsake: SnapshotRecord) -> Snapshot | None:
    """Return libvirt's record of the snapshot; None when there is none, or one of that name that is another's."""
    text = DomainSnapshots(domain).definition(keepsake.name)
    if text is None:
        return None
    found = parse_snapshot(text, redefine=True)
    if found.creation_time < keepsake.begun:
        return None
    sources: Mapping[str, str | None] = {disk.name: disk.source for disk in found.disks}
    return found if all(sources.get(disk.target) == disk.overlay for disk in keepsake.overlays) else None


def whole_snapshot(domain: Domain, keepsake: SnapshotRecord, place: Path) -> SnapshotMade:
    """Return the snapshot, which libvirt has and whose states are kept; raises SnapshotIncomplete otherwise."""
    made, kept = recorded_snapshot(domain, keepsake), kept_states(place)
    if made is None or kept is None or (keepsake.stopped and made.state is not SnapshotState.SHUTOFF):
        remove_keepsake(place)
        lack = "libvirt does not list it" if made is None else "its TPM state and UEFI variables were not kept"
        if made is not None and keepsake.stopped:
            lack = "the VM was started meanwhile, so its TPM state and UEFI variables are not kept with it"
        raise SnapshotIncomplete(
            f"snapshot {keepsake.name!r} of VM {keepsake.vm!r} is not whole: {lack}", vm=keepsake.vm
        )
    overlays = {disk.target: disk.overlay for disk in keepsake.overlays}
    inside = (disk.name for disk in made.disks if disk.location is SnapshotLocation.INTERNAL)
    was = "off" if keepsake.stopped else "running" if keepsake.was_running else "paused"
    return SnapshotMade(
        operation=keepsake.operation,
        vm_uuid=keepsake.vm_uuid,
        vm_name=keepsake.vm,
        name=keepsake.name,
        description=made.description or "",
        kind=keepsake.kind,
        was=was,
        creation_time=made.creation_time,
        created=kept.created,
        pause_ms=kept.pause_ms,
        disks=overlays or dict.fromkeys(inside, ""),
        left_out=keepsake.left_out,
        memory_file=keepsake.memory_file,
        warnings=(*keepsake.warnings, *_missing_warnings(keepsake, kept)),
    )


def _missing_warnings(keepsake: SnapshotRecord, kept: KeptStates) -> list[str]:
    there = {state.kind for state in kept.states}
    return [
        f"The {_WHAT[source.kind]} of {keepsake.vm} is not there ({source.path}), and is not in the snapshot."
        for source in keepsake.sources
        if source.kind not in there
    ]
