"""Take a VM's TPM out: the device, its state on the host, and the secret that opens it. What it held is kept first.

What becomes of versions and their files: none is deleted. What lies there is a version before it goes; points and
snapshots keep theirs, and what nothing else holds has a term from the removal on (``removed_tpm_days``).

What protects files whose deletion failed, once the secret is gone: they are encrypted, as versions are in the
repository, and without the secret nobody opens them; plain ones nothing protects but their mode, which is why a
tombstone says so. The secret goes only where an envelope has its value, so that an undo gives it back; an undo of each
step stands before it.

Why a host that fails does not stop the flow: the guest has lost its TPM by then, and its state is kept. To put all of
it back because a file could not be deleted would undo what was asked for, and leave the file where it was. So a
tombstone records it, and the deletion is tried again.
"""

from __future__ import annotations

from contextlib import suppress

from vmkeep.catalog.texts import now
from vmkeep.commandline import command_line
from vmkeep.custody.orphans import KeptContent, Orphan
from vmkeep.custody.standing import NOTHING
from vmkeep.custody.states import ChosenVersion, that_counts
from vmkeep.errors import IntegrityError, VmkeepError
from vmkeep.flows.capture_states import keep_states_of_held
from vmkeep.flows.gate import place_states, take_states_back
from vmkeep.flows.orphans import contents_of
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.removals import (
    Removal,
    proof_of,
    store_proofs,
    term_of,
    tombstones_of,
    until_days,
)
from vmkeep.flows.requests import RemoveTpm, TpmRemoved
from vmkeep.flows.secret_holders import SecretHolder, secret_holders
from vmkeep.flows.settle_pins import settle_pins_of_vm
from vmkeep.flows.tombstones import settle_deleted
from vmkeep.host.tasks.survey import FindVm
from vmkeep.host.tasks.tpms import (
    DeleteTpmState,
    DropTpmSecret,
    GiveTpmSecret,
    HoldForTpm,
    InstallTpmState,
    JudgeTpmSecret,
    LetTpmGo,
    PutTpmIn,
    SecretJudged,
    TakeTpmOut,
    TpmFound,
    TpmRemains,
    TpmRemainsFound,
    TpmStateDeleted,
)
from vmkeep.repository import Renewal


@flow("tpm.remove", after_crash=AfterCrash.FINISH)
def remove_tpm(plan: Plan, request: RemoveTpm) -> TpmRemoved:
    """Remove a VM's TPM; its state is a version before anything of it goes. See docs/internals/flows.md."""
    found = plan.step(examine, plan, request, undo=lambda found: let_go(plan, found))
    # Each undo stands at the step before the one that it undoes: that one may fail when its work is done.
    # What becomes of versions: this one is kept, and none of the others goes by the removal.
    plan.step(keep_state, plan, found, undo=lambda _: put_back(plan, found))
    plan.step(take_out, plan, found)
    remains = plan.step(look_at_remains, plan, found, undo=lambda remains: install_again(plan, found, remains))
    # A host that fails does not stop the flow: what it could not delete is in the answer, and gets a tombstone below.
    deleted = plan.step(delete_state, plan, found, remains)
    # After the files, so that an undo needs no more than envelopes; from here on those left open for nobody.
    judged = plan.step(judge_secret, plan, found, undo=lambda judged: give_back(plan, found, judged))
    dropped = plan.step(drop_secret, plan, found, judged)
    plan.step(note_removed, plan, found, undo=lambda before: take_states_back(plan, found.vm_uuid, before))
    removal = removal_of(plan, found, remains, deleted, dropped)
    left = plan.step(note_removal, plan, removal, undo=lambda _: withdraw_removal(plan, found))
    plan.step(let_go, plan, found, heeds_stop=False)
    # Last: what it proves has happened, whether the repository can be reached by now or not.
    plan.step(store_proofs, plan, heeds_stop=False)
    kept = version_in(plan, found, remains)
    return TpmRemoved(
        name=found.vm_name,
        uuid=found.vm_uuid,
        had_tpm=bool(found.element),
        kept=None if kept is None else kept.generation,
        sha256="" if kept is None else kept.sha256,
        deleted=deleted.removed,
        left=deleted.left,
        tombstones=left,
        removal="" if removal.is_nothing else plan.operation,
        secret=found.secret,
        secret_point=dropped.point,
        secret_pin=dropped.pin,
        secret_stays=dropped.why,
        way_back="" if kept is None else _way_back(plan, found, kept),
    )


