"""A VM described for `vmkeep vm list` and `vm show`: by the same rules that a point of it would be planned with."""

from __future__ import annotations

from typing import Literal, cast

from vmkeep.config import Settings
from vmkeep.definition import DefinedDisk, Definition, DefinitionError, TpmBackend, parse_definition
from vmkeep.definition.origin import origin_of
from vmkeep.errors import StateUnsupported
from vmkeep.host.tasks.survey import SurveyedDisk, SurveyedVm
from vmkeep.host.vm.astray import astray_disks, lost_vm
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.host.vm.disks import disk_sizes, plannable_disks
from vmkeep.host.vm.images import top_images
from vmkeep.host.vm.rights import STATE_NAMES, lacking_rights, may_be_there
from vmkeep.host.vm.secrets import needed_secrets, read_secrets
from vmkeep.host.vm.states import state_sources, state_warnings
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.planning import Exclusion, PointRequest, Refused, plan_point
from vmkeep.planning.bitmaps import OLD_QCOW2, Chains, amending
from vmkeep.statefiles.location import StateRoots

_LEFT_OUT = "left out by vmkeep.toml"


def survey(domain: Domain, hypervisor: Hypervisor, settings: Settings) -> SurveyedVm:
    """Return the VM's disks, firmware and TPM, and whether a point of it would be whole."""
    state = domain.state()
    run = state.run
    shown = "crashed" if state.crashed else str(run)
    xml = domain.definition_xml()
    try:
        definition, origin = with_volumes_found(parse_definition(xml), hypervisor), origin_of(xml)
    except DefinitionError as error:
        return _unreadable(domain, shown, error)
    running = run in (RunState.RUNNING, RunState.PAUSED)
    chains = top_images(definition)
    sizes = disk_sizes(domain, definition, chains)
    plannable = plannable_disks(definition, sizes, settings, chains, hypervisor, running=running)
    lasting = settings.of_vm(domain.name, domain.uuid)
    never = frozenset(lasting.exclude)
    outcome = plan_point(PointRequest(vm=domain.name, running=running, disks=plannable, never=never))
    refusals = outcome.refusals if isinstance(outcome, Refused) else ()
    excluded = _excluded(definition, outcome.excluded if not isinstance(outcome, Refused) else ())
    by_target = {refused.target: refused.message for refused in refusals if refused.target is not None}
    left_out = frozenset(disk.target for disk in definition.disks if disk.target in never and not disk.removable)
    problems = [refused.message for refused in refusals]
    problems += [f"disk {target} is {_LEFT_OUT}" for target in sorted(left_out)]
    if running:
        problems += map(str, astray_disks(domain, definition, hypervisor))
    elif run is RunState.OFF and (lost := lost_vm(domain)) is not None:
        problems.append(lost)
    problems += _state_problems(definition, hypervisor, settings, running=running)
    problems += map(str, lacking_rights(definition, hypervisor.uri, running=running, left_out=never, looking=True))
    disks = tuple(
        SurveyedDisk(
            target=disk.target,
            device=disk.device,
            source=disk.source,
            format=disk.format,
            size_bytes=sizes.get(disk.target),
            problem=_LEFT_OUT if disk.target in left_out else by_target.get(disk.target) or excluded.get(disk.target),
            read_whole=_read_whole(disk, chains),
            left_out=disk.target in left_out,
        )
        for disk in definition.disks
    )
    return SurveyedVm(
        name=domain.name,
        uuid=domain.uuid,
        state=cast("Literal['running', 'paused', 'crashed', 'off', 'other']", shown),
        disks=disks,
        firmware="uefi" if definition.firmware.kind == "uefi" else "bios",
        nvram=_nvram(definition, settings),
        tpm=_tpm(definition),
        complete=not problems,
        problems=tuple(problems),
        skip=lasting.skip,
        reason=lasting.reason or None,
        clone_of=None if origin is None else origin.name,
        clone_of_uuid=None if origin is None else origin.uuid,
    )


def _read_whole(disk: DefinedDisk, chains: Chains) -> str | None:
    amend = amending(disk, chains.get(disk.target, ()))
    return None if amend is None else f"{OLD_QCOW2}, so each point reads it whole; with the VM off: `{amend}`"


def _excluded(definition: Definition, planned: tuple[Exclusion, ...]) -> dict[str, str]:
    told = {disk.target: "removable medium, not part of a point" for disk in definition.disks if disk.removable}
    return {**{exclusion.target: str(exclusion.reason) for exclusion in planned}, **told}


def _state_problems(definition: Definition, hypervisor: Hypervisor, settings: Settings, *, running: bool) -> list[str]:
    _, withheld = read_secrets(hypervisor, needed_secrets(definition))
    problems = state_warnings(definition) + withheld
    try:
        sources = state_sources(definition, StateRoots.of(settings.uri))
    except StateUnsupported as error:
        return [*problems, error.message]
    for source in sources:
        if not running and not may_be_there(source.path):
            problems.append(f"no {STATE_NAMES[source.kind]} yet: it was never started")
        elif running and not may_be_there(source.path):
            problems.append(f"its {STATE_NAMES[source.kind]} cannot be read at {source.path}")
    return problems


def _nvram(definition: Definition, settings: Settings) -> str | None:
    """Return the file of the UEFI variables, which libvirt 9.0 does not name of a VM that is off (11.3 does)."""
    if not definition.firmware.has_variables:
        return None
    return definition.firmware.nvram or str(StateRoots.of(settings.uri).nvram_file(definition.name))


def _tpm(definition: Definition) -> str | None:
    tpm = definition.tpm
    if tpm is None or tpm.backend is not TpmBackend.EMULATOR:
        return None if tpm is None else str(tpm.backend)  # what version it is only its owner knows
    return f"{tpm.backend} {tpm.version or '2.0'}"


def _unreadable(domain: Domain, shown: str, error: DefinitionError) -> SurveyedVm:
    return SurveyedVm(
        name=domain.name,
        uuid=domain.uuid,
        state=cast("Literal['running', 'paused', 'crashed', 'off', 'other']", shown),
        disks=(),
        firmware="bios",
        nvram=None,
        tpm=None,
        complete=False,
        problems=(f"the definition of {domain.name} cannot be read: {error}",),
    )
