"""Replace a VM's UEFI variables: made anew, by those of a file, or with more certificates.

What lies there is a version before anything of it goes, and what comes is one before it is put in place: so a flow that
goes on in another process puts in place what the first one would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from vmkeep.catalog import CatalogState
from vmkeep.commandline import command_line
from vmkeep.custody.orphans import KeptContent
from vmkeep.custody.standing import NOTHING, Standing
from vmkeep.custody.states import (
    Because,
    ChosenVersion,
    KnownState,
    NewVersion,
    next_generation,
    that_counts,
    vouched_states,
)
from vmkeep.errors import IntegrityError, InvalidRequest, StateTorn
from vmkeep.flows.capture_states import keep_states_of_held
from vmkeep.flows.gate import place_states, renew_gate, take_states_back
from vmkeep.flows.orphans import contents_of
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.requests import NewNvram, NvramReplaced, ReplaceNvram
from vmkeep.flows.settle_pins import settle_pins_of_vm
from vmkeep.flows.variable_files import read_variable_file
from vmkeep.flows.vm_states import known_states, look_at_standings, new_state
from vmkeep.host.tasks.nvram import (
    CheckNvram,
    EnrolNvram,
    HoldForNvram,
    InstallNvram,
    LetNvramGo,
    NvramHeld,
    NvramMade,
    ResetNvram,
    WithdrawNvram,
)
from vmkeep.host.tasks.survey import FindVm
from vmkeep.repository import Repository

_FILE = "nvram.fd"


@flow("nvram.replace", after_crash=AfterCrash.FINISH)
def replace_nvram(plan: Plan, request: ReplaceNvram) -> NvramReplaced:
    """Replace a VM's UEFI variables. See docs/internals/flows.md."""
    held = plan.step(examine, plan, request, undo=lambda held: let_go(plan, held))
    tpm_kept = plan.step(keep_states, plan, request, held)
    # The undo stands before what it undoes: that may fail when its work is done.
    made = plan.step(make_content, plan, request, held, undo=lambda _: withdraw(plan, held))
    changed = made.version.sha256 != held.sha256
    if changed:
        plan.step(install, plan, held, made)
        plan.step(note_placed, plan, held, made, undo=lambda before: take_note_back(plan, held, made, before))
        plan.step(let_count, plan, held, made)
    keep_aside = changed and bool(held.sha256) and not held.whole
    aside = plan.step(let_go, plan, held, keep_aside, heeds_stop=False)
    kept = _version_before(plan, held)
    return NvramReplaced(
        name=held.vm_name,
        uuid=held.vm_uuid,
        how=str(request.how),
        changed=changed,
        path=held.path,
        kept=None if kept is None else kept.generation,
        kept_sha256="" if kept is None else kept.sha256,
        tpm_kept=tpm_kept,
        now=_generation_of(plan, held, made.version),
        sha256=made.version.sha256,
        template=held.template if request.how == NewNvram.RESET else "",
        added=made.added,
        present=made.present,
        left=made.left,
        aside=aside,
        way_back=_way_back(held, kept) if changed and kept is not None else "",
    )


def examine(plan: Plan, request: ReplaceNvram) -> NvramHeld:
    """Hold the VM, and note what lies there."""
    services = plan.services
    vm_uuid = services.host.ask(FindVm(request.vm))
    return services.on_host(plan.operation, HoldForNvram(plan.operation, vm_uuid))


def let_go(plan: Plan, held: NvramHeld, keep_aside: bool = False) -> str:
    """Let go of the VM, and of what was kept for an undo; return where that stays, if it does."""
    return plan.services.on_host(plan.operation, LetNvramGo(plan.operation, held.path, keep_aside))


def keep_states(plan: Plan, request: ReplaceNvram, held: NvramHeld) -> int | None:
    """Keep what lies there as a version, unless it is one; of what is blank or cut off there can be none.

    Variables that are no good become one that does not count. Before an enrolment the TPM's state is kept too, to which
    a guest may have sealed something by what changes; return the number of its version, None where there is none.
    """
    services, vm = plan.services, held.vm_name
    kinds = ("nvram",) if held.whole else ()
    try:
        keep_states_of_held(services, plan.operation, held.vm_uuid, vm, kinds)
    except StateTorn:
        if request.how == NewNvram.ENROL or not held.whole:
            raise
        keep_states_of_held(services, plan.operation, held.vm_uuid, vm, kinds, as_it_is=True)
    tpm_kept = None
    if request.how == NewNvram.ENROL and not _has_blank_tpm(plan, held):
        keep_states_of_held(services, plan.operation, held.vm_uuid, vm, ("tpm",))
        versions = services.catalog.states_of_vm(held.vm_uuid)
        tpm_kept = next((each.generation for each in versions if each.kind == "tpm" and not each.conflict), None)
    if held.whole and _version_before(plan, held) is None:
        raise IntegrityError(
            f"the UEFI variables of VM {held.vm_name!r} are no version that something holds: they were not replaced",
            vm=held.vm_name,
            path=held.path,
            hint=f"`{command_line('vmkeep state capture', held.vm_name)}` says what keeps them from being kept.",
        )
    return tpm_kept


