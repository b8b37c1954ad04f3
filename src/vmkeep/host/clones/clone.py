"""A clone decided, defined, taken back and ended. What it is made of is copied by ``vmkeep.host.clones.copying``."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vmkeep.commandline import command_line
from vmkeep.custody.identity import told_of_one_identity, told_of_one_value
from vmkeep.definition import DefinedDisk, DefinitionError, DiskPlacement, Remap, SourceKind, TpmBackend, remap
from vmkeep.definition.origin import Origin, with_origin
from vmkeep.definition.secondvm import SecondVm, encrypt_tpm_with, second_vm
from vmkeep.definition.tpmdevice import take_tpm_out
from vmkeep.errors import (
    ChoiceRequired,
    HypervisorError,
    InvalidRequest,
    StateUnsupported,
    TargetExists,
    VmkeepError,
    VmNotFound,
    VmRunning,
)
from vmkeep.host.clones.original import Original, hold, let_go, look_at, require_at_rest, require_persistent, started
from vmkeep.host.operation import Operation
from vmkeep.host.restores.as_vm import refuse_shared_paths, refuse_taken_name, refuse_vm_name
from vmkeep.host.restores.items import (
    discard_replaced,
    item_at,
    refuse_existing,
    require_tools_for,
    withdraw_items,
)
from vmkeep.host.restores.landing import below, require_folder, variables_place
from vmkeep.host.restores.newdefinition import mac_addresses
from vmkeep.host.restores.reach import OwnVm
from vmkeep.host.tasks.clones import ClonePrepared, PrepareClone
from vmkeep.host.tasks.restores import DeliveredItem, DiscardReplaced, WithdrawItems
from vmkeep.host.tasks.tpms import GiveTpmSecret
from vmkeep.host.tpms.ownsecret import forget_own_secret, give_own_secret, readable_secret
from vmkeep.host.tpms.secret import give_tpm_secret
from vmkeep.host.vm.keys import key_of, secret_of
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.statefiles.location import StateRoots


def prepare_clone(operation: Operation, task: PrepareClone) -> ClonePrepared:
    """Decide what a clone will be; see the task."""
    hypervisor = operation.connected()
    refuse_vm_name(task.name)
    domain = hypervisor.domain(task.source)
    require_persistent(domain)
    hold(operation, domain, task.name, f"clone of {domain.name} {operation.id}")
    try:
        refuse_taken_name(hypervisor, task.name, hint="Choose another name for the clone.")
        require_at_rest(domain, task.name)
        return _prepared(operation, look_at(operation, domain), task)
    except BaseException:
        let_go(operation)
        raise


def _prepared(operation: Operation, original: Original, task: PrepareClone) -> ClonePrepared:
    hypervisor, definition = operation.connected(), original.definition
    tpm = _tpm_choice(original, task)
    nvram, told = _nvram_choice(original, task)
    vm_uuid = str(uuid.uuid4())
    disks = [_disk_item(operation, original, target, task) for target in original.disks]
    states = _state_items(operation, original, task.name, vm_uuid, tpm=tpm, nvram=nvram)
    items = (*disks, *states)
    refuse_shared_paths(items)
    require_tools_for(disks)
    refuse_existing(items, force=False)
    for item in disks:
        key_of(hypervisor, item.secret, vm=original.domain.name, disk=item.name)
    removed = (*original.left, *(disk.target for disk in definition.disks if _is_written_medium(disk)))
    encrypted = definition.tpm is not None and definition.tpm.secret_uuid is not None and tpm != "none"
    if encrypted and tpm == "copy":
        readable_secret(hypervisor, str(definition.tpm and definition.tpm.secret_uuid), original.domain.name)
    prepared = ClonePrepared(
        source=original.domain.name,
        source_uuid=original.domain.uuid,
        name=task.name,
        uuid=vm_uuid,
        tpm=tpm,
        nvram=nvram,
        items=items,
        read=original.digest,
        secret=str(uuid.uuid4()) if encrypted else "",
        removed=removed,
    )
    made = clone_definition(hypervisor, original, prepared)
    words = hypervisor.refusal(made.definition)
    if words is not None:
        raise HypervisorError(f"libvirt does not take the definition of the clone: {words}", vm=task.name)
    return replace(prepared, warnings=(*_told(original, prepared), *told, *made.told))


def clone_definition(hypervisor: Hypervisor, original: Original, prepared: ClonePrepared) -> SecondVm:
    """Return the definition of the clone, the same each time. Raises InvalidRequest."""
    variables = _variables_place(hypervisor.uri, hypervisor, original, prepared.name)
    changes = Remap(
        name=prepared.name,
        uuid=prepared.uuid,
        new_mac=mac_addresses(prepared.uuid),
        disks={item.name: DiskPlacement(item.final, item.format) for item in prepared.items if item.role == "disk"},
        removed=frozenset(prepared.removed),
        nvram=str(variables) if original.definition.firmware.nvram is not None else None,
        default_tpm_place=True,
    )
    try:
        xml = remap(original.xml, changes)
        if prepared.tpm == "none":
            taken = take_tpm_out(xml)
            xml = xml if taken is None else taken.definition
        elif prepared.secret:
            xml = encrypt_tpm_with(xml, prepared.secret)
        xml = with_origin(xml, Origin(original.domain.uuid, original.domain.name))
        return second_vm(xml, original.domain.name, prepared.name)
    except DefinitionError as error:
        words = f"the definition of VM {original.domain.name!r} cannot be one of {prepared.name!r}: {error}"
        raise InvalidRequest(words, vm=original.domain.name) from error


def define_clone(operation: Operation, prepared: ClonePrepared, key_pin: str) -> None:
    """Define the clone; see the task."""
    hypervisor = operation.connected()
    existing = hypervisor.find_uuid(prepared.uuid)
    if existing is not None:
        return  # by an attempt that was killed: nobody else has this UUID
    domain = original_of(hypervisor, prepared)
    original = look_at(operation, domain)
    if original.digest != prepared.read:
        raise started(domain.name)
    tpm = original.definition.tpm
    made = clone_definition(hypervisor, original, prepared)
    try:
        if key_pin:
            give_tpm_secret(operation, GiveTpmSecret(operation.id, "", prepared.secret, key_pin))
        elif prepared.secret and tpm is not None and tpm.secret_uuid is not None:
            give_own_secret(hypervisor, prepared.secret, prepared.name, value_of=tpm.secret_uuid)
        hypervisor.define(made.definition, prepared.name)
    except BaseException:
        with suppress(VmkeepError):  # what went wrong first is what counts
            forget_own_secret(hypervisor, prepared.secret)
        raise


def original_of(hypervisor: Hypervisor, prepared: ClonePrepared) -> Domain:
    """Return the VM that is cloned. Raises VmNotFound for one that is gone meanwhile."""
    domain = hypervisor.find_uuid(prepared.source_uuid)
    if domain is None:
        raise VmNotFound(f"VM {prepared.source!r} was undefined while it was cloned", vm=prepared.source)
    return domain


def withdraw_clone(operation: Operation, prepared: ClonePrepared) -> None:
    """Remove all that was made; see the task."""
    hypervisor = operation.connected()
    existing = hypervisor.find_uuid(prepared.uuid)
    try:
        if existing is not None:
            if existing.state().run is not RunState.OFF:
                raise VmRunning(
                    f"the clone {existing.name!r} was started before it was noted, so it was left as it is, whole",
                    vm=existing.name,
                    hint=f"`{command_line('vmkeep vm show', existing.name)}` shows it. To be rid of it, shut it down, "
                    "undefine it and remove its files.",
                )
            existing.undefine()
        forget_own_secret(hypervisor, prepared.secret)
        withdraw_items(WithdrawItems(prepared.items))
    finally:
        let_go(operation)


def close_clone(operation: Operation, prepared: ClonePrepared) -> tuple[str, ...]:
    """End the clone; see the task."""
    try:
        return discard_replaced(DiscardReplaced(prepared.items))
    finally:
        let_go(operation)


# -- what is decided ---------------------------------------------------------------------------------------------


def _tpm_choice(original: Original, task: PrepareClone) -> str:
    """Return whose TPM the clone gets. There is no silent blank TPM, and no silent second owner of one."""
    tpm, vm = original.definition.tpm, original.domain.name
    if tpm is None or (tpm.backend is not TpmBackend.EMULATOR and task.tpm != "none"):
        return "none" if tpm is None else "new"
    if task.tpm is None:
        raise ChoiceRequired(
            f"VM {vm!r} has a TPM",
            vm=vm,
            hint="--tpm copy gives the clone a copy of it (disks sealed to it open, and two VMs then share its "
            "identity); --tpm new gives it a blank one (sealed disks ask for their recovery key); --tpm none gives it "
            "none.",
        )
    state = next((source for source in original.states if source.kind == "tpm"), None)
    if task.tpm == "copy" and (state is None or not state.path.exists()):
        raise StateUnsupported(
            f"the TPM of VM {vm!r} has no state that could be copied" + ("" if state is None else f" ({state.path})"),
            vm=vm,
            path=None if state is None else str(state.path),
            hint=f"A VM that was never started has none yet: --tpm new is the same then. If it is lost: "
            f"`{command_line('vmkeep state list', vm)}`.",
        )
    return task.tpm


def _nvram_choice(original: Original, task: PrepareClone) -> tuple[str, tuple[str, ...]]:
    source = next((each for each in original.states if each.kind == "nvram"), None)
    if source is None:
        return "none", ()
    if task.nvram == "copy" and not source.path.exists():
        told = (
            f"{original.domain.name} has no file of UEFI variables ({source.path}): {task.name} begins with new ones."
        )
        return "new", (told,)
    return task.nvram, ()


def _disk_item(operation: Operation, original: Original, target: str, task: PrepareClone) -> DeliveredItem:
    disk = original.definition.disk(target)
    assert disk is not None
    assert disk.source is not None
    image_format = "raw" if disk.format == "raw" else "qcow2"
    own = Path(os.path.normpath(disk.source))
    is_file = disk.source_kind is SourceKind.FILE and not own.is_relative_to("/dev")
    folder = own.parent if is_file else operation.settings.images_dir
    if task.disks_dir is not None:
        folder = Path(task.disks_dir).absolute()
    require_folder(folder, target, task.name)
    final = below(folder, f"{task.name}-{target}.{image_format}")
    return replace(item_at("disk", target, final, operation.id, image_format), secret=secret_of(disk))


def _state_items(
    operation: Operation, original: Original, name: str, vm_uuid: str, *, tpm: str, nvram: str
) -> tuple[DeliveredItem, ...]:
    hypervisor, items = operation.connected(), []
    roots = StateRoots.of(hypervisor.uri)
    if nvram != "none":
        place = _variables_place(hypervisor.uri, hypervisor, original, name)
        if nvram == "new" and os.path.lexists(place):
            raise TargetExists(
                f"{place} is there already, of an earlier VM: libvirt would take it for the variables of the clone",
                vm=name,
                path=str(place),
                hint="Move it away if nothing needs it, or choose another name.",
            )
        items += [item_at("nvram", "nvram", place, operation.id)] if nvram == "copy" else []
    if tpm == "copy":
        source = next(each for each in original.states if each.kind == "tpm")
        items.append(replace(item_at("tpm", "tpm", roots.tpm_directory(vm_uuid), operation.id), file=source.file))
    return tuple(items)


def _variables_place(uri: str, hypervisor: Hypervisor, original: Original, name: str) -> Path:
    own_vm = OwnVm.of(hypervisor, original.domain.uuid)
    return variables_place(original.definition, name, StateRoots.of(uri), own_vm)


def _is_written_medium(disk: DefinedDisk) -> bool:
    return disk.removable and disk.source is not None and not disk.readonly and disk.device != "cdrom"


def _told(original: Original, prepared: ClonePrepared) -> Sequence[str]:
    told, definition = [], original.definition
    if prepared.tpm == "copy":
        told.append(told_of_one_identity(prepared.name, prepared.source))
        told += [told_of_one_value(prepared.secret, prepared.name)] if prepared.secret else []
    elif prepared.tpm == "new":
        told.append(f"What the guest sealed to the TPM of {prepared.source} does not open in {prepared.name}.")
    for target in prepared.removed:
        disk = definition.disk(target)
        if disk is not None and disk.removable:
            told.append(f"The medium {disk.source} was left out of the drive {target}: both VMs would write to it.")
        else:
            told.append(f"Disk {target} is not there, and {prepared.name} has none of that name.")
    return told
