"""Waiting for state files to change: by what the file system says of them, and libvirt of which VMs run.

Asking is chosen over being told: inotify tells nothing on NFS, and loses what is written while nobody listens. A look
at 200 VMs costs the file system 1 ms, and libvirt one call.
"""

from __future__ import annotations

import os
import time
from typing import Final

from vmkeep.definition import parse_definition
from vmkeep.errors import StateUnsupported, VmNotFound
from vmkeep.host.tasks.states import SeenState
from vmkeep.host.vm.states import state_sources
from vmkeep.hypervisor import Hypervisor
from vmkeep.statefiles.location import StateRoots

_LOOK_SECONDS: Final = 0.5
_QUIET_SECONDS: Final = 1.0
# A TPM that is written all the time is captured all the same.
_LONGEST_QUIET_SECONDS: Final = 5.0


def await_states(hypervisor: Hypervisor, seen: tuple[SeenState, ...], seconds: float) -> tuple[SeenState, ...]:
    """Return what can be captured, when it differs from ``seen`` and keeps quiet, or else after so many seconds.

    It also returns when VMs came or went, or their files moved: what is asked for is read anew each time.
    """
    begun = time.monotonic()
    files, known = _files(hypervisor), frozenset(seen)
    before, since = _look(hypervisor, files), begun
    changed: float | None = None
    while True:
        now = time.monotonic()
        if frozenset(before) != known:
            changed = changed if changed is not None else now
            if now - since >= _QUIET_SECONDS or now - changed >= _LONGEST_QUIET_SECONDS:
                return before
        elif now - begun >= seconds:
            return before
        time.sleep(_LOOK_SECONDS)
        found = _look(hypervisor, files)
        if found != before:
            before, since = found, time.monotonic()


def _files(hypervisor: Hypervisor) -> tuple[tuple[str, str, str], ...]:
    """Return VM, kind and path of each state file of the host."""
    found = []
    roots = StateRoots.of(hypervisor.uri)
    for domain in hypervisor.domains():
        try:
            definition = parse_definition(domain.definition_xml())
            found += [(domain.uuid, source.kind, str(source.path)) for source in state_sources(definition, roots)]
        except (StateUnsupported, VmNotFound):
            continue  # of the one a point tells, the other is gone
    return tuple(found)


def _look(hypervisor: Hypervisor, files: tuple[tuple[str, str, str], ...]) -> tuple[SeenState, ...]:
    active = hypervisor.active_uuids()
    return tuple(
        SeenState(uuid, kind, _mark(path)) for uuid, kind, path in files if not (kind == "nvram" and uuid in active)
    )


def _mark(path: str) -> str:
    try:
        about = os.lstat(path)
    except OSError:
        return ""
    return f"{about.st_dev}:{about.st_ino}:{about.st_size}:{about.st_mtime_ns}"
