"""Which points this installation believes."""

from __future__ import annotations

from vmkeep.catalog import Catalog, CatalogPoint, OperationState
from vmkeep.errors import CatalogError
from vmkeep.flows.take_point import FLOW_NAME as TAKE_POINT


def is_trusted(catalog: Catalog, point: CatalogPoint) -> bool:
    """Return whether who made a point may say what is defined on this host, and where its files go.

    So may this installation itself: the catalogue has the operation that took the point, which carries its id. A point
    that was adopted has none here, whichever host it names.
    """
    try:
        operation = catalog.operation(point.id)
    except CatalogError:
        return False
    return operation.kind == TAKE_POINT and operation.state is OperationState.DONE