def make_content(plan: Plan, request: ReplaceNvram, held: NvramHeld) -> NvramMade:
    """Put what is to lie there into the repository, unless it is there already; nothing counts yet."""
    services, operation = plan.services, plan.operation
    catalog = services.catalog
    known = known_states(catalog, held.vm_uuid, catalog.points_of_vm(held.vm_uuid))
    known = tuple(each for each in known if each.kind == "nvram")
    match request.how:
        case NewNvram.RESET:
            return services.on_host(operation, ResetNvram(operation, held, known))
        case NewNvram.ENROL:
            task = EnrolNvram(operation, held, known, request.of_2023, request.certificates)
            return services.on_host(operation, task)
        case NewNvram.IMPORT:
            made = services.with_repository(lambda repository: _put_file(repository, request, held, known))
            services.on_host(operation, CheckNvram(operation, held, made.version))
            return made


def install(plan: Plan, held: NvramHeld, made: NvramMade) -> None:
    """Put it in place, whole or not at all."""
    plan.services.on_host(plan.operation, InstallNvram(plan.operation, held, made.version))


def withdraw(plan: Plan, held: NvramHeld) -> None:
    """Undo ``install``, also one that failed in the middle."""
    plan.services.on_host(plan.operation, WithdrawNvram(plan.operation, held))


def note_placed(plan: Plan, held: NvramHeld, made: NvramMade) -> dict[str, str | None]:
    """Let what lies there count as meant; return what counted before."""
    return place_states(plan, held.vm_uuid, {"nvram": made.version.sha256})


def take_note_back(plan: Plan, held: NvramHeld, made: NvramMade, before: Mapping[str, str | None]) -> None:
    """Undo ``note_placed``. Where the new version counts already, what lies there again is an older one, and meant."""
    counts = made.new is not None and _is_newest(plan, held, made.new)
    take_states_back(plan, held.vm_uuid, {"nvram": held.sha256 or NOTHING} if counts else before)


def let_count(plan: Plan, held: NvramHeld, made: NvramMade) -> None:
    """Let a version that nothing knew be the newest. A capture may have met the content before."""
    if made.new is None:
        return
    catalog = plan.services.catalog
    if not any(each.sha256 == made.new.sha256 and not each.conflict for each in _nvram_versions(plan, held)):
        catalog.accept_states((new_state(held.vm_uuid, made.new),))
        renew_gate(plan.services, held.vm_uuid)
    settle_pins_of_vm(plan.services, held.vm_uuid)


def _put_file(
    repository: Repository, request: ReplaceNvram, held: NvramHeld, known: tuple[KnownState, ...]
) -> NvramMade:
    """Put the content of a file into the repository. Raises InvalidRequest for one that changed since it was named."""
    content = read_variable_file(Path(request.file))
    digest = hashlib.sha256(content).hexdigest()
    if digest != request.sha256:
        raise InvalidRequest(
            f"{request.file} is another file by now than when the command began", path=request.file, vm=held.vm_name
        )
    equal = next((each for each in vouched_states(known, "nvram") if each.sha256 == digest), None)
    if equal is not None:
        return NvramMade(ChosenVersion("nvram", equal.version_id, digest), None)
    put = repository.put_state(
        content,
        vm_uuid=held.vm_uuid,
        kind="nvram",
        generation=next_generation(known, "nvram"),
        file=_FILE,
        owner="root",
        group="root",
        mode=0o600,
    )
    new = NewVersion("nvram", put.id, put.generation, put.sha256, put.size_bytes, put.created, str(Because.PLACED))
    return NvramMade(ChosenVersion("nvram", put.id, put.sha256), new)


def _nvram_versions(plan: Plan, held: NvramHeld) -> list[CatalogState]:
    return [each for each in plan.services.catalog.states_of_vm(held.vm_uuid) if each.kind == "nvram"]


def _is_newest(plan: Plan, held: NvramHeld, new: NewVersion) -> bool:
    newest = next((each for each in _nvram_versions(plan, held) if not each.conflict), None)
    return newest is not None and newest.id == new.id


def _has_blank_tpm(plan: Plan, held: NvramHeld) -> bool:
    """Return whether the VM's TPM has no state and is to have none: it is new, and nothing was sealed to it."""
    looked = look_at_standings(plan.services.catalog, plan.services.host, (held.vm_uuid,))
    return any(
        state.found.kind == "tpm"
        and state.found.sha256 is None
        and state.judged.standing in (Standing.BLANK, Standing.NOT_KEPT)
        for state in looked.states
    )


def _generation_of(plan: Plan, held: NvramHeld, version: ChosenVersion) -> int | None:
    """Return the number of the version that lies there: of several with one content the one that counts."""
    same = [each for each in _nvram_versions(plan, held) if each.sha256 == version.sha256]
    best = that_counts(same)
    return None if best is None else best.generation


def _version_before(plan: Plan, held: NvramHeld) -> KeptContent | None:
    """Return the version that holds what lay there: of several with one content the one that counts."""
    if not held.sha256:
        return None
    found = contents_of(plan.services.catalog, held.vm_uuid, frozenset({held.sha256}))
    same = [each for each in found if each.kind == "nvram"]
    return that_counts(same)


def _way_back(held: NvramHeld, kept: KeptContent) -> str:
    named = kept.sha256[:16] if kept.conflict else str(kept.generation)
    return command_line("vmkeep nvram restore", held.vm_name, options=f"--version {named}")
