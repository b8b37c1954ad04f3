"""Keep the state files of a VM as they are now, without a point.

No flow of DBOS: one file is read and put into the repository, then it is accepted, and then it is pinned. A kill
between the first two leaves a content in the repository that nothing knows, and the next capture puts it there again; a
pin that is missing is put by whatever settles the VM's pins next.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from vmkeep.catalog import Catalog, CatalogState
from vmkeep.errors import HostFileMissing, StateTorn, VmBusy, VmkeepError
from vmkeep.flows.catch_up import catch_up, catch_up_on_vm
from vmkeep.flows.gate import renew_gate, tell_gate
from vmkeep.flows.installation import Premises
from vmkeep.flows.secret_holders import kept_secrets
from vmkeep.flows.services import Services, held_vm
from vmkeep.flows.settle_pins import settle_pins, settle_pins_of_vm
from vmkeep.flows.vm_states import KINDS, known_states, look_at_standings, new_state
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.locks import CAPTURE
from vmkeep.host.tasks.states import CaptureStates, StatesCaptured
from vmkeep.host.tasks.survey import FindVm
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class Captured:
    """What a capture of a VM kept. ``new`` are the versions; ``kinds`` all that was read; ``older`` are sentences about
    older files, about what was taken over, and about a secret that could not be kept with its version.

    ``recovered``: state of the VM could not be captured before, and can be now.
    """

    vm: str
    vm_uuid: str
    kinds: tuple[str, ...]
    new: tuple[CatalogState, ...]
    older: tuple[str, ...]
    recovered: bool = False


def capture_states(
    premises: Premises, host: Host, vm: str, *, wait: bool = True, kinds: Sequence[str] = KINDS
) -> Captured:
    """Keep what is new of a VM's state files, as versions that count as the newest; ``vm`` is a name or a UUID.

    ``kinds`` limits what is read. Raises VmNotFound; VmBusy when something else works on the VM, at once without
    ``wait``; what a point raises of state files that are no such, and HostFileMissing for one that is gone. Why it
    failed is noted for `vmkeep doctor` until a capture succeeds.
    """
    vm_uuid = host.ask(FindVm(vm))
    try:
        captured = _captured(premises, host, vm_uuid, vm, tuple(kinds), wait=wait)
        look_at_standings(premises.catalog, host, (vm_uuid,))  # by which it is known where they lie
        return captured
    except VmBusy:
        raise
    except VmkeepError as error:
        _note(premises.catalog, vm_uuid, error)
        raise


def keep_before_replacing(premises: Premises, host: Host, vm_uuid: str, vm: str, kinds: Sequence[str]) -> None:
    """Keep what lies there of these kinds of state of a VM, whatever it is, so that it can be replaced.

    What is no good becomes a version that does not count, and what is gone keeps nobody from anything. Raises as
    ``capture_states``.
    """
    for kind in kinds:
        with suppress(HostFileMissing):
            _captured(premises, host, vm_uuid, vm, (kind,), wait=True, no_good_too=True)


def _captured(
    premises: Premises,
    host: Host,
    vm_uuid: str,
    vm: str,
    kinds: tuple[str, ...],
    *,
    wait: bool,
    no_good_too: bool = False,
) -> Captured:
    catalog = premises.catalog
    with held_vm(host, vm_uuid, vm, CAPTURE, wait=wait):
        # A home that is new, or was put back as it was earlier, would count on below what it captured before.
        caught = catch_up(catalog, premises.repository, lambda point: point.vm_uuid == vm_uuid)
        try:
            found, new = _keep(catalog, host.ask, uuid.uuid4().hex, vm_uuid, kinds)
        except StateTorn:
            if not no_good_too:
                raise
            found, new = _keep(catalog, host.ask, uuid.uuid4().hex, vm_uuid, kinds, as_it_is=True)
        if new or caught.taken or vm_uuid in caught.pinned:
            tell_gate(catalog, host, vm_uuid)
        settle_pins(catalog, premises.repository, vm_uuid, premises.keep_state_versions, sealed=found.sealed)
        whole = set(kinds) == set(KINDS)
        recovered = catalog.clear_alerts(vm_uuid) if whole and _has_alert(catalog, vm_uuid) else False
    told = (*caught.sentences(), *found.older, *found.warnings)
    return Captured(found.vm_name, vm_uuid, found.kinds, new, told, recovered)


def keep_states_of_held(
    services: Services, operation: str, vm_uuid: str, vm: str, kinds: tuple[str, ...], *, as_it_is: bool = False
) -> None:
    """Keep what is new of a VM's state files as versions, for a flow that holds the VM and is about to change them.

    Without kinds only what the repository holds of the VM and the catalogue does not know is taken over. ``as_it_is``:
    whatever lies there, as versions that do not count. Raises as ``capture_states``.
    """
    catch_up_on_vm(services, vm_uuid)
    services.catalog.see_vm(vm_uuid, vm)
    if not kinds:
        return
    ask = partial(services.on_host, operation)
    found, new = _keep(services.catalog, ask, operation, vm_uuid, kinds, as_it_is=as_it_is)
    if new:
        renew_gate(services, vm_uuid)
    settle_pins_of_vm(services, vm_uuid, found.sealed)


def _keep(
    catalog: Catalog,
    ask: Callable[[CaptureStates], StatesCaptured],
    operation: str,
    vm_uuid: str,
    kinds: tuple[str, ...],
    *,
    as_it_is: bool = False,
) -> tuple[StatesCaptured, tuple[CatalogState, ...]]:
    """Have the host put what is new into the repository, and accept it; of a VM that is held. Return both.

    ``as_it_is``: what is no good is kept as well, and nothing of it counts as the newest.
    """
    known = known_states(catalog, vm_uuid, catalog.points_of_vm(vm_uuid))
    secrets = kept_secrets(catalog, vm_uuid)
    found = ask(CaptureStates(operation, vm_uuid, known, kinds, secrets=secrets, as_it_is=as_it_is))
    new = tuple(new_state(vm_uuid, each) for each in found.new)
    catalog.see_vm(vm_uuid, found.vm_name)
    if as_it_is:
        catalog.keep_late(new)
    else:
        catalog.accept_states(new)
    return found, new


def _has_alert(catalog: Catalog, vm_uuid: str) -> bool:
    return any(alert.vm_uuid == vm_uuid for alert in catalog.alerts())


def _note(catalog: Catalog, vm_uuid: str, error: VmkeepError) -> None:
    """Note why state could not be captured; where that cannot be noted either, the error itself is told."""
    with suppress(VmkeepError):
        if catalog.vm(vm_uuid) is not None:
            catalog.note_alert(vm_uuid, error.code, error.message)
