"""A state file as it lies on the host, beside a version of it that is kept. Nothing is changed."""

from __future__ import annotations

from vmkeep.custody.differences import StateDifference, compare_states
from vmkeep.definition import parse_definition
from vmkeep.errors import HostFileMissing, StateUnsupported, VmNotFound
from vmkeep.filesystem import file_errors
from vmkeep.host.tasks.states import CompareState
from vmkeep.host.vm.found_states import read_state_file
from vmkeep.host.vm.states import StateSource, state_sources
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.repository import Repository
from vmkeep.repository.chosen import read_chosen
from vmkeep.repository.record import STATE_LIMITS
from vmkeep.statefiles.location import StateRoots


def compare_state(hypervisor: Hypervisor, repository: Repository, task: CompareState) -> StateDifference:
    """Compare one state file of a VM with a version of it; see the task."""
    domain = hypervisor.find_uuid(task.vm_uuid)
    if domain is None:
        raise VmNotFound(
            f"there is no VM {task.vm_uuid} on this host",
            vm=task.vm_uuid,
            hint="Name two versions; `vmkeep state versions VM` lists them.",
        )
    source = _source(domain, StateRoots.of(hypervisor.uri), task.version.kind)
    with file_errors(source.path, "read"):
        now = read_state_file(source.path, source.kind)
    if now is None:
        raise HostFileMissing(
            f"the {source.kind} state of VM {domain.name!r} is not there",
            vm=domain.name,
            path=str(source.path),
            hint="Name two versions to compare them; `vmkeep state list` says what puts the file back.",
        )
    if len(now) > STATE_LIMITS[source.kind]:
        raise StateUnsupported(
            f"the {source.kind} state has more than the {STATE_LIMITS[source.kind]} bytes that it can have",
            vm=domain.name,
            path=str(source.path),
        )
    _, kept = read_chosen(repository, task.vm_uuid, task.version)
    return compare_states(source.kind, kept, now)


def _source(domain: Domain, roots: StateRoots, kind: str) -> StateSource:
    for source in state_sources(parse_definition(domain.definition_xml()), roots):
        if source.kind == kind:
            return source
    raise StateUnsupported(f"VM {domain.name!r} has no {kind} state on this host", vm=domain.name)
