"""QEMU's human monitor, and qemu-io through it: how a disk is written to when no guest does."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import libvirt
import libvirt_qemu

from tests.rig.errors import RigError

# What qemu-io says goes to QEMU's log, not to the monitor: one of these lines for each command that succeeded ...
_QEMU_IO_DONE = re.compile(r"^(?:wrote|discard|read) (\d+)/(\d+) bytes at offset", re.MULTILINE)
# ... and its statistics or, for one that failed, some other text.
_QEMU_IO_FAILED = re.compile(r"failed|[Nn]o such|invalid|not a|argument|not aligned|non-numeric|out of range|bad ")
_TIMEOUT_SECONDS = 20.0


def human(domain: libvirt.virDomain, command: str) -> str:
    """Send a command to QEMU's human monitor and return its answer."""
    answer = libvirt_qemu.qemuMonitorCommand(domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
    if answer.startswith("Error:"):
        raise RigError(f"{domain.name()}: {command}: {answer.strip()}")
    return answer


def qemu_io(domain: libvirt.virDomain, log: Path, device: str, commands: Sequence[str]) -> None:
    """Carry out qemu-io commands on a device, by its path in QEMU's object tree, and wait for each one's result.

    ``log`` is QEMU's log. Raises RigError with QEMU's words when a command fails.
    """
    log_start = log.stat().st_size
    for command in commands:
        answer = human(domain, f'qemu-io -d {device} "{command}"')
        if answer:
            raise RigError(f"{domain.name()}: {command}: {answer.strip()}")
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        with log.open("rb") as file:
            file.seek(log_start)
            said = file.read().decode(errors="replace")
        done = _QEMU_IO_DONE.findall(said)
        late = time.monotonic() > deadline
        if late or _QEMU_IO_FAILED.search(said) or any(count != wanted for count, wanted in done):
            raise RigError(f"{domain.name()}: qemu-io on {device}: {said.strip() or 'no answer'}")
        if len(done) >= len(commands):
            return
        time.sleep(0.001)
