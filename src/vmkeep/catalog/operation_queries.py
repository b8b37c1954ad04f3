"""Rows of operations: every change is a compare-and-set on owner and state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from vmkeep.catalog import models, texts
from vmkeep.catalog.operations import FINISHED, Operation, OperationState, sources
from vmkeep.errors import CatalogError

operations = models.operations


def add(connection: Connection, operation: Operation) -> None:
    row = {
        "id": operation.id,
        "kind": operation.kind,
        "vm": operation.vm,
        "owner": operation.owner,
        "state": operation.state.value,
        "started": operation.started,
        "updated": operation.updated,
        "finished": operation.finished,
        "stage": operation.stage,
        "done_bytes": operation.done_bytes,
        "total_bytes": operation.total_bytes,
        "cancel": operation.cancel,
        "error": None if operation.error is None else texts.dump(operation.error),
        "request": texts.dump(operation.request),
    }
    connection.execute(insert(operations).values(row))


def get(connection: Connection, operation_id: str) -> Operation:
    row = connection.execute(select(operations).where(operations.c.id == operation_id)).first()
    if row is None:
        raise CatalogError(f"There is no operation {operation_id}")
    return _operation(row)


def move(
    connection: Connection,
    operation_id: str,
    owner: str,
    to: OperationState,
    error: Mapping[str, Any] | None,
    now: str,
) -> Operation:
    """Change the state if it may follow the present one and the operation still is the owner's."""
    values: dict[str, Any] = {"state": to.value, "updated": now}
    if to in FINISHED:
        values["finished"] = now
    if error is not None:
        values["error"] = texts.dump(error)
    allowed = [state.value for state in sources(to)]
    mine = (operations.c.id == operation_id) & (operations.c.owner == owner) & operations.c.state.in_(allowed)
    if connection.execute(update(operations).where(mine).values(values)).rowcount != 1:
        present = get(connection, operation_id)
        raise CatalogError(
            f"Operation {operation_id} cannot become {to}: it is {present.state} and belongs to {present.owner}",
            vm=present.vm,
            hint="Another process carries it on; look at `vmkeep points` for what came of it.",
        )
    return get(connection, operation_id)


def take_over(connection: Connection, operation_id: str, from_owner: str, to_owner: str) -> bool:
    """Make the operation of a dead owner one's own; False when another process did so first."""
    theirs = (operations.c.id == operation_id) & (operations.c.owner == from_owner) & _unfinished()
    changed = update(operations).where(theirs).values(owner=to_owner, updated=texts.now())
    return connection.execute(changed).rowcount == 1


def progress(connection: Connection, operation_id: str, stage: str, done_bytes: int, total_bytes: int) -> bool:
    """Note where the operation stands; return whether it was asked to stop."""
    values = {"stage": stage, "done_bytes": done_bytes, "total_bytes": total_bytes, "updated": texts.now()}
    connection.execute(update(operations).where(operations.c.id == operation_id).values(values))
    return cancelled(connection, operation_id)


def request_cancel(connection: Connection, operation_id: str) -> bool:
    """Ask the operation to stop; False when it has ended already."""
    running = (operations.c.id == operation_id) & _unfinished()
    changed = update(operations).where(running).values(cancel=True, updated=texts.now())
    return connection.execute(changed).rowcount == 1


def cancelled(connection: Connection, operation_id: str) -> bool:
    chosen = select(operations.c.cancel).where(operations.c.id == operation_id)
    return bool(connection.execute(chosen).scalar())


def newest_first(connection: Connection) -> tuple[Operation, ...]:
    chosen = select(operations).order_by(operations.c.started.desc(), operations.c.id)
    return tuple(_operation(row) for row in connection.execute(chosen))


def unfinished(connection: Connection) -> tuple[Operation, ...]:
    chosen = select(operations).where(_unfinished()).order_by(operations.c.started, operations.c.id)
    return tuple(_operation(row) for row in connection.execute(chosen))


def _unfinished() -> Any:
    return operations.c.state.not_in([state.value for state in FINISHED])


def _operation(row: Row[Any]) -> Operation:
    return Operation(
        id=row.id,
        kind=row.kind,
        vm=row.vm,
        owner=row.owner,
        state=OperationState(row.state),
        started=row.started,
        updated=row.updated,
        finished=row.finished,
        stage=row.stage,
        done_bytes=row.done_bytes,
        total_bytes=row.total_bytes,
        cancel=bool(row.cancel),
        error=None if row.error is None else texts.load(row.error),
        request=texts.load(row.request),
    )
