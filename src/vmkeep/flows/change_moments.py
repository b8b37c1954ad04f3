"""A change of libvirt's checkpoints or snapshots, and what the catalogue keeps of the snapshots that it is of.

No flow of DBOS: both halves can be repeated, and what a kill between them leaves is found by looking at what libvirt
lists. So the operation stands in the catalogue before libvirt is asked, and the next command that finds its process
dead lets the two agree (``agree``).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from vmkeep.catalog import Catalog, OperationState
from vmkeep.config import Settings
from vmkeep.errors import Interrupted, VmkeepError
from vmkeep.flows.forget_snapshot import SNAPSHOT_CHANGE, forget_deleted_snapshots
from vmkeep.flows.patience import carry_out
from vmkeep.flows.services import end_operation
from vmkeep.flows.unsettled import refuse_beside_unsettled
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.moments import (
    DeleteMoments,
    MomentChange,
    MomentsChanged,
    ReadMoments,
    RedefineMoment,
    to_be_deleted,
)
from vmkeep.host.tasks.survey import Progress
from vmkeep.locks import FileLock
from vmkeep.moments import MomentError, MomentKind, parse_moment


def change_moments(
    host: Host,
    settings: Settings,
    catalog: Catalog | None,
    order: MomentChange,
    *,
    stop: Callable[[], None],
    watch: Callable[[Progress], None],
) -> MomentsChanged:
    """Carry out an order, and let the catalogue follow; ``catalog`` is None where none has to.

    Raises what the order raises, and NeedsOperator for the deletion of snapshots of a VM that waits for a person. Where
    the change was made only in part, the catalogue follows that part.
    """

    def change() -> MomentsChanged:
        limit_seconds = settings.stalled_after_seconds
        return carry_out(host, uuid.uuid4().hex, order, stop=stop, watch=watch, limit_seconds=limit_seconds)

    meant = None if catalog is None else _meant(host, order)
    if catalog is None or meant is None:
        return change()
    if isinstance(order, DeleteMoments):
        refuse_beside_unsettled(catalog, order.vm, meant["vm_uuid"])
    with _operation(settings, catalog, order.vm, meant):
        try:
            done = change()
        except BaseException:
            with suppress(VmkeepError):  # why the change failed is what is to be told
                agree(host, catalog, meant)
            raise
        agree(host, catalog, meant)
        return done


def agree(host: Host, catalog: Catalog, meant: Mapping[str, Any]) -> tuple[str, ...]:
    """Let the catalogue agree with libvirt on snapshots that were to be changed; return a sentence for each that it did
    not. Doing it again changes nothing.

    ``meant`` is the operation's request: the VM's UUID, the ``names`` that go, and to which new name (``renamed``).
    """
    vm_uuid, names, new_name = meant["vm_uuid"], meant["names"], meant["renamed"]
    found = host.ask(ReadMoments(kind=MomentKind.SNAPSHOT, vm=vm_uuid))
    listed = {str(moment.name) for moment in found.moments}
    gone = [name for name in names if name not in listed]
    if new_name is not None and new_name in listed:
        renamed = [name for name in gone if catalog.rename_snapshot(vm_uuid, name, new_name)]
        return tuple(f"snapshot {name} of VM {found.vm} was renamed to {new_name}" for name in renamed)
    forgotten = forget_deleted_snapshots(catalog, vm_uuid, gone)
    return tuple(
        f"snapshot {name} of VM {found.vm} was deleted; what is kept with it is forgotten" for name in forgotten
    )


def _meant(host: Host, order: MomentChange) -> dict[str, Any] | None:
    """Return what an order will do to snapshots that the catalogue may know; None when that is nothing."""
    renamed = order.renamed if isinstance(order, RedefineMoment) and not order.clone else None
    if renamed is None and not isinstance(order, DeleteMoments):
        return None
    with suppress(VmkeepError, MomentError):  # the order itself says what is wrong with it
        found = host.ask(ReadMoments(kind=order.kind, vm=order.vm))
        if isinstance(order, RedefineMoment):
            new_name = parse_moment(order.kind, order.xml).name
            return {"vm_uuid": found.uuid, "names": [renamed], "renamed": new_name}
        names = [str(moment.name) for moment in found.moments]  # where their tree is torn, any of them
        if isinstance(order, DeleteMoments):
            with suppress(MomentError):
                names = list(to_be_deleted(found.tree(), order.name, order.mode))
        return {"vm_uuid": found.uuid, "names": names, "renamed": None}
    return None


@contextmanager
def _operation(settings: Settings, catalog: Catalog, vm: str, meant: Mapping[str, Any]) -> Iterator[None]:
    """Note the operation for as long as the block takes, in the name of this process."""
    operation = owner = uuid.uuid4().hex
    noted, lock = False, None
    try:
        with suppress(VmkeepError):  # a home that cannot be written keeps nobody from deleting a snapshot
            lock = FileLock.try_acquire(settings.owners_dir / f"{owner}.lock", note=f"process {os.getpid()}")
            catalog.begin_operation(operation, SNAPSHOT_CHANGE, vm, owner, meant)
            noted = True
        yield
    except BaseException as error:
        if noted:
            told = error if isinstance(error, VmkeepError) else Interrupted("the change did not end")
            end_operation(catalog, owner, operation, OperationState.FAILED, told)
        raise
    else:
        if noted:
            end_operation(catalog, owner, operation, OperationState.DONE, None)
    finally:
        if lock is not None:
            lock.release()
