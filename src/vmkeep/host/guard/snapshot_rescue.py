"""Making a VM safe after vmkeep died while it made a snapshot, and keeping what makes the snapshot whole.

What libvirtd was asked for by the dead vmkeep it still carries out. As long as the VM stands still nothing of its state
changes, so the state files are read here when the snapshot is there and vmkeep had not written them; only then the
guest goes on. Nothing is taken back: by then the guest may have written to the overlays, and those writes are its own.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from vmkeep.errors import (
    HostFileMissing,
    HypervisorError,
    HypervisorUnavailable,
    NoSpace,
    TransferError,
    VmBusy,
    VmkeepError,
    VmNotFound,
)
from vmkeep.host.guard.rescue import JobRecord
from vmkeep.host.records.snapshot import KeptStates, SnapshotRecord, keep_states, kept_states
from vmkeep.host.vm.grounds import stand_on
from vmkeep.host.vm.standstill import as_text
from vmkeep.host.vm.states import StateSource, read_state
from vmkeep.host.vm.thawing import Thawing
from vmkeep.hypervisor import Domain, DomainSnapshots, Hypervisor, RunState
from vmkeep.logs import get_logger
from vmkeep.transfer.imagefile import add_bitmap, describe_image, holds_data

_log = get_logger(__name__)
# A snapshot of disks takes libvirt 9.0 30 ms. A guest that stands still waits for it no longer than this.
_SNAPSHOT_SECONDS = 1.5
_QUIET_SECONDS = 1.0
_STEP_SECONDS = 0.05
_PATIENCE_SECONDS = 60.0
# libvirt saves memory into an image at its own pace, and nothing ends that; the guest waits for the end of it.
_MEMORY_SECONDS = 3600.0


def rescue_snapshot(record: JobRecord, thawing: Thawing, hypervisor: Hypervisor | None = None) -> None:
    """Let the guest go on, or give a VM that is off its checkpoints back; repeats until all was quiet for a second.

    Raises HypervisorUnavailable when libvirt does not answer for a minute; the record then stays.
    """
    try:
        keepsake = SnapshotRecord.load(Path(record.keepsake))
    except FileNotFoundError:
        return  # it was at its end
    started = last_change = time.monotonic()
    while time.monotonic() - last_change < _QUIET_SECONDS:
        try:
            if hypervisor is None:
                hypervisor = stand_on(Hypervisor.connect(record.uri))
            changed = _rescue_vm(record, keepsake, thawing, hypervisor, time.monotonic() - started)
        except (HypervisorError, VmBusy) as error:
            if isinstance(error, HypervisorUnavailable):
                hypervisor = None
            changed = True
            saving = keepsake.kind != "disks" and isinstance(error, VmBusy)
            if time.monotonic() - started > (_MEMORY_SECONDS if saving else _PATIENCE_SECONDS):
                raise
        if changed:
            last_change = time.monotonic()
        time.sleep(_STEP_SECONDS)


def _rescue_vm(
    record: JobRecord, keepsake: SnapshotRecord, thawing: Thawing, hypervisor: Hypervisor, waited: float
) -> bool:
    domain = hypervisor.find_uuid(record.uuid)
    try:
        if domain is not None:
            return _rescue_once(record, keepsake, thawing, domain, waited)
    except VmNotFound:
        pass  # a transient VM that stopped
    thawing.forget()
    return False


def _rescue_once(record: JobRecord, keepsake: SnapshotRecord, thawing: Thawing, domain: Domain, waited: float) -> bool:
    """Do what is needed now; return whether anything was, or is waited for."""
    if keepsake.stopped:
        changed = put_checkpoints_back(keepsake, domain)
        return mark_overlays(keepsake, domain) or changed
    place = Path(record.keepsake)
    state = domain.state()
    if state.run is RunState.PAUSED:
        if keepsake.kind == "memory" and domain.has_job():
            DomainSnapshots(domain).abort()
            return True
        if kept_states(place) is None:
            # libvirt lists a snapshot as soon as it is at it, and lets nobody resume the VM before it is done.
            if keepsake.name in DomainSnapshots(domain).names():
                _keep(keepsake, place, domain)
            elif keepsake.was_running and waited < _SNAPSHOT_SECONDS:
                return True
        if keepsake.was_running:
            domain.resume()
            return True
    return thawing.ask(domain)


def _keep(keepsake: SnapshotRecord, place: Path, domain: Domain) -> None:
    """Read the state files of the VM, which stands still since before the snapshot."""
    sources = [StateSource(each.kind, Path(each.path), each.file, each.format) for each in keepsake.sources]
    try:
        states = tuple(read_state(source, keepsake.vm) for source in sources)
        if domain.state().run is not RunState.PAUSED:
            return  # of a vmkeep that woke too late: libvirt resumes what it had to suspend itself
        keep_states(place, KeptStates(as_text(datetime.now(UTC)), 0.0, states))
    except VmkeepError as error:
        _log.warning("the state of a snapshot was not kept", vm=domain.name, error=error.message)


def put_checkpoints_back(keepsake: SnapshotRecord, domain: Domain) -> bool:
    """Let libvirt list again what it listed before the snapshot of a VM that is off; return whether anything lacked.

    Raises HypervisorError for one that cannot be, after the others were.
    """
    listed = domain.checkpoint_names() if keepsake.checkpoints else frozenset()
    lacking = [(name, xml) for name, xml in keepsake.checkpoints if name not in listed]
    refused: VmkeepError | None = None
    for name, xml in lacking:
        try:
            domain.redefine_checkpoint(xml)
        except VmkeepError as error:
            refused = VmkeepError.from_dict(
                {**error.as_dict(), "message": f"checkpoint {name} is not listed again: {error.message}"}
            )
    if refused is not None:
        raise refused
    return bool(lacking)


def mark_overlays(keepsake: SnapshotRecord, domain: Domain) -> bool:
    """Give the overlays of a VM that is off the bitmaps of the images below; return whether one was added.

    libvirt does so itself for a VM that runs. An empty bitmap is right only in an overlay to which nothing was written:
    that is looked at right before, and a VM needs longer to start, write and stop. Where it cannot be given, the next
    point reads the disk whole.
    """
    changed = False
    if domain.state().run is not RunState.OFF:
        return False
    for disk in keepsake.overlays:
        with suppress(HostFileMissing, TransferError, NoSpace, VmBusy):
            (below,) = describe_image(disk.image, disk.image_format, chain=False)
            (top,) = describe_image(disk.overlay, disk.overlay_format, chain=False)
            missing = [bitmap for bitmap in below.bitmaps if top.bitmap(bitmap.name) is None]
            for bitmap in missing:
                if bitmap.recording and not bitmap.in_use and not holds_data(top):
                    add_bitmap(top.path, top.format, bitmap.name, granularity_bytes=bitmap.granularity_bytes)
                    changed = True
    return changed
