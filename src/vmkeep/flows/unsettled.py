"""Operations that failed and could not be undone: what they are in the way of until a person has put them right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vmkeep.catalog import Catalog, Operation, OperationState
from vmkeep.commandline import command_line
from vmkeep.errors import NeedsOperator

HARMLESS: Final = frozenset({"point.take", "snapshot.take", "restore.files"})
"""Flows that take nothing away from what a VM has; any other one may change or replace it."""


def refuse_beside_unsettled(catalog: Catalog, vm: str | None, vm_uuid: str = "") -> None:
    """Raise NeedsOperator when an operation of the VM, named by name or UUID, waits for a person."""
    for operation in unsettled_operations(catalog):
        if vm is None or operation.vm is None:
            continue
        theirs = names_of_vm(catalog, operation.vm) | {str(operation.request.get("vm_uuid") or operation.vm)}
        if theirs & (names_of_vm(catalog, vm) | ({vm_uuid} - {""})):
            shown = command_line("vmkeep ops show", operation.id)
            resumed = command_line("vmkeep ops resume", operation.id)
            raise NeedsOperator(
                f"an earlier operation of VM {vm!r} ({operation.kind} {operation.id}) could not be undone, so "
                "the VM is neither what it was nor what was wanted",
                vm=vm,
                hint=f"`{shown}` says what stands in the way; `{resumed}` goes on undoing. Nothing else was begun.",
            )


def unsettled_operations(catalog: Catalog) -> Iterator[Operation]:
    """Yield the operations that wait for a person, oldest first."""
    return (each for each in catalog.unfinished_operations() if each.state is OperationState.NEEDS_OPERATOR)


def names_of_vm(catalog: Catalog, vm: str) -> set[str]:
    """Return all names and UUIDs that mean the VM which a name or UUID means."""
    uuids = catalog.vms_named(vm)
    return {vm, *uuids, *(known.name for uuid in uuids if (known := catalog.vm(uuid)) is not None)}
