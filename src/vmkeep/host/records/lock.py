"""The locks under which operations work on VMs of this host."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from vmkeep.errors import VmBusy
from vmkeep.host.tasks.locks import CAPTURE
from vmkeep.locks import FileLock

_PASSING_SECONDS = 10.0
_WAIT_SECONDS = 0.1


def take_turn(
    directory: Path, at_once: int, doing: str, stop: Callable[[], None], waiting: Callable[[], None]
) -> FileLock:
    """Wait until fewer than ``at_once`` operations have a turn, and take one; it ends with its process.

    ``waiting`` is called when it is not free at once.
    """
    told = False
    while True:
        for number in range(at_once):
            lock = FileLock.try_acquire(directory / f"turn-{number}.lock", note=f"{doing} (process {os.getpid()})")
            if lock is not None:
                return lock
        if not told:
            told = True
            waiting()
        stop()
        time.sleep(_WAIT_SECONDS)


def lock_vm(
    directory: Path, vm_uuid: str, vm_name: str, doing: str, stop: Callable[[], None], *, wait: bool = True
) -> FileLock:
    """Take the lock under which one operation at a time works on a VM.

    The guardian or the qemu-nbd of a killed process, which hold its lock on, and a capture of state files are about to
    be done and are waited for (not without ``wait``). ``doing`` names the operation for others. Raises VmBusy with what
    holds the VM.
    """
    path = directory / f"{vm_uuid}.lock"
    deadline = time.monotonic() + _PASSING_SECONDS
    while (lock := FileLock.try_acquire(path, note=f"{doing} (process {os.getpid()})")) is None:
        stop()
        holder = FileLock.holder(path)
        if not holder and not path.exists():
            continue  # it was let go of just now
        # Whoever has just taken it has not written who it is.
        passing = not holder or holder.startswith(CAPTURE) or FileLock.is_inherited(path)
        if wait and passing and time.monotonic() < deadline:
            time.sleep(_WAIT_SECONDS)
            continue
        raise VmBusy(f"{holder or 'another operation'} works on VM {vm_name!r}", vm=vm_name)
    return lock
