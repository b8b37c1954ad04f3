"""What is kept with snapshots that libvirt no longer has goes from the catalogue: rows and pins. No host is asked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from vmkeep.catalog import Catalog

SNAPSHOT_CHANGE: Final = "snapshot.change"
"""The kind of an operation that changes libvirt's snapshots (``flows.change_moments``)."""


def forget_deleted_snapshots(catalog: Catalog, vm_uuid: str, names: Collection[str]) -> tuple[str, ...]:
    """Forget what is kept with snapshots of a VM that were deleted, by name; return the names that were known.

    To be called when libvirt has deleted them, also with `--metadata`: nothing can go back to them with vmkeep then.
    Doing it again changes nothing. State versions stay known, and in the repository.
    """
    known = catalog.snapshots_of_vm(vm_uuid)
    return tuple(each.name for each in known if each.name in names and catalog.forget_snapshot(each.id))


def forget_vanished_snapshots(catalog: Catalog, vm_uuid: str, listed: Collection[str]) -> tuple[str, ...]:
    """Forget what is kept with snapshots of a VM that are not among those which libvirt lists; return their names."""
    vanished = [snapshot.name for snapshot in catalog.snapshots_of_vm(vm_uuid) if snapshot.name not in listed]
    return forget_deleted_snapshots(catalog, vm_uuid, vanished)
