"""Give a VM a new, blank TPM in place of its own, with a new key. What was is kept as a version, with its own key."""

from __future__ import annotations

from vmkeep.custody.standing import NOTHING
from vmkeep.flows.gate import place_states, take_states_back
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
from vmkeep.flows.requests import ResetTpm, TpmRenewed
from vmkeep.flows.tpm_renewal import begin, clear_place, drop_key, give_key, hold_with_tpm, make_key, put_in, withdraw
from vmkeep.host.tasks.tpms import TpmFound
from vmkeep.repository import Renewal


@flow("tpm.reset", after_crash=AfterCrash.FINISH)
def reset_tpm(plan: Plan, request: ResetTpm) -> TpmRenewed:
    """Make a VM's TPM a new one; libvirt makes its state at the next start. See docs/internals/flows.md."""
    found = plan.step(examine, plan, request, undo=lambda found: let_go(plan, found))
    # As in `tpm remove`: each undo stands at the step before the one that it undoes.
    plan.step(keep_state, plan, found, undo=lambda _: put_back(plan, found))
    key = plan.step(new_key, plan, found, undo=lambda key: drop_key(plan, found.vm_uuid, key))
    plan.step(give_key, plan, found, key)
    plan.step(take_out, plan, found)
    remains = plan.step(look_at_remains, plan, found, undo=lambda remains: install_again(plan, found, remains))
    deleted = plan.step(clear_place, plan, found, remains)
    plan.step(begin, undo=lambda _: withdraw(plan, found, key))
    plan.step(note_reset, plan, found, undo=lambda before: take_states_back(plan, found.vm_uuid, before))
    plan.step(put_in, plan, found, key)
    judged = plan.step(judge_secret, plan, found, undo=lambda judged: give_back(plan, found, judged))
    dropped = plan.step(drop_secret, plan, found, judged)
    removal = removal_of(plan, found, remains, deleted, dropped, Renewal.RESET)
    left = plan.step(note_removal, plan, removal, undo=lambda _: withdraw_removal(plan, found))
    plan.step(let_go, plan, found, heeds_stop=False)
    plan.step(store_proofs, plan, heeds_stop=False)
    kept = version_in(plan, found, remains)
    return TpmRenewed(
        name=found.vm_name,
        uuid=found.vm_uuid,
        kept=None if kept is None else kept.generation,
        sha256="" if kept is None else kept.sha256,
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


def examine(plan: Plan, request: ResetTpm) -> TpmFound:
    """Hold the VM, and note its device."""
    return hold_with_tpm(plan, request.vm)


def new_key(plan: Plan, found: TpmFound) -> str:
    """Make a new key, if the state was encrypted."""
    return make_key(plan, found, wanted=bool(found.secret))


def note_reset(plan: Plan, found: TpmFound) -> dict[str, str | None]:
    """Let a blank TPM count as what was meant; return what counted before."""
    return place_states(plan, found.vm_uuid, {"tpm": NOTHING})
