"""Bring back a point that is hidden: its removal goes, and every list has it again."""

from __future__ import annotations

from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.point_marks import bring_back
from vmkeep.flows.point_requests import PointUndeleted, UndeletePoint


@flow("point.undelete", after_crash=AfterCrash.FINISH)
def undelete_point(plan: Plan, request: UndeletePoint) -> PointUndeleted:
    """Delete the removal, and take the point over again. See docs/internals/flows.md."""
    return PointUndeleted(plan.step(back, plan, request))


def back(plan: Plan, request: UndeletePoint) -> dict[str, object]:
    """Bring it back."""
    return bring_back(plan.services, request.point).summary()
