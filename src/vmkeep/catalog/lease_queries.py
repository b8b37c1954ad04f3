"""Rows of leases: which host may run a VM, moved by compare-and-set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, insert, select, update

from vmkeep.catalog import models, texts
from vmkeep.errors import CatalogError

if TYPE_CHECKING:
    from vmkeep.custody.leases import Lease

_leases = models.leases


def get(connection: Connection, vm_uuid: str) -> Lease | None:
    """Return the lease of a VM; None for one that never had one."""
    row = connection.execute(select(_leases).where(_leases.c.vm_uuid == vm_uuid)).first()
    if row is None:
        return None
    from vmkeep.custody.leases import Lease, LeaseState  # nobody has one before there are several hosts

    return Lease(**{**row._mapping, "state": LeaseState(row.state)})


def move(connection: Connection, known: Lease | None, to: Lease) -> None:
    """Put a lease in the place of ``known`` unless that is another by now. Raises CatalogError."""
    row: dict[str, Any] = {name: getattr(to, name) for name in to.__slots__} | {"state": to.state.value}
    if to.follows(known):
        if known is None:
            if get(connection, to.vm_uuid) is None:
                connection.execute(insert(_leases).values(row))
                return
        else:
            mine = (
                _leases.c.vm_uuid == known.vm_uuid,
                _leases.c.epoch == known.epoch,
                _leases.c.serial == known.serial,
            )
            if connection.execute(update(_leases).where(*mine).values(row)).rowcount == 1:
                return
    raise CatalogError(
        f"The lease of VM {to.vm_uuid} cannot become {to.state}: it was changed meanwhile",
        vm=to.vm_uuid,
        hint="Run the command again: it looks at the lease as it is now.",
    )


def clock(connection: Connection) -> str:
    """Return the present instant by the clock of whatever keeps the catalogue: a server has one for all hosts."""
    if connection.dialect.name == "sqlite":
        return texts.now()
    return texts.instant(connection.execute(select(func.clock_timestamp())).scalar_one())
