"""State files read while nothing holds their VM still: by themselves, and only what can be read whole."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from vmkeep.config import Settings
from vmkeep.custody.encryption import is_encrypted
from vmkeep.custody.states import KnownState, SealedSecret, vouched_states
from vmkeep.custody.variables import store_fault
from vmkeep.definition import Definition, parse_definition
from vmkeep.errors import HostFileMissing, IntegrityError, StateTorn
from vmkeep.host.records.restore import refuse_while_pending
from vmkeep.host.tasks.states import CaptureStates, StatesCaptured
from vmkeep.host.vm.held import domain_of
from vmkeep.host.vm.secrets import seal_for_version
from vmkeep.host.vm.states import StateSource, read_state, state_sources
from vmkeep.host.vm.trial import try_with_secret
from vmkeep.host.vm.versions import StoredStates, store_states
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.logs import get_logger
from vmkeep.repository import Repository
from vmkeep.statefiles.capture import CapturedState
from vmkeep.statefiles.location import StateRoots

_log = get_logger(__name__)
_READS: Final = 20
_BETWEEN_SECONDS: Final = 0.05


def capture_states(
    hypervisor: Hypervisor, repository: Repository, settings: Settings, task: CaptureStates
) -> StatesCaptured:
    """Capture the state files of a VM; see the task."""
    domain = domain_of(hypervisor, task.vm_uuid)
    refuse_while_pending(settings, domain.name, domain.uuid)  # what lies there is half of two states
    known_kinds = {state.kind for state in task.known}
    definition = parse_definition(domain.definition_xml())
    sources = [each for each in state_sources(definition, StateRoots.of(hypervisor.uri)) if each.kind in task.kinds]
    read = tuple(_read(domain, sources, known_kinds))
    if not task.as_it_is:
        known = {(state.kind, state.sha256) for state in task.known if state.vouched and not state.again}
        for state in read:
            if (state.kind, state.sha256) in known:
                continue
            if state.kind == "nvram":
                _require_store(state, definition, repository, task.known)
            elif settings.trial_start:
                _try(state, definition, hypervisor)
    stored = store_states(repository, repository, read, task.known, task.vm_uuid)
    sealed, warning = _sealed(hypervisor, repository, settings, definition, read, stored, task)
    return StatesCaptured(
        vm_name=domain.name,
        kinds=tuple(state.kind for state in read),
        new=stored.new_versions(),
        older=stored.older,
        sealed=() if sealed is None else (sealed,),
        warnings=(warning,) if warning else (),
    )


def _sealed(
    hypervisor: Hypervisor,
    repository: Repository,
    settings: Settings,
    definition: Definition,
    read: Sequence[CapturedState],
    stored: StoredStates,
    task: CaptureStates,
) -> tuple[SealedSecret | None, str]:
    """Seal what opens the TPM state that was read, and return that; else None, and why not where it is encrypted."""
    state = next((each for each in read if each.kind == "tpm"), None)
    if state is None or not is_encrypted(state.content):
        return None, ""
    version_id = next(ref.version_id for ref in stored.refs if ref.kind == "tpm")
    new = any(version.id == version_id for version in stored.new)
    sealed, warning = seal_for_version(hypervisor, repository, definition, task.vm_uuid, version_id, task.secrets)
    # That of a new version was tried already.
    if sealed is None or new or not settings.trial_start:
        return sealed, warning
    if try_with_secret(state.content, state.file, definition, hypervisor).loads is False:
        repository.pins.delete(sealed.pin_id)
        return None, (
            f"The TPM state does not open with the value that libvirt has for the secret {sealed.uuid}: that is not "
            "kept with the version."
        )
    return sealed, ""


def _try(state: CapturedState, definition: Definition, hypervisor: Hypervisor) -> None:
    """Raise StateTorn for a TPM state that swtpm does not load; one that cannot be tried is taken as it is."""
    trial = try_with_secret(state.content, state.file, definition, hypervisor)
    if trial.loads is False:
        encrypted = definition.tpm is not None and definition.tpm.secret_uuid is not None
        secret_too = " with the secret that libvirt has for it" if encrypted else ""
        raise StateTorn(
            f"the TPM state of VM {definition.name!r} is no good: {trial.why}{secret_too}. It was not kept, and the VM "
            "would not start with it",
            vm=definition.name,
            path=state.source,
            hint="The newest version stays what it is; with the VM off, `vmkeep state restore` puts it back. With "
            'trial_start = "off" in vmkeep.toml such a state is kept all the same.',
        )
    if trial.loads is None:
        _log.info("a TPM state is not tried", why=trial.why)


def _require_store(
    state: CapturedState, definition: Definition, repository: Repository, known: Sequence[KnownState]
) -> None:
    """Raise StateTorn for UEFI variables that are no whole store, where that is what the firmware has."""
    before = None
    newest = next(iter(vouched_states(known, "nvram")), None)
    if newest is not None:
        with suppress(IntegrityError):  # verify says so
            before = repository.state(newest.version_id)[1]
    fault = store_fault(state.content, before)
    if fault is not None:
        raise StateTorn(
            f"the UEFI variables of VM {definition.name!r} are no good: {fault}. They were not kept, and the VM's "
            "firmware would begin with empty ones",
            vm=definition.name,
            path=state.source,
            hint="The newest version stays what it is; with the VM off, `vmkeep nvram restore` puts it back.",
        )


def _read(domain: Domain, sources: Sequence[StateSource], known_kinds: set[str]) -> Iterator[CapturedState]:
    def may_be_written(source: StateSource) -> bool:
        return source.kind == "nvram" and domain.state().run is not RunState.OFF

    for source in sources:
        if may_be_written(source):
            continue
        try:
            state = _read_still(source, domain.name)
        except HostFileMissing:
            if source.kind in known_kinds:
                raise
            continue  # a VM that was never started
        if not may_be_written(source):  # it may have been started since
            yield state


def _read_still(source: StateSource, vm: str) -> CapturedState:
    """Read a file until two reads are equal: swtpm replaces it whole, and others may not."""
    before = read_state(source, vm)
    for _ in range(_READS):
        time.sleep(_BETWEEN_SECONDS)
        now = read_state(source, vm)
        if now == before:
            return now
        before = now
    raise StateTorn(
        f"the {source.kind} state of VM {vm!r} is being written all the time, so no version of it was kept",
        vm=vm,
        path=str(source.path),
        hint="The next capture, or a point, keeps it.",
    )
