"""Delete a point: hide it by a mark, and remove it when its grace is over; at once when it has none."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from vmkeep.catalog import Catalog, CatalogPoint
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.point_marks import carry_out_removal, hide_point
from vmkeep.flows.point_requests import DeletePoint, PointDeleted
from vmkeep.flows.secret_holders import VTPM, secret_holders

if TYPE_CHECKING:
    from vmkeep.planning.retention import KeepRule


@flow("point.delete", after_crash=AfterCrash.FINISH)
def delete_point(plan: Plan, request: DeletePoint) -> PointDeleted:
    """Hide the point; without a grace it goes now. See docs/internals/flows.md."""
    stored = plan.step(hide, plan, request)
    if stored is None:
        return PointDeleted(request.point, None)
    if not request.grace_seconds:
        stays = plan.step(carry_out, plan, request)
        if stays is None:
            return PointDeleted(request.point, None)
        told = f"Point {request.point} is hidden and stays in the repository for now: {stays}."
        return PointDeleted(request.point, stored, (told,))
    until = datetime.fromisoformat(stored) + timedelta(seconds=request.grace_seconds)
    return PointDeleted(request.point, until.isoformat(timespec="microseconds"))


def hide(plan: Plan, request: DeletePoint) -> str | None:
    """Put the mark that hides it."""
    return hide_point(plan.services, request.point, request.grace_seconds, request.why)


def carry_out(plan: Plan, request: DeletePoint) -> str | None:
    """Remove it, or return why it stays."""
    return carry_out_removal(plan.services, request.point)


def told_of_last_secrets(catalog: Catalog, point: CatalogPoint, rule: KeepRule) -> str:
    """Return what is lost with a point besides itself: secrets that nothing else of its VM holds; empty for nothing.

    A version of its TPM state that outlives it takes the secret along (``settle_pins``).
    """
    from vmkeep.flows.settle_pins import needed_versions

    staying = {holder.uuid for holder in secret_holders(catalog, point.vm_uuid) if holder.id != point.id}
    held = [str(state["version_id"]) for state in point.document.get("states", ()) if state["kind"] == "tpm"]
    needed = needed_versions(catalog, point.vm_uuid, rule, {point.id})
    outlives = not held or not (needed.wanted | needed.held).isdisjoint(held)
    last = sorted(_secrets_of(point) - staying)
    if not last or (point.is_vouched_for and outlives):
        return ""
    return (
        f"Nothing else of VM {point.vm_name!r} holds the secret {' and '.join(last)}: where libvirt does not have it "
        "either, TPM states that it encrypts never open again."
    )


def _secrets_of(point: CatalogPoint) -> set[str]:
    return {str(secret["uuid"]) for secret in point.document.get("secrets", ()) if secret.get("usage") == VTPM}
