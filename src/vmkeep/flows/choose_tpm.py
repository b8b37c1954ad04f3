"""Which TPM a VM is to get: what a person names, as the request of a flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from vmkeep.catalog import Catalog, CatalogPoint
from vmkeep.commandline import command_line
from vmkeep.custody.encryption import is_encrypted
from vmkeep.custody.orphans import is_vm_uuid
from vmkeep.custody.states import ChosenVersion
from vmkeep.definition import DefinitionError, TpmBackend, parse_definition
from vmkeep.definition.tpmdevice import take_tpm_out
from vmkeep.errors import InvalidRequest, VmkeepError, VmNotFound
from vmkeep.flows.hosts import refuse_distrusted
from vmkeep.flows.installation import Premises
from vmkeep.flows.requests import AddTpm
from vmkeep.flows.secret_holders import SecretHolder, holder_for, secret_holders
from vmkeep.flows.settle_pins import settle_pins
from vmkeep.flows.tpm_renewal import key_of_operation
from vmkeep.flows.vm_states import chosen_of, named_version, require_point_of, states_in, versions_kept
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.survey import FindVm
from vmkeep.host.tasks.tpms import MakeTpmKey
from vmkeep.logs import get_logger
from vmkeep.repository import Repository
from vmkeep.repository.chosen import read_chosen

_log = get_logger(__name__)
_OLDER = "tpm1.2/tpm-00.permall"


def choose_tpm(
    catalog: Catalog,
    repository: Callable[[], Repository],
    host: Host,
    vm: str,
    *,
    model: str | None,
    state: str | None,
    secret: str | None,
    search: Callable[[str], CatalogPoint],
) -> AddTpm:
    """Return the request for a TPM of the model "crb" or "tis", with the state of a version or point, or a blank one.

    ``search`` finds a point by what names it. ``secret`` is the UUID of a secret that libvirt has, for a state whose
    secret is kept nowhere. Raises VmNotFound, InvalidRequest, PointNotFound, and what reading the version raises.
    """
    vm_uuid = host.ask(FindVm(vm))
    secret = None if secret is None else secret.lower()
    if secret is not None and not is_vm_uuid(secret):
        raise InvalidRequest(f"{secret!r} is no UUID of a secret", vm=vm, hint="`virsh secret-list` shows them.")
    if state is None:
        if secret is not None:
            raise InvalidRequest("--secret opens a state that is kept: it goes with --from", vm=vm)
        return AddTpm(vm, vm_uuid, f"tpm-{model or 'crb'}")
    version, point = _named(catalog, vm, vm_uuid, state, search)
    found, content = read_chosen(repository(), vm_uuid, version)
    older = found.file == _OLDER
    uuid, holder = "", None
    if is_encrypted(content):
        uuid, holder = _secret(catalog, vm, vm_uuid, version, point, secret)
    elif secret is not None:
        raise InvalidRequest("that state is not encrypted, so no secret opens it", vm=vm, hint="Leave --secret out.")
    tpm_version = "1.2" if older else "2.0"
    had, device = _device_in(catalog, repository, vm_uuid, version, point, tpm_version)
    return AddTpm(
        vm,
        vm_uuid,
        f"tpm-{model}" if model else had or ("tpm-tis" if older else "tpm-crb"),
        tpm_version,
        version,
        uuid,
        "" if holder is None else holder.point,
        "" if holder is None else holder.pin,
        like=device,
    )


def _device_in(
    catalog: Catalog,
    repository: Callable[[], Repository],
    vm_uuid: str,
    version: ChosenVersion,
    point: CatalogPoint | None,
    tpm_version: str,
) -> tuple[str, str]:
    """Return model and element of the TPM that had a version: of the point named, else of one that holds it.

    A version that was captured alone is taken for one of the device that the VM had at its last point. Both are empty
    where no point tells. The state comes back all the same when that cannot be read.
    """
    points = [each for each in catalog.points_of_vm(vm_uuid) if each.is_vouched_for]
    holding = (each for each in points if any(state["version_id"] == version.id for state in _states_of(each)))
    told = point or next(holding, None) or next(iter(points), None)
    if told is None:
        return "", ""
    try:
        definition = repository().point(told.id).definition
        device, taken = parse_definition(definition).tpm, take_tpm_out(definition)
    except (VmkeepError, DefinitionError) as error:
        _log.warning("the device that a TPM had cannot be read", point=told.id, error=str(error))
        return "", ""
    if device is None or taken is None or device.backend is not TpmBackend.EMULATOR:
        return "", ""
    if (device.version or "2.0") != tpm_version:
        return "", ""  # the VM had both
    return device.model or "", taken.element


def _states_of(point: CatalogPoint) -> Sequence[Mapping[str, Any]]:
    states: Sequence[Mapping[str, Any]] = point.document.get("states", ())
    return states


def with_new_key(premises: Premises, host: Host, request: AddTpm) -> AddTpm:
    """Return the request for a blank TPM with a new key, which is kept in an envelope from here on.

    Raises InvalidRequest for a TPM that gets a state, and what the repository raises.
    """
    if request.version is not None or request.secret:
        raise InvalidRequest(
            "--encrypt makes a new key: a state that is kept has its own, or none", vm=request.vm, hint="Leave it out."
        )
    operation, catalog, rule = uuid4().hex, premises.catalog, premises.keep_state_versions
    sealed = host.ask(MakeTpmKey(operation, request.vm_uuid, key_of_operation(operation)))
    if catalog.vm(request.vm_uuid) is None:
        catalog.see_vm(request.vm_uuid, request.vm)
    settle_pins(catalog, premises.repository, request.vm_uuid, rule, sealed=(sealed,))
    return replace(request, secret=sealed.uuid, secret_pin=sealed.pin_id)


def _named(
    catalog: Catalog, vm: str, vm_uuid: str, text: str, search: Callable[[str], CatalogPoint]
) -> tuple[ChosenVersion, CatalogPoint | None]:
    """Return the version that a text names, by its number or hash, or the one of a point."""
    try:
        kept = versions_kept(catalog, vm_uuid, "tpm")
    except VmNotFound:
        kept = ()
    try:
        return chosen_of(named_version(kept, text, vm, "tpm").version), None
    except InvalidRequest:
        if text.isdigit() and len(text) < 8:
            raise
    point = search(text)
    require_point_of(catalog, point, vm_uuid)
    refuse_distrusted(catalog, point.id)
    held = states_in(point).get("tpm")
    if held is None:
        raise InvalidRequest(
            f"point {point.id} holds no TPM state",
            vm=vm,
            hint=f"`{command_line('vmkeep state versions', vm)}` lists what is kept of it.",
        )
    version = next(str(each["version_id"]) for each in point.document["states"] if each["kind"] == "tpm")
    return ChosenVersion("tpm", version, held), point


def _secret(
    catalog: Catalog, vm: str, vm_uuid: str, version: ChosenVersion, point: CatalogPoint | None, secret: str | None
) -> tuple[str, SecretHolder | None]:
    """Return the UUID of what opens a state, and what holds it: the point named, else what is kept with the version."""
    holders = secret_holders(catalog, vm_uuid)
    if point is not None:
        holders = tuple(each for each in holders if each.point == point.id) or holders
    holder = holder_for(holders, version.id, secret)
    if holder is not None:
        return holder.uuid, holder
    if secret is not None:
        return secret, None
    raise InvalidRequest(
        "that TPM state is encrypted, and the secret of libvirt that opens it is kept with no version and no point",
        vm=vm,
        hint="If libvirt has it (`virsh secret-list`), name it: --secret UUID.",
    )
