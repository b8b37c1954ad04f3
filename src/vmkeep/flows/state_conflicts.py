"""Versions of state that are conflicts: two installations gave two contents one number, and one of them counts."""

from __future__ import annotations

from collections.abc import Iterator

from vmkeep.catalog import Catalog, CatalogState
from vmkeep.commandline import command_line
from vmkeep.flows.vm_states import the_vm_named
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class Holding:
    """A point or a snapshot that holds a version. ``host`` is where it was made, None for a snapshot of this one."""

    id: str
    host: str | None
    created: str
    trust: str | None


@dataclass(frozen=True, slots=True)
class ConflictSide:
    """A version of one side, what holds it, and the command that puts it into the VM."""

    version: CatalogState
    held_by: tuple[Holding, ...]
    command: str


@dataclass(frozen=True, slots=True)
class StateConflict:
    """A version that is a conflict. ``counts`` is the one of the same number that counts, if one does.

    ``compare`` is the command that shows how the two differ.
    """

    vm: str
    vm_uuid: str
    kind: str
    conflict: ConflictSide
    counts: ConflictSide | None
    compare: str | None


def state_conflicts(catalog: Catalog, vm: str | None = None) -> tuple[StateConflict, ...]:
    """Return the conflicts of a VM, given by name or UUID, or of all; by VM and kind, the newest first.

    Raises VmNotFound, and InvalidRequest for a name of several.
    """
    uuids = [each.uuid for each in catalog.vms()] if vm is None else [the_vm_named(catalog, vm)]
    return tuple(conflict for uuid in uuids for conflict in _of_vm(catalog, uuid))


def _of_vm(catalog: Catalog, uuid: str) -> Iterator[StateConflict]:
    known = catalog.vm(uuid)
    name = known.name if known is not None else uuid
    versions = catalog.states_of_vm(uuid)
    accepted = {(each.kind, each.generation): each for each in versions if not each.conflict}
    for late in sorted((each for each in versions if each.conflict), key=lambda each: (each.kind, -each.generation)):
        first = accepted.get((late.kind, late.generation))
        compare = None
        if first is not None:
            options = f"{first.sha256[:16]} {late.sha256[:16]} --kind {late.kind}"
            compare = command_line("vmkeep state diff", uuid, options=options)
        yield StateConflict(
            name,
            uuid,
            late.kind,
            _side(catalog, late),
            None if first is None else _side(catalog, first),
            compare,
        )


def _side(catalog: Catalog, version: CatalogState) -> ConflictSide:
    held_by = tuple(_holding(catalog, holder) for holder in catalog.holders(version.vm_uuid).get(version.id, ()))
    return ConflictSide(version, held_by, restoring_command(version))


def restoring_command(version: CatalogState) -> str:
    """Return the command that puts a version into its VM, whether it counts or not."""
    options = f"--kind {version.kind} --version {version.sha256[:16]}"
    return command_line("vmkeep state restore", version.vm_uuid, options=options)


def _holding(catalog: Catalog, holder: str) -> Holding:
    point = catalog.point(holder)
    if point is not None:
        return Holding(holder, point.host, point.created, str(point.trust))
    snapshot = catalog.snapshot_by_id(holder)
    return Holding(holder, None, snapshot.created if snapshot is not None else "", None)
