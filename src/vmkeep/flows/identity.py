"""Whether the record of a point is that of the point which is known here under its id.

What a person names, a list shows and a question asks for is the catalogue's. What is restored, built on or verified is
the repository's, and whoever has its key can put another record in the place of one: of another VM, for instance. So
the catalogue keeps the digest of each point that was written here or adopted, and every record that is read goes by it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vmkeep.catalog import Catalog, CatalogPoint
from vmkeep.errors import PointChanged, VmkeepError

if TYPE_CHECKING:
    from vmkeep.repository import PointRecord


def recognise(catalog: Catalog, record: PointRecord) -> None:
    """Raise PointChanged unless the record is that of the point known under its id, or no point is.

    A point that an older release recorded has no digest: it gets that of the first record that says all that the
    catalogue knows of it. Raises what reading the catalogue raises.
    """
    digest = catalog.digest(record.id)
    if digest is None or digest == record.digest:
        return
    known = catalog.point(record.id)
    if known is None:
        return  # forgotten in between
    said = record.as_json()
    if "definition" not in known.document:
        del said["definition"]  # it may hold passwords, and stays in the repository
    if not digest and said == known.document:
        with suppress(VmkeepError):  # a home that cannot be written, or is busy: the next who reads it notes it
            catalog.note_digest(record.id, record.digest)
        return
    raise PointChanged(
        f"point {record.id} in the repository is not the one that is known here: {_difference(known, record, said)}",
        vm=known.vm_name,
    )


def _difference(known: CatalogPoint, record: PointRecord, said: dict[str, Any]) -> str:
    """Say what differs, the VM first: that is whose disks a restore would write."""
    if record.vm_uuid != known.vm_uuid:
        return (
            f"it says that it is of VM {record.vm_name!r} ({record.vm_uuid}), and the point is of VM "
            f"{known.vm_name!r} ({known.vm_uuid})"
        )
    differing = sorted(name for name in {*said, *known.document} if said.get(name) != known.document.get(name))
    if differing == ["signature"]:
        return "its signature differs, so another host made it, or its definition is another one"
    return f"its {', '.join(differing) or 'definition'} differ{'' if len(differing) > 1 else 's'}"
