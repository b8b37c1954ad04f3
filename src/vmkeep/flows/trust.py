"""Which points this installation believes."""

from __future__ import annotations

from vmkeep.catalog import Catalog, CatalogPoint, OperationState
from vmkeep.errors import CatalogError
from vmkeep.flows.declared import TAKE_POINT


def is_trusted(catalog: Catalog, point: CatalogPoint) -> bool:
    """Return whether who made a point may say what is defined on this host, and where its files go.

    So may this installation itself, and those whose keys somebody here has trusted: their points are signed. Of points
    that this installation took before points were signed the catalogue has the operation, which carries the point's
    id. A point that was adopted has none here, whichever host it names.
    """
    if catalog.is_signed_by_trusted_host(point.id):
        return True
    try:
        operation = catalog.operation(point.id)
    except CatalogError:
        return False
    return operation.kind == TAKE_POINT and operation.state is OperationState.DONE
