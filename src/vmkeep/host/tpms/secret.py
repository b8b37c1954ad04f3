"""The secret that opens a TPM's state: undefined when nothing needs it and an envelope has it, and defined again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from vmkeep.errors import VmkeepError
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.tpms import (
    DropTpmSecret,
    GiveTpmSecret,
    LookAtTpmSecret,
    PlanTpmSecret,
    SecretJudged,
    TakeTpmSecretBack,
    TpmSecretFound,
)
from vmkeep.host.vm.claims import claims_but_of_checkpoints
from vmkeep.host.vm.secrets import (
    Holder,
    NeededSecret,
    SecretPlan,
    define_secrets,
    forget_secrets,
    holder_of_secret,
    plan_secrets,
)
from vmkeep.hypervisor import Withheld
from vmkeep.repository import PinRecord

_SEALS_SECRETS: Final = 12_001_000
"""From libvirt 12.1 on the values of secrets are sealed to the host on its disk (its release notes); before they lie
below /etc/libvirt/secrets in base64."""


def judge_tpm_secret(
    operation: Operation, vm_uuid: str, uuid: str, points: tuple[str, ...], pins: tuple[str, ...]
) -> SecretJudged:
    """Tell whether a secret can go; see the task."""
    hypervisor = operation.connected()
    if hypervisor.secrets.read(uuid) is Withheld.ABSENT:
        return SecretJudged(why="libvirt does not have it", code="absent")
    claims = claims_but_of_checkpoints(hypervisor, operation.settings, vm_uuid)
    if claims.doubts:
        return SecretJudged(why=f"{claims.doubts[0]}; so it is not known who else needs it", code="doubt")
    if uuid in claims.secrets:
        return SecretJudged(why="another VM, or a snapshot, names it", code="named")
    holder = holder_of_secret(hypervisor, operation.repository(), points, pins, uuid)
    if holder is None:
        why = "no version and no point that is vouched for holds the value that libvirt has"
        return SecretJudged(why=why, code="unheld")
    return SecretJudged(pin=holder.id) if isinstance(holder, PinRecord) else SecretJudged(point=holder.id)


def drop_tpm_secret(operation: Operation, task: DropTpmSecret) -> SecretJudged:
    """Undefine a secret; see the task."""
    secrets = operation.connected().secrets
    if secrets.read(task.secret) is Withheld.ABSENT:
        return SecretJudged(point=task.point, pin=task.pin, at=_now())  # by an attempt that was killed
    points, pins = (tuple(filter(None, (each,))) for each in (task.point, task.pin))
    judged = judge_tpm_secret(operation, task.vm_uuid, task.secret, points, pins)
    if not judged.can_go:
        return judged
    try:
        secrets.forget(task.secret)
    except VmkeepError as error:
        # The TPM is out and its state is kept: a secret that stays a while longer is no reason to take that back.
        return SecretJudged(why=f"libvirt did not undefine it: {error.message}", code="failed")
    return replace(judged, at=_now())


def look_at_tpm_secret(operation: Operation, task: LookAtTpmSecret) -> TpmSecretFound:
    """Tell how libvirt keeps a secret; see the task."""
    hypervisor = operation.connected()
    ephemeral = hypervisor.secrets.is_ephemeral(task.secret)
    libvirt_version, _ = hypervisor.versions()
    return TpmSecretFound(ephemeral is not None, bool(ephemeral), libvirt_version >= _SEALS_SECRETS)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def plan_tpm_secret(operation: Operation, task: PlanTpmSecret) -> bool:
    """Tell whether libvirt lacks a secret; see the task."""
    _, plan = _planned(operation, task)
    return task.secret in plan.absent


def give_tpm_secret(operation: Operation, task: GiveTpmSecret) -> None:
    """Give libvirt a secret; see the task."""
    record, plan = _planned(operation, task)
    define_secrets(operation.connected(), operation.repository(), record, plan)


def take_tpm_secret_back(operation: Operation, task: TakeTpmSecretBack) -> None:
    """Undefine a secret again; see the task."""
    hypervisor, repository = operation.connected(), operation.repository()
    forget_secrets(hypervisor, repository, repository.holder(task.point, task.pin), (task.secret,))


def _planned(operation: Operation, task: PlanTpmSecret | GiveTpmSecret) -> tuple[Holder, SecretPlan]:
    hypervisor, repository = operation.connected(), operation.repository()
    record = repository.holder(task.point, task.pin)
    needed = (NeededSecret(task.secret, "TPM state"),)
    return record, plan_secrets(hypervisor, repository, record, needed, vm=record.vm_name, must_open=True)
