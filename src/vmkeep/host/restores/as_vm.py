"""A restore as a VM: what is written where, and under which identity. Each task can be repeated after a crash."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from vmkeep.config import Settings
from vmkeep.definition import (
    Definition,
    DefinitionError,
    TpmBackend,
    parse_definition,
)
from vmkeep.errors import (
    ChoiceRequired,
    IntegrityError,
    InvalidRequest,
    StateUnsupported,
    TargetExists,
    VmkeepError,
)
from vmkeep.fitting import Fit, StoredVariables, Wish
from vmkeep.host.restores.items import absences, item_at, refuse_existing, require_tools_for
from vmkeep.host.restores.landing import disk_place, image_format, refuse_images_of_vms, variables_place
from vmkeep.host.restores.newdefinition import NewDefinition
from vmkeep.host.restores.reach import OwnVm
from vmkeep.host.restores.suitability import fit_definition, told_of_firmware
from vmkeep.host.tasks.restores import (
    DefineVm,
    DeliveredItem,
    PrepareVm,
    UndefineVm,
    VmPrepared,
)
from vmkeep.host.vm.keys import secrets_of_point
from vmkeep.host.vm.secrets import define_secrets, forget_secrets, needed_secrets, plan_secrets
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.repository import PointRecord, Repository
from vmkeep.statefiles.location import StateRoots

# -- to files --------------------------------------------------------------------------------------------------


# -- as a VM ---------------------------------------------------------------------------------------------------


def prepare_vm(hypervisor: Hypervisor, repository: Repository, settings: Settings, request: PrepareVm) -> VmPrepared:
    """Decide identity, paths and definition of the VM to be made (the rules of identity: docs/guide/restore.md)."""
    record = repository.point(request.point_id)
    original = _definition_then(record)
    refuse_vm_name(request.name)
    hint = "Choose another name with --as, or undefine that VM first; a VM is never overwritten."
    refuse_taken_name(hypervisor, request.name, hint=hint)
    disk_secrets = secrets_of_point(record, lambda: hypervisor)
    owner = hypervisor.find_uuid(record.vm_uuid)
    same = not request.elsewhere and owner is None
    tpm = _tpm_choice(record, original, request, owner.name if owner is not None else None, same=same)
    identity_uuid = record.vm_uuid if same else str(uuid.uuid4())
    roots = StateRoots.of(hypervisor.uri)
    items = [
        replace(
            item_at(
                "disk",
                disk.target,
                disk_place(disk, request, record, settings, hypervisor),
                request.operation,
                image_format(disk),
            ),
            secret=disk_secrets.get(disk.target, ""),
        )
        for disk in record.disks
    ]
    own_vm = OwnVm.of(hypervisor, record.vm_uuid)
    nvram = variables_place(original, request.name, roots, own_vm)
    for state in record.states:
        if state.kind == "nvram":
            items.append(item_at("nvram", "nvram", nvram, request.operation))
        elif state.kind == "tpm" and tpm == "same":
            items.append(item_at("tpm", "tpm", roots.tpm_directory(identity_uuid), request.operation))
    refuse_shared_paths(items)
    require_tools_for(items)
    refuse_existing(items, force=request.force)
    refuse_images_of_vms(items, hypervisor)
    if tpm == "new" and os.path.lexists(roots.tpm_directory(identity_uuid)):
        raise TargetExists(
            "a TPM state directory of the original is still on this host, so the VM would not get a new TPM",
            vm=request.name,
            path=str(roots.tpm_directory(identity_uuid)),
            hint="Move the directory away if it is not needed, or restore with --tpm same.",
        )
    identity: Literal["same", "new"] = "same" if same else "new"
    secrets = plan_secrets(
        hypervisor, repository, record, needed_secrets(original), vm=request.name, must_open=tpm == "same"
    )
    # Made here to refuse early what cannot be made, or does not fit this host; DefineVm makes it again.
    made = NewDefinition(hypervisor, record, original, request.name, identity_uuid, identity, items, own_vm, request)
    judged = made.judged()
    fitted = _fitted(hypervisor, record, original, judged.definition, items, made.wish, request.name)
    settled = made.settled(fitted.definition)
    sealed = told_of_firmware(hypervisor, record.host, original, made.wish) if tpm == "same" else ()
    return VmPrepared(
        name=request.name,
        uuid=identity_uuid,
        identity=identity,
        tpm=tpm,
        items=tuple(items),
        warnings=(*absences(record), *judged.told, *settled.told, *secrets.warnings, *sealed),
        secrets=secrets.absent,
        changes=tuple((misfit.change, misfit.guest) for misfit in fitted.misfits),
    )


def _definition_then(record: PointRecord) -> Definition:
    """Return the definition that the point holds; raises IntegrityError for one that is none."""
    try:
        return parse_definition(record.definition)
    except DefinitionError as error:
        raise IntegrityError(
            f"point {record.id} holds no definition of a VM that can be read: {error}",
            vm=record.vm_name,
            hint="`--output DIR --decrypt --only disks` writes its disks; a VM can be defined around them by hand.",
        ) from error


def refuse_vm_name(name: str) -> None:
    """Raise InvalidRequest for what libvirt takes for no VM's name; files are named after it."""
    if not name.strip() or "/" in name or "\n" in name:
        raise InvalidRequest(f"{name!r} cannot be a VM's name: it must hold text, and no '/' or line break", vm=name)


