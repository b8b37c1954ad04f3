"""Let points go that no policy keeps: each is hidden, and those that were hidden for long enough are removed.

What is to go was decided before (``plan_retention``) and, where it was much, somebody has said yes. Each point is
looked at once more here; one that is protected or needed by then stays, and that is told.
"""

from __future__ import annotations

from vmkeep.errors import Interrupted, VmkeepError
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.point_marks import carry_out_removal, hide_point
from vmkeep.flows.point_requests import PointsOfVm, PointsRetained, RetainPoints

WHY = "retention"


@flow("points.retain", after_crash=AfterCrash.FINISH)
def retain_points(plan: Plan, request: RetainPoints) -> PointsRetained:
    """Hide, VM by VM, then remove. See docs/internals/flows.md."""
    hidden: list[str] = []
    told: list[str] = []
    due = list(request.due)
    for of_vm in request.going:
        stays = plan.step(hide, plan, of_vm)
        mine = [point_id for point_id in of_vm.points if point_id not in stays]
        hidden += mine
        due += [] if of_vm.grace_seconds else mine
        told += [f"Point {point_id} of {of_vm.vm} stays: {why}." for point_id, why in stays.items()]
    stays = plan.step(carry_out, plan, tuple(due))
    told += [f"Point {point_id} is hidden and stays in the repository: {why}." for point_id, why in stays.items()]
    return PointsRetained(tuple(hidden), tuple(each for each in due if each not in stays), tuple(told))


def hide(plan: Plan, of_vm: PointsOfVm) -> dict[str, str]:
    """Hide points of one VM; return why others stay, by their ids."""
    stays = {}
    for point_id in of_vm.points:
        plan.services.stop()
        if plan.services.catalog.point(point_id) is None:
            continue  # by an attempt that was killed
        try:
            hide_point(plan.services, point_id, of_vm.grace_seconds, WHY)
        except Interrupted:
            raise
        except VmkeepError as error:
            stays[point_id] = error.message
    return stays


def carry_out(plan: Plan, due: tuple[str, ...]) -> dict[str, str]:
    """Remove hidden points; return why others stay, by their ids."""
    stays = {}
    for point_id in due:
        plan.services.stop()
        if (why := carry_out_removal(plan.services, point_id)) is not None:
            stays[point_id] = why
    return stays
