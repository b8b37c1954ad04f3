"""Keep state on a host that belongs to no VM, as a version of the VM that it was of: so that deleting it loses nothing.

No flow of DBOS: a kill between repository and catalogue leaves a content that nothing knows, or a pin that the next
command takes over.
"""

from __future__ import annotations

from vmkeep.catalog import Catalog, CatalogState
from vmkeep.commandline import command_line
from vmkeep.custody.orphans import Keeping, is_vm_uuid, state_in
from vmkeep.errors import InvalidRequest, VmNotFound
from vmkeep.flows.gate import tell_gate
from vmkeep.flows.installation import Premises
from vmkeep.flows.orphans import KnownOrphan
from vmkeep.flows.services import held_vm
from vmkeep.flows.settle_pins import KEPT, put_pin
from vmkeep.flows.vm_states import new_state
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.orphans import KeepOrphan
from vmkeep.host.tasks.survey import FindVm
from vmkeep.values import dataclass

_DOING = "keeping of state that belongs to no VM"


@dataclass(frozen=True, slots=True)
class OrphanKept:
    """What was kept of an orphan: each version with its path. ``left`` are paths of what is no state of a VM."""

    path: str
    vm_uuid: str
    new: tuple[tuple[str, CatalogState], ...]
    left: tuple[str, ...]


def keep_orphan(premises: Premises, host: Host, known: KnownOrphan, vm: str | None) -> OrphanKept:
    """Keep what is not kept yet of an orphan. ``vm`` (name or UUID) says whose UEFI variables they are.

    Where versions of that kind are known of the VM, it becomes a conflict, which never counts as the current one: the
    newest is what the VM had last, and how old this is nobody knows. Raises InvalidRequest when it is not known whose
    it is, or when it would be the first version of a VM that is defined, and what the task raises.
    """
    catalog, orphan = premises.catalog, known.orphan
    owner = _owner(catalog, known, vm)
    lacking = [judged.file for judged in known.files if judged.keeping is Keeping.NOT_KEPT]
    wanted = sorted((file for file in lacking if state_in(orphan, file.name)), key=lambda file: file.name)
    left = tuple(orphan.place_of(file) for file in lacking if file not in wanted)
    new: list[tuple[str, CatalogState]] = []
    with held_vm(host, owner, known.vm or owner, _DOING):
        for file in wanted:
            newest = catalog.newest_state(owner, orphan.kind)
            if newest is None:
                _refuse_first_of_defined(host, owner, orphan.path)
            generation = 1 if newest is None else newest.generation
            made = host.ask(KeepOrphan(orphan, file.name, owner, generation))
            state = new_state(owner, made)
            record = catalog.vm(owner)
            if record is None:
                catalog.see_vm(owner, known.vm or owner)
            name = known.vm or owner if record is None else record.name
            put_pin(catalog, premises.repository, owner, name, KEPT, (state,))
            accepted = next((each for each in catalog.states_of_vm(owner) if each.id == state.id), state)
            new.append((orphan.place_of(file), accepted))
        if new:
            tell_gate(catalog, host, owner)
    return OrphanKept(orphan.path, owner, tuple(new), left)


def _owner(catalog: Catalog, known: KnownOrphan, vm: str | None) -> str:
    if vm is None:
        if known.vm_uuid:
            return known.vm_uuid
        raise InvalidRequest(
            f"whose UEFI variables {known.orphan.path} are is not known",
            path=known.orphan.path,
            hint="Say it: --vm UUID, or the name of a VM of which state is kept.",
        )
    named = (vm.lower(),) if is_vm_uuid(vm.lower()) else catalog.vms_named(vm)
    if len(named) != 1:
        raise InvalidRequest(
            f"which VM {vm!r} is cannot be told", vm=vm, path=known.orphan.path, hint="Give its UUID: --vm UUID."
        )
    if known.orphan.vm_uuid not in ("", named[0]):
        raise InvalidRequest(
            f"{known.orphan.path} is the TPM state of VM {known.orphan.vm_uuid}",
            path=known.orphan.path,
            hint="Leave --vm out: a TPM state tells whose it is.",
        )
    return named[0]


def _refuse_first_of_defined(host: Host, vm_uuid: str, path: str) -> None:
    try:
        host.ask(FindVm(vm_uuid))
    except VmNotFound:
        return
    raise InvalidRequest(
        f"VM {vm_uuid} is defined and nothing of that kind is kept of it yet: {path} would count as its newest state",
        vm=vm_uuid,
        path=path,
        hint=f"`{command_line('vmkeep state capture', vm_uuid)}` keeps what the VM has, and then this can be kept.",
    )
