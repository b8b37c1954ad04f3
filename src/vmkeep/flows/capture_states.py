"""Keep the state files of a VM as they are now, without a point.

No flow of DBOS: one file is read and put into the repository, and then it is accepted. A kill between the two leaves a
content in the repository that nothing knows, and the next capture puts it there again.
"""

from __future__ import annotations

import uuid

from vmkeep.catalog import Catalog, CatalogState
from vmkeep.flows.gate import tell_gate
from vmkeep.flows.services import held_vm
from vmkeep.flows.vm_states import known_states
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.locks import CAPTURE
from vmkeep.host.tasks.states import CaptureStates
from vmkeep.host.tasks.survey import FindVm
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class Captured:
    """What a capture of a VM kept. ``new`` are the versions; ``kinds`` all that was read; ``older`` are sentences."""

    vm: str
    vm_uuid: str
    kinds: tuple[str, ...]
    new: tuple[CatalogState, ...]
    older: tuple[str, ...]


def capture_states(catalog: Catalog, host: Host, vm: str, *, wait: bool = True) -> Captured:
    """Keep what is new of a VM's state files, as versions that count as the newest; ``vm`` is a name or a UUID.

    Raises VmNotFound; VmBusy when something else works on the VM, at once without ``wait``; what a point raises of
    state files that are no such, and HostFileMissing for one that is gone.
    """
    vm_uuid = host.ask(FindVm(vm))
    with held_vm(host, vm_uuid, vm, CAPTURE, wait=wait):
        known = known_states(catalog, vm_uuid, catalog.points_of_vm(vm_uuid))
        found = host.ask(CaptureStates(uuid.uuid4().hex, vm_uuid, known))
        new = tuple(
            CatalogState(
                each.id,
                vm_uuid,
                "tpm" if each.kind == "tpm" else "nvram",
                each.generation,
                each.sha256,
                each.size_bytes,
                each.created,
            )
            for each in found.new
        )
        catalog.see_vm(vm_uuid, found.vm_name)
        if new:
            catalog.accept_states(new)
            tell_gate(catalog, host, vm_uuid)
    return Captured(found.vm_name, vm_uuid, found.kinds, new, found.older)