def examine(plan: Plan, request: RemoveTpm) -> TpmFound:
    """Hold the VM, and note its device: later steps may find it gone, by an attempt of theirs that was killed."""
    services = plan.services
    vm_uuid = services.host.ask(FindVm(request.vm))
    return services.on_host(plan.operation, HoldForTpm(plan.operation, vm_uuid))


def let_go(plan: Plan, found: TpmFound) -> None:
    """Let go of the VM."""
    plan.services.on_host(plan.operation, LetTpmGo(plan.operation, found.directory))


def keep_state(plan: Plan, found: TpmFound) -> None:
    """Keep what lies there as a version, unless it is one. Without a state file there is nothing to keep."""
    kinds = ("tpm",) if found.state else ()
    keep_states_of_held(plan.services, plan.operation, found.vm_uuid, found.vm_name, kinds)


def take_out(plan: Plan, found: TpmFound) -> None:
    """Define the VM without the device."""
    if found.element:
        plan.services.on_host(plan.operation, TakeTpmOut(plan.operation, found.vm_uuid, found.element))


def put_back(plan: Plan, found: TpmFound) -> None:
    """Undo ``take_out``; a device that is there is left."""
    if found.element:
        task = PutTpmIn(plan.operation, found.vm_uuid, found.element, found.place)
        plan.services.on_host(plan.operation, task)


def look_at_remains(plan: Plan, found: TpmFound) -> TpmRemainsFound:
    """Tell what lies there; what is deleted, and what an undo puts back, goes by this."""
    return plan.services.on_host(plan.operation, TpmRemains(plan.operation, found.vm_uuid, found.directory))


def delete_state(plan: Plan, found: TpmFound, remains: TpmRemainsFound) -> TpmStateDeleted:
    """Delete what is kept of what lies there. What could not be deleted is told, and stops nothing."""
    if remains.found is None:
        return TpmStateDeleted((), ())
    kept = _kept(plan, found, remains.found)
    if found.state and not any(each.sha256 == _main_hash(found, remains.found) for each in kept):
        raise IntegrityError(
            f"the TPM state of VM {found.vm_name!r} is no version that something holds: it was not deleted",
            vm=found.vm_name,
            path=found.directory,
            hint=f"`{command_line('vmkeep state capture', found.vm_name)}` says what keeps it from being kept.",
        )
    chosen = tuple(ChosenVersion(each.kind, each.version_id, each.sha256) for each in kept)
    task = DeleteTpmState(plan.operation, found.vm_uuid, remains.found, chosen)
    return plan.services.on_host(plan.operation, task)


def install_again(plan: Plan, found: TpmFound, remains: TpmRemainsFound) -> None:
    """Undo ``delete_state``, also of one that failed in the middle: what lies there already is left."""
    version = version_in(plan, found, remains)
    if version is not None:
        chosen = ChosenVersion(version.kind, version.version_id, version.sha256)
        task = InstallTpmState(plan.operation, found.vm_uuid, found.directory, found.file, chosen)
        plan.services.on_host(plan.operation, task)


def judge_secret(plan: Plan, found: TpmFound) -> SecretJudged:
    """Tell whether the secret can go: nothing needs it, and an envelope holds it. No key is destroyed before."""
    if not found.secret:
        return SecretJudged()
    holders = _holders(plan, found)
    points = tuple(holder.point for holder in holders if holder.point)
    pins = tuple(holder.pin for holder in holders if holder.pin)
    task = JudgeTpmSecret(plan.operation, found.vm_uuid, found.secret, points, pins)
    return plan.services.on_host(plan.operation, task)


def drop_secret(plan: Plan, found: TpmFound, judged: SecretJudged) -> SecretJudged:
    """Undefine the secret, if it can go."""
    if not judged.can_go:
        return judged
    task = DropTpmSecret(plan.operation, found.vm_uuid, found.secret, judged.point, judged.pin)
    return plan.services.on_host(plan.operation, task)


