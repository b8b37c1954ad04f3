"""Give the state of a VM's TPM a new key: the same TPM, and the old key opens what was kept before only."""

from __future__ import annotations

from vmkeep.custody.states import ChosenVersion
from vmkeep.errors import InvalidRequest
from vmkeep.flows.gate import place_states, renew_gate
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.removals import store_proofs
from vmkeep.flows.remove_tpm import (
    drop_secret,
    give_back,
    install_again,
    judge_secret,
    keep_state,
    let_go,
    look_at_remains,
    note_removal,
    put_back,
    removal_of,
    take_out,
    version_in,
    ways_back,
    withdraw_removal,
)
from vmkeep.flows.requests import RekeyTpm, TpmRenewed
from vmkeep.flows.settle_pins import settle_pins
from vmkeep.flows.tpm_renewal import (
    begin,
    clear_place,
    drop_key,
    give_key,
    hold_with_tpm,
    make_key,
    put_in,
    required_key,
    withdraw,
)
from vmkeep.flows.vm_states import new_state
from vmkeep.host.tasks.tpms import (
    DeleteTpmState,
    InstallTpmState,
    LetTpmGo,
    RekeyTpmState,
    TpmFound,
    TpmRemainsFound,
    TpmStateRekeyed,
)
from vmkeep.repository import Renewal


@flow("tpm.rekey", after_crash=AfterCrash.FINISH)
def rekey_tpm(plan: Plan, request: RekeyTpm) -> TpmRenewed:
    """Encrypt a TPM's state anew; its version with the new key is proved before the old one is touched.

    See docs/internals/flows.md.
    """
    found = plan.step(examine, plan, request, undo=lambda found: let_go(plan, found))
    # As in `tpm remove`: each undo stands at the step before the one that it undoes.
    plan.step(keep_state, plan, found, undo=lambda _: put_back(plan, found))
    key = plan.step(new_key, plan, request, found, undo=lambda key: drop_key(plan, found.vm_uuid, key))
    plan.step(give_key, plan, found, key)
    plan.step(take_out, plan, found)
    remains = plan.step(look_at_remains, plan, found, undo=lambda remains: install_again(plan, found, remains))
    rekeyed = plan.step(reencrypt, plan, found, remains, key, undo=lambda rekeyed: drop_unused(plan, found, rekeyed))
    deleted = plan.step(clear_place, plan, found, remains)
    plan.step(begin, undo=lambda _: take_back(plan, found, remains, rekeyed, key))
    plan.step(install_state, plan, found, rekeyed)
    plan.step(note_rekeyed, plan, found, rekeyed)
    plan.step(put_in, plan, found, key)
    judged = plan.step(judge_secret, plan, found, undo=lambda judged: give_back(plan, found, judged))
    dropped = plan.step(drop_secret, plan, found, judged)
    removal = removal_of(plan, found, remains, deleted, dropped, Renewal.REKEY)
    left = plan.step(note_removal, plan, removal, undo=lambda _: withdraw_removal(plan, found))
    plan.step(let_go, plan, found, heeds_stop=False)
    plan.step(store_proofs, plan, heeds_stop=False)
    kept = version_in(plan, found, remains)
    return TpmRenewed(
        name=found.vm_name,
        uuid=found.vm_uuid,
        kept=None if kept is None else kept.generation,
        sha256="" if kept is None else kept.sha256,
        version=rekeyed.version.generation,
        secret=key,
        deleted=deleted.removed,
        old_secret=found.secret,
        secret_point=dropped.point,
        secret_pin=dropped.pin,
        secret_stays=dropped.why,
        way_back=() if kept is None else ways_back(plan, found, kept),
        tombstones=left,
        removal=plan.operation,
    )