def refuse_taken_name(hypervisor: Hypervisor, name: str, *, hint: str) -> None:
    """Raise TargetExists for a name that a VM of this host has."""
    if hypervisor.find(name) is not None:
        raise TargetExists(f"a VM named {name!r} is on this host already", vm=name, hint=hint)


def define_vm(hypervisor: Hypervisor, repository: Repository, request: DefineVm) -> None:
    """Define the VM, after its secrets; when an earlier attempt did so already, that is fine."""
    existing = hypervisor.find_uuid(request.uuid)
    if existing is None:
        record = repository.point(request.point_id)
        original = _definition_then(record)
        own_vm = OwnVm.of(hypervisor, record.vm_uuid)
        made = NewDefinition(
            hypervisor, record, original, request.name, request.uuid, request.identity, request.items, own_vm, request
        )
        definition = made.judged().definition
        fitted = _fitted(hypervisor, record, original, definition, request.items, made.wish, request.name)
        definition = made.settled(fitted.definition).definition
        needed, must_open = needed_secrets(original), any(item.role == "tpm" for item in request.items)
        plan = plan_secrets(hypervisor, repository, record, needed, vm=request.name, must_open=must_open)
        try:
            define_secrets(hypervisor, repository, record, plan)
            defined = hypervisor.define(definition, request.name)
            try:
                _refuse_what_was_dropped(original, defined)
            except BaseException:
                defined.undefine()
                raise
        except BaseException:
            with contextlib.suppress(VmkeepError):  # what went wrong first is what counts
                forget_secrets(hypervisor, repository, record, request.secrets)
            raise
    elif existing.name != request.name:
        raise TargetExists(f"a VM with the UUID {request.uuid} appeared meanwhile: {existing.name!r}", vm=existing.name)


def _refuse_what_was_dropped(original: Definition, defined: Domain) -> None:
    """Raise StateUnsupported when libvirt left out of the definition how the UEFI variables are stored.

    libvirt 9.0 accepts format='qcow2' and drops it (tried); the firmware would then find a qcow2 header where its
    variables should be. 9.2 knows it.
    """
    wanted = original.firmware.nvram_format
    if parse_definition(defined.definition_xml(inactive=True)).firmware.nvram_format != wanted:
        raise StateUnsupported(
            f"the UEFI variables of the point are in the format {wanted}, which the libvirt of this host does not know",
            vm=defined.name,
            hint="libvirt 9.2 and later know qcow2. On this host: restore with --output, make nvram.fd raw "
            "(qemu-img convert -O raw), and define domain.xml without the format.",
        )


def _fitted(
    hypervisor: Hypervisor,
    record: PointRecord,
    original: Definition,
    definition: str,
    items: Sequence[DeliveredItem],
    wish: Wish,
    name: str,
) -> Fit:
    """Return the definition as it fits this host. Raises HostUnfit."""
    ref = next((state for state in record.states if state.kind == "nvram"), None)
    place = next((item.final for item in items if item.role == "nvram"), "")
    variables = (
        None
        if ref is None
        else StoredVariables(size_bytes=ref.size_bytes, format=original.firmware.nvram_format, path=place)
    )
    return fit_definition(hypervisor, definition, wish, variables, vm=name, source=f"point {record.id}")


def undefine_vm(hypervisor: Hypervisor, repository: Repository, request: UndefineVm) -> None:
    """Undo ``define_vm``."""
    existing = hypervisor.find_uuid(request.uuid)
    if existing is not None:
        existing.undefine()
    if request.secrets:
        forget_secrets(hypervisor, repository, repository.point(request.point_id), request.secrets)


# -- the items of both -----------------------------------------------------------------------------------------


def refuse_shared_paths(items: Sequence[DeliveredItem]) -> None:
    """Raise InvalidRequest for two items that would be one file."""
    paths = [item.final for item in items]
    for path in paths:
        if paths.count(path) > 1:
            raise InvalidRequest(
                f"two parts of the VM would be restored to {path}", path=path, hint="Give --disks-dir DIR."
            )


def _tpm_choice(record: PointRecord, original: Definition, request: PrepareVm, owner: str | None, *, same: bool) -> str:
    """Return whose TPM the VM gets. There is no silent blank TPM, and no silent second owner of one.

    ``owner`` is the VM of the original's UUID on this host, whatever it is called by now.
    """
    if original.tpm is None or original.tpm.backend is not TpmBackend.EMULATOR:
        return "none"
    has_state = any(state.kind == "tpm" for state in record.states)
    if request.tpm == "same" and not has_state:
        raise StateUnsupported(f"point {record.id} holds no TPM state", vm=request.name)
    if request.tpm is not None:
        return request.tpm
    if same and has_state:
        return "same"
    if same:
        reason = f"point {record.id} holds no TPM state for the VM's TPM"
    elif owner is None:
        reason = f"VM {record.vm_name!r}, whose TPM this is, lives on another host, as the catalogue knows"
    elif owner == record.vm_name:
        reason = f"VM {owner!r}, whose TPM this is, exists"
    else:
        reason = f"VM {owner!r}, whose TPM this is, exists; when the point was taken it was called {record.vm_name!r}"
    raise ChoiceRequired(
        reason,
        vm=request.name,
        hint="--tpm same gives the restored VM a copy of the TPM (disks sealed to it open, and two VMs then share its "
        "identity); --tpm new gives it a blank one (sealed disks ask for their recovery key).",
    )
