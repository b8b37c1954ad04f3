"""A VM that a flow keeps from starting: what its undos take back, and from when on they do not."""

from __future__ import annotations

from collections.abc import Mapping

from vmkeep.flows.gate import take_states_back
from vmkeep.flows.plan import Plan
from vmkeep.host.tasks.restores import MayTakeBack


def unplace_states(plan: Plan, vm_uuid: str, before: Mapping[str, str | None]) -> None:
    """Undo ``place_states`` of a flow that keeps its VM from starting: not once that may start with what was put there.

    A flow fails there when its last step does: the state stays, and must not count as what somebody put back.
    """
    if may_take_back(plan):
        take_states_back(plan, vm_uuid, before)


def may_take_back(plan: Plan) -> bool:
    """Tell whether what a flow did to its VM, which it keeps from starting, is taken back by its undos."""
    return plan.services.on_host(plan.operation, MayTakeBack(plan.operation))
