"""Protect a point from being removed, or end that."""

from __future__ import annotations

from vmkeep.errors import PointNotFound
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.point_marks import protect_point as put_protection
from vmkeep.flows.point_marks import unprotect_point
from vmkeep.flows.point_requests import ChangeProtection, ProtectionChanged


@flow("point.protect", after_crash=AfterCrash.FINISH)
def protect_point(plan: Plan, request: ChangeProtection) -> ProtectionChanged:
    """Put the mark or delete it. See docs/internals/flows.md."""
    known = plan.step(change, plan, request)
    return ProtectionChanged(request.point, request.protected, request.until, known)


def change(plan: Plan, request: ChangeProtection) -> bool:
    """Return whether the point was protected before."""
    catalog = plan.services.catalog
    known = request.point in catalog.protections()
    if not request.protected:
        return unprotect_point(plan.services, request.point) or known
    point = catalog.point(request.point)
    if point is None:
        raise PointNotFound(f"point {request.point} is not there any more")
    put_protection(plan.services, point, request.until, request.why)
    return known
