"""Delete a point. No flow: either of its steps can be repeated, and the operation stands in the catalogue."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vmkeep.catalog import Catalog, CatalogPoint
from vmkeep.errors import PointNotFound
from vmkeep.flows.secret_holders import VTPM, secret_holders
from vmkeep.flows.services import Services

if TYPE_CHECKING:
    from vmkeep.planning.retention import KeepRule

DELETE_POINT: Final = "point.delete"
"""The kind of the operation."""


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


def remove_deleted(services: Services, point_id: str) -> None:
    """Remove a point from the repository and the catalogue. Nothing on the host needs it (``RequireUnneeded``)."""
    point = services.catalog.point(point_id)
    if point is not None and point.is_vouched_for:
        _keep_what_it_holds(services, point)
    # The object first: a point that is only in the catalogue is told by verify, one that is only in the repository
    # would come back at the next adoption.
    with suppress(PointNotFound):  # deleted by an attempt that did not live to tell the catalogue
        services.with_repository(lambda repository: repository.delete_point(point_id))
    services.catalog.forget_point(point_id)


def _keep_what_it_holds(services: Services, point: CatalogPoint) -> None:
    """Pin the versions of state files that are to be kept although this point, which holds them, goes."""
    from vmkeep.flows.settle_pins import settle_pins

    rule = services.keep_state_versions()
    services.with_repository(
        lambda repository: settle_pins(services.catalog, repository, point.vm_uuid, rule, without=point.id)
    )
