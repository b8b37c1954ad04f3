"""The secrets of libvirt that a VM needs to open what is encrypted: kept in its points, and defined again at a restore.

A value is read from libvirt in the task that seals it, and from the repository in the task that gives it to libvirt or
to a file. It is in no task, answer, error or log, because those are stored in plain text.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

from vmkeep.commandline import command_line
from vmkeep.custody.states import KeptSecret, SealedSecret
from vmkeep.definition import Definition, DefinitionError, TpmBackend, parse_definition
from vmkeep.errors import HypervisorError, SecretUnfit, StateUnsupported, TargetExists
from vmkeep.hypervisor import Hypervisor, Secret, Withheld, secret_xml
from vmkeep.repository import PinRecord, PointRecord, PointSecret, Repository
from vmkeep.values import dataclass

_WHY: Final[Mapping[Withheld, str]] = MappingProxyType(
    {
        Withheld.ABSENT: "libvirt does not have",
        Withheld.EMPTY: "has no value in libvirt any more",
        Withheld.PRIVATE: "is private, so that libvirt does not give its value out",
        Withheld.REFUSED: "libvirt does not let this user read",
        Withheld.FOREIGN: "is of a usage that vmkeep does not know",
    }
)


Holder: TypeAlias = PointRecord | PinRecord
"""Whose envelope has the secrets."""


@dataclass(frozen=True, slots=True)
class NeededSecret:
    """A secret that a definition names. ``opens`` says what is encrypted with it, in words.

    ``usage`` is what libvirt must call it for: it takes a secret of another usage for nothing of that kind.
    """

    uuid: str
    opens: str
    usage: str = "vtpm"


def point_needs(record: PointRecord) -> tuple[NeededSecret, ...]:
    """Return the secrets that the VM of a point needs; none of a definition that cannot be read."""
    try:
        return needed_secrets(parse_definition(record.definition))
    except DefinitionError:
        return ()


def needed_secrets(*definitions: Definition) -> tuple[NeededSecret, ...]:
    """Return the secrets without which what a point keeps of a VM does not open, each once."""
    found: dict[str, NeededSecret] = {}
    for definition in definitions:
        tpm = definition.tpm
        if tpm is not None and tpm.backend is TpmBackend.EMULATOR and tpm.secret_uuid is not None:
            found.setdefault(tpm.secret_uuid, NeededSecret(tpm.secret_uuid, "TPM state"))
    return tuple(found.values())


# -- a point ---------------------------------------------------------------------------------------------------


def read_secrets(hypervisor: Hypervisor, needed: Sequence[NeededSecret]) -> tuple[tuple[PointSecret, ...], list[str]]:
    """Return the secrets that libvirt gives out, and a warning for each that it does not."""
    secrets, warnings = [], []
    for need in needed:
        found = hypervisor.secrets.read(need.uuid)
        if isinstance(found, Secret):
            secrets.append(_for_point(found))
        else:
            warnings.append(_withheld(need, found))
    return tuple(secrets), warnings


def _withheld(need: NeededSecret, why: Withheld) -> str:
    relative = f"which {_WHY[why]}"
    return (
        f"The {need.opens} is encrypted with libvirt's secret {need.uuid}, {relative}: the secret is not in the point. "
        "Keep its value safe: a restored VM needs it."
    )


# -- a state version -------------------------------------------------------------------------------------------


def seal_for_version(
    hypervisor: Hypervisor,
    repository: Repository,
    definition: Definition,
    vm_uuid: str,
    version_id: str,
    kept: Sequence[KeptSecret],
) -> tuple[SealedSecret | None, str]:
    """Seal what opens an encrypted version of a TPM's state for the pin that is to be put for it.

    ``kept`` are the secrets that envelopes hold for versions already. What libvirt does not give out keeps nobody from
    keeping the version: then there is None, and a sentence about it.
    """
    need = next(iter(needed_secrets(definition)), None)
    if need is None or any(each.uuid == need.uuid and each.version_id == version_id for each in kept):
        return None, ""
    try:
        found = hypervisor.secrets.read(need.uuid)
    except HypervisorError as error:
        return None, f"The secret {need.uuid} of the {need.opens} is not kept with the version: {error.message}."
    if not isinstance(found, Secret):
        return None, (
            f"The {need.opens} is encrypted with libvirt's secret {need.uuid}, which {_WHY[found]}: its value is not "
            "kept with the version. Keep it safe: without it the version does not open."
        )
    pin_id, _ = repository.pins.seal(vm_uuid, (_for_point(found),))
    return SealedSecret(pin_id, version_id, found.usage, found.uuid), ""


# -- a restore -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SecretPlan:
    """``missing`` are the UUIDs of secrets whose value libvirt lacks and the point holds.

    ``absent`` are those among them that libvirt does not know at all: these are removed again by an undo.
    """

    missing: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def plan_secrets(
    hypervisor: Hypervisor,
    repository: Repository,
    record: Holder,
    needed: Sequence[NeededSecret],
    *,
    vm: str,
    must_open: bool,
) -> SecretPlan:
    """Compare what a restored VM needs with what libvirt has; nothing is changed.

    ``must_open``: what is encrypted is the point's, so the value must be as well. Raises TargetExists when libvirt has
    another one, SecretUnfit when the point's is for another use or another VM here needs it, and what reading the
    point's raises.
    """
    held = {secret.uuid: secret for secret in repository.secrets(record)} if needed else {}
    missing, absent, warnings = [], [], []
    for need in needed:
        here = hypervisor.secrets.read(need.uuid)
        ours = held.get(need.uuid)
        if isinstance(here, Secret):
            if must_open and ours is not None and ours.value != here.value:
                raise _differs(need.uuid, need.opens, vm)
        elif here in (Withheld.ABSENT, Withheld.EMPTY):
            if ours is not None:
                _refuse_unfit(hypervisor, ours, need.usage, record)
                missing.append(need.uuid)
                absent += [need.uuid] if here is Withheld.ABSENT else []
                warnings += _made_persistent(ours)
            else:
                warnings.append(_lacking(need))
        elif must_open and ours is not None:
            warnings.append(
                f"libvirt has the secret {need.uuid} already and does not give its value out ({here}): whether it is "
                f"the one that opens the {need.opens} of the point could not be seen. It stays as it is."
            )
    return SecretPlan(tuple(missing), tuple(absent), tuple(warnings))


def refuse_another_key(definition: Definition, opens: str | None, *, encrypted: bool) -> None:
    """Raise StateUnsupported for a TPM state that the VM's definition does not open: it has another secret by now.

    ``opens`` is the UUID of the secret that the state is encrypted with; None where that is not known.
    """
    here = None if definition.tpm is None else definition.tpm.secret_uuid
    if (here is not None and opens in (None, here)) if encrypted else here is None:
        return
    with_secret = f" with libvirt's secret {opens}" if opens else ""
    state = f"is encrypted{with_secret}" if encrypted else "is not encrypted"
    device = f"names the secret {here}" if here else "names none"
    raise StateUnsupported(
        f"the TPM state that is to go back {state}, and the TPM of VM {definition.name!r} {device}: it would not open",
        vm=definition.name,
        hint=f"`{command_line('vmkeep tpm remove', definition.name)}`, then "
        f"`{command_line('vmkeep tpm add', definition.name, options='--from VERSION')}` gives the VM that state with "
        "what opens it.",
    )


def define_secrets(hypervisor: Hypervisor, repository: Repository, record: Holder, plan: SecretPlan) -> None:
    """Give libvirt the secrets that it lacks by the plan, which was made just now: none is ever replaced."""
    for secret in repository.secrets(record) if plan.missing else ():
        if secret.uuid in plan.missing:
            hypervisor.secrets.keep(_for_libvirt(secret))


def forget_secrets(hypervisor: Hypervisor, repository: Repository, record: Holder, uuids: Collection[str]) -> None:
    """Remove secrets that a restore has defined, except one that another VM needs by now, or with another value."""
    for secret in repository.secrets(record) if uuids else ():
        if secret.uuid not in uuids or secret.uuid in secrets_in_use(hypervisor):
            continue
        here = hypervisor.secrets.read(secret.uuid)
        if isinstance(here, Secret) and here.value == secret.value:
            hypervisor.secrets.forget(secret.uuid)


def put_secret_back(hypervisor: Hypervisor, repository: Repository, point_id: str, pin_id: str, uuid: str) -> str:
    """Give libvirt a secret of a point or a pin if it lacks it, and return a sentence about it. Raises SecretUnfit."""
    record = repository.holder(point_id, pin_id)
    for secret in repository.secrets(record):
        if secret.uuid == uuid and hypervisor.secrets.read(uuid) in (Withheld.ABSENT, Withheld.EMPTY):
            _refuse_unfit(hypervisor, secret, "vtpm", record)
            hypervisor.secrets.keep(_for_libvirt(secret))
    return f"libvirt has the secret {uuid} again, from {_told(record)}"


def holder_of_secret(
    hypervisor: Hypervisor, repository: Repository, points: Sequence[str], pins: Sequence[str], uuid: str
) -> Holder | None:
    """Return the first of these whose envelope holds the value that libvirt has for a secret; None for none."""
    here = hypervisor.secrets.read(uuid)
    if not isinstance(here, Secret):
        return None
    for point, pin in (*((point, "") for point in points), *(("", pin) for pin in pins)):
        record = repository.holder(point, pin)
        if any(secret.uuid == uuid and secret.value == here.value for secret in repository.secrets(record)):
            return record
    return None


def _told(record: Holder) -> str:
    return f"{'pin' if isinstance(record, PinRecord) else 'point'} {record.id}"


def secret_file(repository: Repository, record: PointRecord, uuid: str, form: str) -> bytes:
    """Return what `virsh secret-define` ("xml") or `virsh secret-set-value --file` ("base64") takes."""
    secret = next(secret for secret in repository.secrets(record) if secret.uuid == uuid)
    if form == "xml":
        return secret_xml(_for_libvirt(secret)).encode()
    return base64.b64encode(secret.value) + b"\n"


def _refuse_unfit(hypervisor: Hypervisor, secret: PointSecret, usage: str, record: Holder) -> None:
    """Raise SecretUnfit for a secret with which a point could open, or lock, what is not its VM's.

    Who else has the repository's key chooses UUID, usage and value, and a definition that names them. A secret that the
    host lacks may be needed by another VM here, or be for a disk, and would get the value of a stranger's choice.
    """
    vm = record.vm_name
    if secret.usage != usage:
        raise SecretUnfit(
            f"the secret {secret.uuid} of {_told(record)} is for the use {secret.usage!r}, and the VM needs it for "
            f"{usage!r}: it is not defined",
            vm=vm,
        )
    here = hypervisor.secrets.usage(secret.uuid)
    if here not in (None, usage):
        raise SecretUnfit(
            f"libvirt has the secret {secret.uuid}, which {_told(record)} holds a value for, for the use {here!r}, "
            f"and the VM needs it for {usage!r}: it gets no value",
            vm=vm,
        )
    users = _users(hypervisor)
    others = sorted(name for uuid, name in users.get(secret.uuid, {}).items() if uuid != record.vm_uuid)
    if others and record.vm_uuid not in users[secret.uuid]:
        raise SecretUnfit(
            f"the secret {secret.uuid} of {_told(record)} is needed by VM {others[0]!r} of this host, and libvirt "
            "lacks its value: a point of another VM does not give it",
            vm=vm,
            hint="Set its value first (`virsh secret-set-value`), or leave the TPM out: --tpm new with --as, "
            "--tpm keep with --in-place.",
        )


def secrets_in_use(hypervisor: Hypervisor) -> set[str]:
    """Return the UUIDs of the secrets that VMs of this host need."""
    return set(_users(hypervisor))


def _users(hypervisor: Hypervisor) -> dict[str, dict[str, str]]:
    """Return the VMs that need each secret, names by UUID."""
    users: dict[str, dict[str, str]] = {}
    for domain in hypervisor.domains():
        xml = domain.definition_xml(inactive=domain.is_persistent())
        try:
            needed = needed_secrets(parse_definition(xml))
        except DefinitionError:
            continue  # a definition that vmkeep cannot read is not of a VM that it restored
        for need in needed:
            users.setdefault(need.uuid, {})[domain.uuid] = domain.name
    return users


def _differs(uuid: str, opens: str, vm: str) -> TargetExists:
    return TargetExists(
        f"libvirt has the secret {uuid} already, with another value than the point's: the {opens} of the point would "
        "not open",
        vm=vm,
        hint="It is never replaced. If nothing needs the one that is there, `virsh secret-undefine` it and run the "
        "command again. Else leave the TPM out: --tpm new with --as, --tpm keep with --in-place.",
    )


def _lacking(need: NeededSecret) -> str:
    return (
        f"libvirt does not have the secret {need.uuid}, with which the {need.opens} is encrypted, and the point does "
        "not hold it: the VM cannot start before it is defined and its value set (virsh secret-define, "
        "virsh secret-set-value)."
    )


def _made_persistent(secret: PointSecret) -> list[str]:
    if not secret.ephemeral:
        return []
    return [
        (
            f"The secret {secret.uuid} was kept in memory only where the point was taken. It is defined so that "
            "libvirt keeps it, because the VM could not start any more when libvirt was restarted."
        )
    ]


def _for_point(secret: Secret) -> PointSecret:
    return PointSecret(
        usage=secret.usage,
        uuid=secret.uuid,
        usage_id=secret.usage_id,
        description=secret.description,
        ephemeral=secret.ephemeral,
        value=secret.value,
    )


def _for_libvirt(secret: PointSecret) -> Secret:
    return Secret(
        uuid=secret.uuid,
        usage=secret.usage,
        usage_id=secret.usage_id,
        description=secret.description,
        ephemeral=secret.ephemeral,
        value=secret.value,
    )
