"""What is asked of the TPMs of VMs, answered."""

from __future__ import annotations

from typing import Any

from vmkeep.host.operation import Operation
from vmkeep.host.tasks.task import Task
from vmkeep.host.tasks.tpms import (
    DeleteLeftTpmState,
    DeleteTpmState,
    DropTpmSecret,
    ForgetOwnTpmSecret,
    GiveOwnTpmSecret,
    GiveTpmSecret,
    HoldForTpm,
    InstallTpmState,
    JudgeTpmSecret,
    LetTpmGo,
    LookAtTpm,
    LookAtTpmSecret,
    MakeTpmKey,
    PlanTpmSecret,
    PutTpmIn,
    RekeyTpmState,
    RequireTpmFits,
    TakeTpmOut,
    TakeTpmSecretBack,
    TpmRemains,
    WithdrawTpmState,
)
from vmkeep.host.tpms import device, key, ownsecret, remnant, secret, state


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    match task:
        case LookAtTpm():
            return device.look_at_tpm(operation, task)
        case HoldForTpm():
            return device.hold_for_tpm(operation, task)
        case RequireTpmFits():
            return device.require_tpm_fits(operation, task)
        case TakeTpmOut():
            return device.take_tpm_out_of_vm(operation, task)
        case PutTpmIn():
            return device.put_tpm_into_vm(operation, task)
        case DeleteLeftTpmState():
            return remnant.delete_left_tpm_state(operation, task)
        case LookAtTpmSecret():
            return secret.look_at_tpm_secret(operation, task)
        case TpmRemains() | DeleteTpmState() | InstallTpmState() | WithdrawTpmState() | LetTpmGo():
            return _of_state(task, operation)
        case JudgeTpmSecret() | DropTpmSecret() | PlanTpmSecret() | GiveTpmSecret() | TakeTpmSecretBack():
            return _of_secret(task, operation)
    return _of_new_key(task, operation)


def _of_new_key(task: Task[Any], operation: Operation) -> Any:
    match task:
        case GiveOwnTpmSecret():
            return ownsecret.give_own_secret(operation.connected(), task.secret, task.vm, value_of=task.value_of)
        case ForgetOwnTpmSecret():
            return ownsecret.forget_own_secret(operation.connected(), task.secret)
        case MakeTpmKey():
            return key.make_tpm_key(operation, task)
        case RekeyTpmState():
            return key.rekey_tpm_state(operation, task)
    raise AssertionError(f"not a task of TPMs: {task}")


def _of_state(task: Task[Any], operation: Operation) -> Any:
    match task:
        case TpmRemains():
            return state.tpm_remains(task)
        case DeleteTpmState():
            return state.delete_tpm_state(operation, task)
        case InstallTpmState():
            return state.install_tpm_state(operation, task)
        case WithdrawTpmState():
            return state.withdraw_tpm_state(operation, task)
        case LetTpmGo():
            return state.let_tpm_go(operation, task)
    raise AssertionError(f"not a task of a TPM's state: {task}")


def _of_secret(task: Task[Any], operation: Operation) -> Any:
    match task:
        case JudgeTpmSecret():
            return secret.judge_tpm_secret(operation, task.vm_uuid, task.secret, task.points, task.pins)
        case DropTpmSecret():
            return secret.drop_tpm_secret(operation, task)
        case PlanTpmSecret():
            return secret.plan_tpm_secret(operation, task)
        case GiveTpmSecret():
            return secret.give_tpm_secret(operation, task)
        case TakeTpmSecretBack():
            return secret.take_tpm_secret_back(operation, task)
    raise AssertionError(f"not a task of a TPM's secret: {task}")
