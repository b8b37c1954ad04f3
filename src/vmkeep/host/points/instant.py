"""The instant of a point: job, checkpoint, NVRAM and TPM while the virtual processors stand still.

Pure XML making and the few calls whose order matters; about 100 ms with libvirt 9.0, nearly all of it inside
backupBegin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from vmkeep.commandline import command_line
from vmkeep.definition import Definition, TpmBackend
from vmkeep.errors import HypervisorError, StateUnsupported, VmBusy, VmkeepError
from vmkeep.host.checkpoints.bindings import noted
from vmkeep.host.vm.thawing import thaw
from vmkeep.hypervisor import Domain, RunState
from vmkeep.moments import (
    Backup,
    BackupDisk,
    BackupDiskMode,
    BackupMode,
    BackupServer,
    Checkpoint,
    CheckpointDisk,
    CheckpointType,
    ServerTransport,
    StoreType,
    format_backup,
    format_checkpoint,
    luks_content,
)
from vmkeep.planning import Mode, PointPlan
from vmkeep.statefiles.capture import CapturedState, capture
from vmkeep.statefiles.location import StateRoots, tpm_file

NVRAM_NAME = "nvram.fd"
# A freeze waits until the guest has written out what it holds; libvirt's answer to it is waited for as long.
AGENT_WORK_SECONDS = 65.0


@dataclass(frozen=True, slots=True)
class Instant:
    """What was fixed: when, the state files of that moment, and how long the guest stood still for it."""

    created: str
    states: tuple[CapturedState, ...]
    pause_ms: float


@dataclass(frozen=True, slots=True)
class StateSource:
    """A state file to be read: its kind, where it is on the host, its name in the point, and its format."""

    kind: str
    path: Path
    file: str
    format: str = "raw"


def backup_xml(
    plan: PointPlan,
    definition: Definition,
    *,
    socket: Path,
    scratch: Mapping[str, Path],
    encrypted: Collection[str] = (),
    secret: str = "",
) -> str:
    """Return the pull job that exports each disk with scratch, with its bitmap where the disk is incremental.

    ``encrypted`` are the targets whose scratch is encrypted, and ``secret`` the UUID of the libvirt secret that opens
    it.

    Disks that are not in the job are listed as not taking part: libvirt would add the unlisted ones only
    when the list is empty, but a list that names all cannot be read in two ways.
    """
    planned = {disk.target: disk for disk in plan.disks}
    disks = []
    for disk in definition.disks:
        chosen = planned.get(disk.target)
        if chosen is None or disk.target not in scratch:
            disks.append(BackupDisk(name=disk.target, backup=False))
            continue
        incremental = chosen.mode is Mode.INCREMENTAL
        disks.append(
            BackupDisk(
                name=disk.target,
                store_type=StoreType.FILE,
                store=str(scratch[disk.target]),
                store_format="qcow2",
                store_content=luks_content(secret) if disk.target in encrypted else "",
                mode=BackupDiskMode.INCREMENTAL if incremental else BackupDiskMode.FULL,
                incremental=chosen.base_checkpoint if incremental else None,
            )
        )
    server = BackupServer(transport=ServerTransport.UNIX, socket=str(socket))
    return format_backup(Backup(mode=BackupMode.PULL, server=server, disks=tuple(disks)))


def checkpoint_xml(
    definition: Definition,
    name: str,
    targets: Collection[str],
    *,
    creation_time: int = 0,
    parent: str | None = None,
    begun: Mapping[str, str] = MappingProxyType({}),
) -> str | None:
    """Return the checkpoint with bitmaps in the disks of ``targets`` and in no others; None without such a disk.

    ``creation_time`` (seconds since 1970) is needed to redefine one, which then hangs from ``parent``; both are left
    to libvirt when one is created. ``begun`` names images in which bitmaps were made anew
    (``vmkeep.host.checkpoints.bindings``).
    """
    if not targets:
        return None
    disks = tuple(
        CheckpointDisk(disk.target, CheckpointType.BITMAP if disk.target in targets else CheckpointType.NO)
        for disk in definition.disks
    )
    text = noted("Base of the next incremental point of vmkeep; deleted when that is made", begun)
    return format_checkpoint(
        Checkpoint(name=name, description=text, parent_name=parent, creation_time=creation_time, disks=disks)
    )


def state_sources(definition: Definition, roots: StateRoots) -> tuple[StateSource, ...]:
    """Return the state files that belong to the VM.

    Raises StateUnsupported for those that cannot be read as a file: a point without them would not be whole.
    """
    sources = []
    firmware, tpm, vm = definition.firmware, definition.tpm, definition.name
    if firmware.has_variables:
        if firmware.nvram_type != "file":
            raise StateUnsupported(
                "the UEFI variables of the VM are not in a file of this host",
                vm=vm,
                hint="Define the VM with a file as NVRAM; other kinds of storage for it are not supported yet.",
            )
        # libvirt 9.0 leaves the path out of a definition with automatic firmware while the VM is off, and takes
        # the default again at the next start. 11.3 writes the firmware that it chose into the definition.
        nvram = Path(firmware.nvram) if firmware.nvram else roots.nvram_file(vm)
        sources.append(StateSource("nvram", nvram, NVRAM_NAME, firmware.nvram_format))
    if tpm is not None and tpm.backend is TpmBackend.EMULATOR:
        if tpm.source is not None and tpm.source_type != "dir":
            raise StateUnsupported(
                f"the TPM state of the VM is kept in a {tpm.source_type or 'place'} of its own ({tpm.source})",
                vm=vm,
                hint="swtpm writes such a file in place, so what is read of it may be torn. Define the TPM without "
                "<source>, or with <source type='dir'>; a TPM that is moved must be moved while the VM is off.",
            )
        directory = Path(tpm.source) if tpm.source else roots.tpm_directory(definition.uuid or "")
        name = tpm_file(tpm.version or "2.0")
        sources.append(StateSource("tpm", directory / (Path(name).name if tpm.source else name), name))
    return tuple(sources)


def refuse_unwritten_variables(sources: Sequence[StateSource], vm: str) -> None:
    """Raise StateUnsupported for UEFI variables in qcow2 of a VM whose guest suspended it.

    QEMU keeps the tables of a qcow2 image in memory until it flushes it. It does so when it is told to stop the
    virtual processors, and not when the guest does that; and libvirt does not suspend a VM that is suspended.
    """
    for source in sources:
        if source.format == "qcow2":
            raise StateUnsupported(
                "the VM was suspended by its guest, and QEMU may not have written out its UEFI variables",
                vm=vm,
                path=str(source.path),
                hint=f"Wake it (`{command_line('virsh dompmwakeup', vm)}`) or shut it down, and run the command again.",
            )


def fix_instant(
    domain: Domain,
    backup: str | None,
    checkpoint: str | None,
    sources: Sequence[StateSource],
    *,
    running: bool,
    quiesce: bool,
    scratch_made: bool = False,
    hold: Callable[[float], None],
    pause_seconds: float,
) -> Instant:
    """Freeze when asked, suspend, begin the job with its checkpoint, read the state files, resume, thaw.

    ``hold`` is the guardian's: it is told for how long the guest may stand still (``pause_seconds``), and raises
    JobAborted when the guest went on before the state files were read.

    ``backup`` is None when no disk is read through a job; ``scratch_made``: its scratch files are there already. A VM
    that was paused is not resumed. On failure the VM runs as before; the job and the checkpoint, if they came to be,
    are left to the caller's guardian.
    """
    try:
        if quiesce:
            hold(AGENT_WORK_SECONDS)
            domain.freeze()
        begun = time.monotonic()
        try:
            if running:
                hold(pause_seconds)
                domain.suspend()
            created = datetime.now(UTC)
            if backup is not None:
                domain.begin_backup(backup, checkpoint, scratch_made=scratch_made)
            states = tuple(read_state(source, domain.name) for source in sources)
            if running:
                hold(pause_seconds)
            require_standing(domain, "its point was begun")
        finally:
            if running:
                let_go_on(domain)
        pause_ms = (time.monotonic() - begun) * 1000 if running else 0.0
        if quiesce:
            hold(AGENT_WORK_SECONDS)
    finally:
        # Also after a freeze that failed: some of the file systems may be frozen. The guardian does it again when
        # this fails.
        if quiesce:
            thaw(domain)
    return Instant(as_text(created), states, round(pause_ms, 1))


def require_standing(domain: Domain, what: str) -> None:
    """Raise VmBusy for a VM that somebody resumed or stopped: its state files may be of different times."""
    if domain.state().run is not RunState.PAUSED:
        raise VmBusy(
            f"VM {domain.name!r} was resumed or stopped by somebody while {what}",
            vm=domain.name,
            hint="Run the command again.",
        )


def read_state(source: StateSource, vm: str) -> CapturedState:
    """Read one state file of a VM that stands still."""
    kind: Literal["tpm", "nvram"] = "tpm" if source.kind == "tpm" else "nvram"
    return capture(kind, source.path, file=source.file, vm=vm, qcow2=source.format == "qcow2")


def as_text(moment: datetime) -> str:
    """Return a moment as points record it: ISO 8601 in UTC with microseconds."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def let_go_on(domain: Domain) -> None:
    """Resume a VM that was suspended for an instant; one that stopped meanwhile needs nothing."""
    try:
        domain.resume()
    except VmkeepError:
        # Gone or stopped meanwhile, or a libvirt that does not answer: the guardian goes on trying in that case.
        if domain.state().run is RunState.PAUSED:
            raise HypervisorError("the VM could not be resumed after the instant", vm=domain.name) from None