def examine(plan: Plan, request: RekeyTpm) -> TpmFound:
    """Hold the VM, and note its device. Raises InvalidRequest when there is nothing to be done."""
    found = hold_with_tpm(plan, request.vm)
    wrong = ""
    if not found.state:
        wrong, hint = "has no state yet: it was never started", "`vmkeep tpm reset` gives it a new key."
    elif request.plain and not found.secret:
        wrong, hint = "is not encrypted", "Nothing is to be done."
    if wrong:
        plan.services.on_host(plan.operation, LetTpmGo(plan.operation, found.directory))
        raise InvalidRequest(f"the TPM of VM {found.vm_name!r} {wrong}", vm=found.vm_name, hint=hint)
    return found


def new_key(plan: Plan, request: RekeyTpm, found: TpmFound) -> str:
    """Make the new key, unless the state is to be in plain."""
    return make_key(plan, found, wanted=not request.plain)


def reencrypt(plan: Plan, found: TpmFound, remains: TpmRemainsFound, key: str) -> TpmStateRekeyed:
    """Put the state with the new key into the repository; nothing knows it there yet."""
    old = version_in(plan, found, remains)
    newest = plan.services.catalog.newest_state(found.vm_uuid, "tpm")
    assert old is not None, "what lies there is a version: it was kept just now"
    task = RekeyTpmState(
        plan.operation,
        found.vm_uuid,
        ChosenVersion(old.kind, old.version_id, old.sha256),
        1 if newest is None else newest.generation + 1,
        found.secret,
        required_key(plan, found.vm_uuid, found.vm_name, key) if key else None,
    )
    return plan.services.on_host(plan.operation, task)


def drop_unused(plan: Plan, found: TpmFound, rekeyed: TpmStateRekeyed) -> None:
    """Undo ``reencrypt`` of a version that never counted: its key goes. The object stays until a prune."""
    services, sealed = plan.services, rekeyed.sealed
    known = any(each.id == rekeyed.version.id for each in services.catalog.states_of_vm(found.vm_uuid))
    if sealed is not None and not known:
        services.with_repository(lambda repository: repository.pins.delete(sealed.pin_id))


def install_state(plan: Plan, found: TpmFound, rekeyed: TpmStateRekeyed) -> None:
    """Put the version with the new key in place, whole or not at all."""
    version = rekeyed.version
    chosen = ChosenVersion(version.kind, version.id, version.sha256)
    task = InstallTpmState(plan.operation, found.vm_uuid, found.directory, found.file, chosen)
    plan.services.on_host(plan.operation, task)


def note_rekeyed(plan: Plan, found: TpmFound, rekeyed: TpmStateRekeyed) -> None:
    """Let the version with the new key count as the newest, and keep it with its key."""
    services, state = plan.services, new_state(found.vm_uuid, rekeyed.version)
    if all(each.id != state.id for each in services.catalog.states_of_vm(found.vm_uuid)):
        services.catalog.accept_states((state,))
    sealed = () if rekeyed.sealed is None else (rekeyed.sealed,)
    rule = services.keep_state_versions()
    services.with_repository(
        lambda repository: settle_pins(services.catalog, repository, found.vm_uuid, rule, sealed=sealed)
    )
    renew_gate(services, found.vm_uuid)


def take_back(
    plan: Plan,
    found: TpmFound,
    remains: TpmRemainsFound,
    rekeyed: TpmStateRekeyed,
    key: str,
) -> None:
    """Undo ``put_in``, ``note_rekeyed`` and ``install_state``: the version stays, and the one before it counts."""
    withdraw(plan, found, key)
    # In a directory that a definition names nothing tells what was put there but its content.
    lying = look_at_remains(plan, found).found
    version = rekeyed.version
    if lying is not None and any(file.sha256 == version.sha256 for file in lying.files):
        chosen = ChosenVersion(version.kind, version.id, version.sha256)
        plan.services.on_host(plan.operation, DeleteTpmState(plan.operation, found.vm_uuid, lying, (chosen,)))
    known = any(each.id == rekeyed.version.id for each in plan.services.catalog.states_of_vm(found.vm_uuid))
    old = version_in(plan, found, remains)
    if known and old is not None:
        place_states(plan, found.vm_uuid, {"tpm": old.sha256})
