"""The device: looked at, taken out of the definition of a VM that is off, and put in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vmkeep.commandline import command_line
from vmkeep.definition import Definition, DefinitionError, TpmBackend, parse_definition
from vmkeep.definition.tpmdevice import put_tpm_in, take_tpm_out
from vmkeep.errors import InvalidRequest, SecretMissing, StateUnsupported
from vmkeep.fitting.capabilities import read_domain_capabilities
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.tpms import HoldForTpm, LookAtTpm, PutTpmIn, RequireTpmFits, TakeTpmOut, TpmFound
from vmkeep.host.vm.definition import read_definition
from vmkeep.host.vm.fitness import require_off
from vmkeep.host.vm.held import domain_of, hold, hold_off, let_go
from vmkeep.host.vm.states import state_sources
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.statefiles.location import StateRoots, tpm_file
from vmkeep.xmltext import XmlRefused

DOING = "change of its TPM"
"""What others are told who meet the lock."""
_MODELS = {"tpm-crb": "crb", "tpm-tis": "tis"}


def look_at_tpm(operation: Operation, task: LookAtTpm) -> TpmFound:
    """Tell of a VM's TPM; see the task."""
    hypervisor = operation.connected()
    domain = domain_of(hypervisor, task.vm_uuid)
    return _found(hypervisor, domain)


def hold_for_tpm(operation: Operation, task: HoldForTpm) -> TpmFound:
    """Hold the VM and tell of its TPM; see the task. When this raises, the VM is not held."""
    hypervisor = operation.connected()
    domain = domain_of(hypervisor, task.vm_uuid)
    hold_off(operation, domain, DOING)
    try:
        found = _found(hypervisor, domain)
        _refuse_other_kinds(found, domain)
        return found
    except BaseException:
        let_go(operation)
        raise


def take_tpm_out_of_vm(operation: Operation, task: TakeTpmOut) -> None:
    """Define the VM without its TPM; see the task."""
    hypervisor = operation.connected()
    domain = domain_of(hypervisor, task.vm_uuid)
    hold(operation, domain, DOING)
    taken = take_tpm_out(_inactive(domain))
    if taken is None:
        return
    require_off(domain)
    if not _is_same(taken.definition, taken.element, task.element):
        raise _another_tpm(domain)
    _define(hypervisor, domain, taken.definition, lambda xml: put_tpm_in(xml, taken.element, taken.place))


def put_tpm_into_vm(operation: Operation, task: PutTpmIn) -> None:
    """Define the VM with this TPM; see the task."""
    hypervisor = operation.connected()
    domain = domain_of(hypervisor, task.vm_uuid)
    hold(operation, domain, DOING)
    present = _inactive(domain)
    taken = take_tpm_out(present)
    if taken is not None:
        if not _is_same(taken.definition, taken.element, task.element):
            raise _another_tpm(domain)
        return  # by an attempt that did not live to say so
    try:
        wanted = put_tpm_in(present, task.element, None if task.place < 0 else task.place)
    except DefinitionError as error:
        raise InvalidRequest(f"VM {domain.name!r} cannot be given the TPM: {error}", vm=domain.name) from error

    if parse_definition(domain.definition_xml()).tpm is not None:
        hypervisor.define(wanted, domain.name)  # it was started with its TPM just before that was taken out
        return
    require_off(domain)

    def without(xml: str) -> str:
        again = take_tpm_out(xml)
        return xml if again is None else again.definition

    _define(hypervisor, domain, wanted, without)


def require_tpm_fits(operation: Operation, task: RequireTpmFits) -> None:
    """Refuse a TPM that the VM cannot have here; see the task."""
    hypervisor = operation.connected()
    domain = domain_of(hypervisor, task.vm_uuid)
    if task.secret and hypervisor.secrets.usage(task.secret) != "vtpm":
        raise SecretMissing(f"libvirt has no secret {task.secret} for TPMs", vm=domain.name)
    about = read_definition(_inactive(domain), domain)
    try:
        able = read_domain_capabilities(
            hypervisor.domain_capabilities(about.domain_type, about.arch or "x86_64", about.machine)
        )
    except XmlRefused as error:
        raise StateUnsupported(f"what libvirt can do could not be read: {error}", vm=domain.name) from error
    backends, versions, models = (able.enums.get(f"tpm.{name}") for name in ("backendModel", "backendVersion", "model"))
    if "tpm" in able.unsupported or (backends is not None and "emulator" not in backends):
        what = "this host has no emulated TPM"
        hint = "Install swtpm and swtpm-tools, and restart libvirtd."
    elif versions is not None and task.version not in versions:
        what, hint = f"this host emulates no TPM {task.version}", "Install a swtpm that does, and restart libvirtd."
    elif models is not None and task.model not in models:
        what = f"a VM of the machine {about.machine} can have no {task.model}"
        has = sorted(short for name, short in _MODELS.items() if name in models)
        hint = f"It can have: {', '.join(f'--model {each}' for each in has) or 'none'}."
    elif task.version == "1.2" and task.model == "tpm-crb":
        what, hint = "a TPM 1.2 is no tpm-crb, which has commands of the TPM 2.0 only", "Give --model tis."
    else:
        return
    raise StateUnsupported(f"VM {domain.name!r} cannot have this TPM: {what}", vm=domain.name, hint=hint)


