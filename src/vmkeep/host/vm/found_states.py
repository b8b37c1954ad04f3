"""The state files of a VM as they lie on the host now: looked at, hashed, and left alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vmkeep.custody.standing import FoundState
from vmkeep.definition import parse_definition
from vmkeep.errors import StateUnsupported, VmNotFound
from vmkeep.host.tasks.survey import StatesOfVm
from vmkeep.host.vm.states import StateSource, state_sources
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.statefiles.capture import LIMIT_BYTES, open_state
from vmkeep.statefiles.location import StateRoots

# Where swtpm 0.11 and later keep the state before the last write, when they are told to (its option ``backup``).
BACKUP_SUFFIX: Final = ".bak"


def look_at_states(hypervisor: Hypervisor, vms: tuple[str, ...]) -> tuple[StatesOfVm, ...]:
    """Return what lies on the host of each VM, by name or UUID; none named means all. Raises VmNotFound.

    Of a VM that runs the UEFI variables may be about to be written: what is told of them is of the moment.
    """
    domains = [hypervisor.domain(vm) for vm in vms] if vms else hypervisor.domains()
    return tuple(states for domain in domains for states in _states_of(domain, hypervisor))


def found_state(source: StateSource) -> FoundState:
    """Return how one state file is found."""
    kind, path = source.kind, str(source.path)
    try:
        content = read_state_file(source.path, kind)
        backup = None
        if content is None and kind == "tpm":
            backup = read_state_file(source.path.with_name(source.path.name + BACKUP_SUFFIX), kind)
    except OSError as error:
        return FoundState(kind, path, problem=f"{error.strerror or error}")
    if content is not None and len(content) > _limit(kind):
        return FoundState(kind, path, problem=f"it has more than the {_limit(kind)} bytes that it can have")
    return FoundState(
        kind,
        path,
        sha256=None if content is None else hashlib.sha256(content).hexdigest(),
        size_bytes=None if content is None else len(content),
        backup=None if backup is None else hashlib.sha256(backup).hexdigest(),
    )


def read_state_file(path: Path, kind: str) -> bytes | None:
    """Return a file's content, as far as it can be a state file's and a byte more; None when there is none.

    Raises OSError for one that is a link, a pipe or not to be read.
    """
    try:
        with os.fdopen(open_state(path), "rb") as stream:
            return stream.read(_limit(kind) + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _states_of(domain: Domain, hypervisor: Hypervisor) -> Iterator[StatesOfVm]:
    try:
        definition = parse_definition(domain.definition_xml())
        running = str(domain.state().run)
    except VmNotFound:
        return  # it was removed meanwhile
    try:
        sources = state_sources(definition, StateRoots.of(hypervisor.uri))
    except StateUnsupported as error:
        yield StatesOfVm(domain.name, domain.uuid, running, (), error.message)
        return
    yield StatesOfVm(domain.name, domain.uuid, running, tuple(found_state(source) for source in sources))


def _limit(kind: str) -> int:
    return LIMIT_BYTES["tpm" if kind == "tpm" else "nvram"]