def give_back(plan: Plan, found: TpmFound, judged: SecretJudged) -> None:
    """Undo ``drop_secret``."""
    if judged.can_go:
        task = GiveTpmSecret(plan.operation, judged.point, found.secret, judged.pin)
        plan.services.on_host(plan.operation, task)


def note_removed(plan: Plan, found: TpmFound) -> dict[str, str | None]:
    """Let no TPM count as what was meant, so that nothing tells a missing one; return what counted before."""
    return place_states(plan, found.vm_uuid, {"tpm": NOTHING})


def removal_of(
    plan: Plan,
    found: TpmFound,
    remains: TpmRemainsFound,
    deleted: TpmStateDeleted,
    secret: SecretJudged,
    renewal: Renewal | None = None,
) -> Removal:
    """Return what is recorded of a TPM that was removed, or whose state gave way to another one."""
    kept = _kept(plan, found, remains.found)
    return Removal(plan.operation, found, remains.found, kept, deleted, secret, renewal)


def note_removal(plan: Plan, removal: Removal) -> tuple[str, ...]:
    """Record the removal and what could not be deleted; return the ids of the tombstones. Versions get their term."""
    services, vm_uuid = plan.services, removal.found.vm_uuid
    if removal.is_nothing:
        return ()
    catalog = services.catalog
    at = removal.deleted.at or now()
    until = None
    if removal.renewal is None:
        until = until_days(services.removed_tpm_days, at)
        # Pins that get the term are others then: the proof names those that hold the secret from now on.
        settle_pins_of_vm(services, vm_uuid, tpm_until=term_of(catalog, vm_uuid, at, until))
    tombstones = tombstones_of(services.host, removal, at)
    catalog.record_deletion(proof_of(catalog, services.host, removal, tombstones, at, until), tombstones)
    failed = [each.path for each in removal.deleted.failed]
    with suppress(VmkeepError):  # they stay open, and the next try finds nothing
        settle_deleted(catalog, services.host, vm_uuid, removal.found.directory, failed, but=plan.operation)
    return tuple(each.id for each in tombstones)


def withdraw_removal(plan: Plan, found: TpmFound) -> None:
    """Undo ``note_removal``: the versions have no term any more."""
    plan.services.catalog.withdraw_deletion(plan.operation, plan.operation)
    settle_pins_of_vm(plan.services, found.vm_uuid)


def _holders(plan: Plan, found: TpmFound) -> tuple[SecretHolder, ...]:
    holders = secret_holders(plan.services.catalog, found.vm_uuid)
    return tuple(holder for holder in holders if holder.uuid == found.secret)


def _kept(plan: Plan, found: TpmFound, orphan: Orphan | None) -> tuple[KeptContent, ...]:
    if orphan is None:
        return ()
    hashes = frozenset(file.sha256 for file in orphan.files if file.sha256 is not None)
    return tuple(each for each in contents_of(plan.services.catalog, found.vm_uuid, hashes) if each.kind == "tpm")


def _main_hash(found: TpmFound, orphan: Orphan) -> str | None:
    return next((file.sha256 for file in orphan.files if file.name == found.file), None)


def version_in(plan: Plan, found: TpmFound, remains: TpmRemainsFound) -> KeptContent | None:
    """Return the version that the TPM's state was: of several with one content the one that counts."""
    if remains.found is None:
        return None
    main = _main_hash(found, remains.found)
    same = [each for each in _kept(plan, found, remains.found) if each.sha256 == main]
    return that_counts(same)


def _way_back(plan: Plan, found: TpmFound, kept: KeptContent) -> str:
    named = kept.sha256[:16] if kept.conflict else str(kept.generation)
    options = f"--from {named}"
    if found.model_name != "crb":
        options += f" --model {found.model_name}"
    if found.secret and not _holders(plan, found):
        options += f" --secret {found.secret}"
    return command_line("vmkeep tpm add", found.vm_name, options=options)


def ways_back(plan: Plan, found: TpmFound, kept: KeptContent) -> tuple[str, ...]:
    """Return the commands that give the VM this TPM in place of the one that it has by now."""
    return command_line("vmkeep tpm remove", found.vm_name), _way_back(plan, found, kept)
