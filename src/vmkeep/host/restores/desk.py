"""The tasks of restores, carried out."""

from __future__ import annotations

from typing import Any

from vmkeep.host.operation import Operation
from vmkeep.host.restores import as_vm, items, to_files
from vmkeep.host.restores.in_place import InPlace, check_in_place
from vmkeep.host.restores.states_back import StatesBack, puts_states_back
from vmkeep.host.restores.unfinished import may_take_back
from vmkeep.host.tasks.restores import (
    BindRestore,
    CheckInPlace,
    DefineVm,
    DeliverItems,
    DiscardReplaced,
    MayTakeBack,
    ParkForStates,
    ParkVm,
    PrepareFiles,
    PrepareVm,
    PublishItems,
    PublishRestore,
    PutBack,
    ReleaseVm,
    StageRestore,
    UndefineVm,
    WithdrawItems,
    WriteRestore,
)
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    connected, repository, settings = operation.connected, operation.repository, operation.settings
    match task:
        case PrepareFiles():
            return to_files.prepare_files(connected, repository(), task)
        case PrepareVm():
            return as_vm.prepare_vm(connected(), repository(), settings, task)
        case DeliverItems():
            return items.deliver_items(
                connected, repository(), settings, task, stop=operation.stop, watch=operation.watch
            )
        case PublishItems():
            return items.publish_items(task)
        case WithdrawItems():
            return items.withdraw_items(task)
        case DiscardReplaced():
            return items.discard_replaced(task)
        case DefineVm():
            return as_vm.define_vm(connected(), repository(), task)
        case UndefineVm():
            return as_vm.undefine_vm(connected(), repository(), task)
    return _carry_out_over_vm(task, operation)


def _carry_out_over_vm(task: Task[Any], operation: Operation) -> Any:
    match task:
        case CheckInPlace():
            return check_in_place(operation.connected(), operation.repository(), operation.settings, task)
        case MayTakeBack():
            return may_take_back(operation)
    if isinstance(task, ParkForStates) or puts_states_back(operation):
        return _carry_out_states_back(task, operation)
    return _carry_out_in_place(task, operation)


def _carry_out_in_place(task: Task[Any], operation: Operation) -> Any:
    match task:
        case ParkVm():
            return InPlace.of(operation).park(task)
        case StageRestore():
            return InPlace.of(operation).stage()
        case WriteRestore():
            return InPlace.of(operation).write()
        case PublishRestore():
            return InPlace.of(operation).publish()
        case BindRestore():
            return InPlace.of(operation).bind()
        case ReleaseVm():
            return InPlace.of(operation).release(task.vm_uuid)
        case PutBack():
            return InPlace.of(operation).put_back(task.vm_uuid)
    raise AssertionError(f"not a task of restores: {task}")


def _carry_out_states_back(task: Task[Any], operation: Operation) -> Any:
    match task:
        case ParkForStates():
            return StatesBack.of(operation).park(task)
        case StageRestore():
            return StatesBack.of(operation).stage()
        case PublishRestore():
            return StatesBack.of(operation).publish()
        case ReleaseVm():
            return StatesBack.of(operation).release(task.vm_uuid)
        case PutBack():
            return StatesBack.of(operation).put_back(task.vm_uuid)
    raise AssertionError(f"not a task of state that goes back: {task}")
