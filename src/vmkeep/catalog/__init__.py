"""What an installation knows: VMs, points, state versions and operations, in SQL.

The catalogue can be rebuilt from the repository (`vmkeep init --adopt`); a point exists once its repository
object does, and is *known* once the catalogue's transaction is through. This package imports neither the
repository nor a host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.deferral import shown

# SQLAlchemy is a third of a short command: who asks for a value, or lists points, does not wait for it.
if TYPE_CHECKING:
    from vmkeep.catalog.catalog import Catalog
    from vmkeep.catalog.memory import MemoryCatalog
    from vmkeep.catalog.operations import TRANSITIONS, Operation, OperationState
    from vmkeep.catalog.records import (
        SAFETY_LABEL,
        Adopted,
        CatalogDeletion,
        CatalogPin,
        CatalogPoint,
        CatalogSnapshot,
        CatalogState,
        CatalogVm,
        FoundPin,
        HeldSecret,
        KnownHostKey,
        KnownKeyring,
        KnownRepository,
        PassedPoint,
        PointOutline,
        PointProtection,
        PointRemoval,
        Policy,
        StateAlert,
        StateFile,
        Trust,
    )
    from vmkeep.catalog.sql import SqlCatalog
else:
    __getattr__ = shown(
        __name__,
        {
            "catalog": "Catalog",
            "memory": "MemoryCatalog",
            "operations": "TRANSITIONS Operation OperationState",
            "records": "SAFETY_LABEL Adopted CatalogDeletion CatalogPin CatalogPoint CatalogSnapshot CatalogState "
            "CatalogVm FoundPin HeldSecret KnownHostKey KnownKeyring KnownRepository PassedPoint PointOutline "
            "PointProtection PointRemoval Policy StateAlert StateFile Trust",
            "sql": "SqlCatalog",
        },
    )

__all__ = [
    "SAFETY_LABEL",
    "TRANSITIONS",
    "Adopted",
    "Catalog",
    "CatalogDeletion",
    "CatalogPin",
    "CatalogPoint",
    "CatalogSnapshot",
    "CatalogState",
    "CatalogVm",
    "FoundPin",
    "HeldSecret",
    "KnownHostKey",
    "KnownKeyring",
    "KnownRepository",
    "MemoryCatalog",
    "Operation",
    "OperationState",
    "PassedPoint",
    "PointOutline",
    "PointProtection",
    "PointRemoval",
    "Policy",
    "SqlCatalog",
    "StateAlert",
    "StateFile",
    "Trust",
]