def _inactive(domain: Domain) -> str:
    return domain.definition_xml(inactive=True, secure=True)


def _found(hypervisor: Hypervisor, domain: Domain) -> TpmFound:
    xml = domain.definition_xml(inactive=domain.is_persistent(), secure=True)
    definition = read_definition(xml, domain)
    taken = take_tpm_out(xml)
    tpm = definition.tpm
    if taken is None or tpm is None:
        own = StateRoots.of(hypervisor.uri).tpm_directory(domain.uuid)
        return TpmFound(domain.uuid, domain.name, directory=str(own))
    version = tpm.version or ("2.0" if tpm.backend is TpmBackend.EMULATOR else "")
    directory, file = place_of_tpm(hypervisor, definition)
    return TpmFound(
        domain.uuid,
        domain.name,
        taken.element,
        taken.place,
        tpm.model or "",
        version,
        str(tpm.backend),
        tpm.secret_uuid or "",
        tpm.secret_uuid is not None and hypervisor.secrets.usage(tpm.secret_uuid) is not None,
        directory,
        file,
        bool(file) and Path(directory, file).is_file(),
    )


def place_of_tpm(hypervisor: Hypervisor, definition: Definition) -> tuple[str, str]:
    """Return swtpm's directory of a VM and the file below it; empty where libvirt keeps no directory for it."""
    tpm = definition.tpm
    if tpm is None or tpm.backend is not TpmBackend.EMULATOR or (tpm.source is not None and tpm.source_type != "dir"):
        return "", ""
    sources = state_sources(definition, StateRoots.of(hypervisor.uri))
    path = next(source.path for source in sources if source.kind == "tpm")
    name = Path(tpm_file(tpm.version or "2.0"))
    file = name.name if tpm.source else str(name)
    return str(path.parent if tpm.source else path.parents[1]), file


def _refuse_other_kinds(found: TpmFound, domain: Domain) -> None:
    if not found.element or found.directory:
        return
    if found.backend != TpmBackend.EMULATOR:
        what = f"the TPM of VM {domain.name!r} is none that libvirt emulates ({found.backend})"
        hint = "It has no state that libvirt keeps. `virsh edit` takes the device out."
    else:
        what = f"the TPM state of VM {domain.name!r} is kept in one file"
        hint = "swtpm writes such a file in place, so what is read of it may be torn. It was left as it is."
    raise StateUnsupported(what, vm=domain.name, hint=hint)


def _is_same(without: str, present: str, wanted: str) -> bool:
    """Return whether a TPM is the one that was put in, as libvirt writes it: it adds what it has defaults for."""
    again = take_tpm_out(put_tpm_in(without, wanted))
    assert again is not None
    if again.element == present:
        return True
    one, other = (_which(without, element) for element in (present, wanted))
    return one == other


def _which(without: str, element: str) -> tuple[object, ...]:
    """Return what of a TPM's element says which TPM it is."""
    tpm = parse_definition(put_tpm_in(without, element)).tpm
    assert tpm is not None
    return tpm.model, tpm.backend, tpm.version or "2.0", tpm.secret_uuid, tpm.source


def _another_tpm(domain: Domain) -> InvalidRequest:
    return InvalidRequest(
        f"VM {domain.name!r} has another TPM by now than at the beginning: somebody changed its definition",
        vm=domain.name,
        hint=f"Nothing more was done to it. Look at it (`{command_line('vmkeep tpm show', domain.name)}`), and run the "
        "command again.",
    )


def _define(hypervisor: Hypervisor, domain: Domain, xml: str, back: Callable[[str], str]) -> None:
    """Define a VM that is off, and see that it still is; else its definition is made what it was."""
    hypervisor.define(xml, domain.name)
    try:
        require_off(domain)  # it may have been started just before
    except BaseException:
        hypervisor.define(back(_inactive(domain)), domain.name)
        raise
