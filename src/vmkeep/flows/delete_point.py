"""Delete a point. No flow: either of its steps can be repeated, and the operation stands in the catalogue."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from vmkeep.catalog import Catalog, CatalogPoint
from vmkeep.errors import PointNotFound
from vmkeep.flows.services import Services

DELETE_POINT: Final = "point.delete"
"""The kind of the operation."""


def told_of_last_secrets(catalog: Catalog, point: CatalogPoint) -> str:
    """Return what is lost with a point besides itself: secrets that no other point of its VM holds; empty for nothing.

    After `vmkeep tpm remove`, or when its host is lost, a point is all that has the key of an encrypted TPM state.
    """
    others = (each for each in catalog.points_of_vm(point.vm_uuid) if each.id != point.id and each.is_vouched_for)
    elsewhere = {secret for each in others for secret in _secrets_of(each)}
    last = sorted(_secrets_of(point) - elsewhere)
    if not last:
        return ""
    return (
        f"No other point of VM {point.vm_name!r} holds the secret {' and '.join(last)}: where libvirt does not have it "
        "either, TPM states that it encrypts never open again."
    )


def _secrets_of(point: CatalogPoint) -> set[str]:
    return {str(secret["uuid"]) for secret in point.document.get("secrets", ())}


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
