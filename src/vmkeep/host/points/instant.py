"""The instant of a point: job, checkpoint, NVRAM and TPM while the virtual processors stand still.

Pure XML making and the few calls whose order matters; about 100 ms with libvirt 9.0, nearly all of it inside
backupBegin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from vmkeep.definition import Definition
from vmkeep.host.vm.standstill import AGENT_WORK_SECONDS, as_text, require_standing, resume_guest
from vmkeep.host.vm.states import StateSource, read_state
from vmkeep.host.vm.thawing import thaw
from vmkeep.hypervisor import Domain
from vmkeep.moments import (
    Backup,
    BackupDisk,
    BackupDiskMode,
    BackupMode,
    BackupServer,
    ServerTransport,
    StoreType,
    format_backup,
    luks_content,
)
from vmkeep.planning import Mode, PointPlan
from vmkeep.statefiles.capture import CapturedState
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class Instant:
    """What was fixed: when, the state files of that moment, and how long the guest stood still for it."""

    created: str
    states: tuple[CapturedState, ...]
    pause_ms: float


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
                resume_guest(domain)
        pause_ms = (time.monotonic() - begun) * 1000 if running else 0.0
        if quiesce:
            hold(AGENT_WORK_SECONDS)
    finally:
        # Also after a freeze that failed: some of the file systems may be frozen. The guardian does it again when
        # this fails.
        if quiesce:
            thaw(domain)
    return Instant(as_text(created), states, round(pause_ms, 1))
