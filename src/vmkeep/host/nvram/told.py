"""The UEFI variables of VMs in words, as they lie on the host. Nothing is changed."""

from __future__ import annotations

import hashlib

from vmkeep.custody.nvram import tell_of_nvram
from vmkeep.definition import Definition, DefinitionError, parse_definition
from vmkeep.errors import StateUnsupported, VmkeepError, VmNotFound
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.nvram import LookAtNvram, NvramFound
from vmkeep.host.vm.found_states import read_state_file
from vmkeep.host.vm.held import domain_of
from vmkeep.host.vm.states import StateSource, state_sources
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.statefiles.capture import LIMIT_BYTES
from vmkeep.statefiles.location import StateRoots
from vmkeep.xmltext import XmlRefused


def look_at_nvram(operation: Operation, task: LookAtNvram) -> tuple[NvramFound, ...]:
    """Tell of the variables of one VM, or of all; see the task."""
    hypervisor = operation.connected()
    if task.vm_uuid:
        return (_found(hypervisor, domain_of(hypervisor, task.vm_uuid)),)
    found = []
    for domain in hypervisor.domains():
        try:
            each = _found(hypervisor, domain)
        except VmNotFound:
            continue  # it was removed meanwhile
        if each.path or each.problem:
            found.append(each)
    return tuple(sorted(found, key=lambda each: each.vm_name))


def nvram_of(definition: Definition, uri: str) -> StateSource | None:
    """Return where the variables of a VM lie; None for one that has none. Raises StateUnsupported."""
    if not definition.firmware.has_variables:
        return None
    return next(source for source in state_sources(definition, StateRoots.of(uri)) if source.kind == "nvram")


def _found(hypervisor: Hypervisor, domain: Domain) -> NvramFound:
    found = NvramFound(domain.uuid, domain.name, domain.state().run is not RunState.OFF)
    try:
        source = nvram_of(parse_definition(domain.definition_xml()), hypervisor.uri)
    except (DefinitionError, XmlRefused, StateUnsupported) as error:
        return _with(found, problem=error.message if isinstance(error, VmkeepError) else str(error))
    if source is None:
        return found
    path = str(source.path)
    try:
        content = read_state_file(source.path, "nvram")
    except OSError as error:
        return _with(found, path=path, problem=f"it could not be read: {error.strerror or error}")
    if content is None:
        return _with(found, path=path, problem="there is no file yet: libvirt makes it at the next start")
    if len(content) > LIMIT_BYTES["nvram"]:
        return _with(found, path=path, problem=f"it has more than the {LIMIT_BYTES['nvram']} bytes that it can have")
    return NvramFound(
        found.vm_uuid,
        found.vm_name,
        found.running,
        path,
        hashlib.sha256(content).hexdigest(),
        len(content),
        tell_of_nvram(content),
    )


def _with(found: NvramFound, *, path: str = "", problem: str) -> NvramFound:
    return NvramFound(found.vm_uuid, found.vm_name, found.running, path, problem=problem)
