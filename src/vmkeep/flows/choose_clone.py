"""Whose TPM a VM is to get a copy of: what a person names, as the request of a flow."""

from __future__ import annotations

import uuid
from dataclasses import replace

from vmkeep.commandline import command_line
from vmkeep.custody.states import ChosenVersion
from vmkeep.definition import TpmBackend
from vmkeep.errors import InvalidRequest, StateUnsupported
from vmkeep.flows.capture_states import capture_states
from vmkeep.flows.choose_tpm import with_new_key
from vmkeep.flows.clone_requests import CloneTpm
from vmkeep.flows.installation import Premises
from vmkeep.flows.requests import AddTpm
from vmkeep.flows.vm_states import chosen_of, look_at_standings
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.survey import FindVm
from vmkeep.host.tasks.tpms import LookAtTpm, TpmFound


def choose_clone(premises: Premises, host: Host, source: str, vm: str, *, copy: bool) -> CloneTpm:
    """Return the request for a TPM like that of ``source``, with a copy of its state as it is now, or a blank one.

    The state is captured for that, so it is a version of the original's. Raises VmNotFound, InvalidRequest, and
    StateUnsupported for a TPM that has no state which could be copied.
    """
    of, to = host.ask(FindVm(source)), host.ask(FindVm(vm))
    if of == to:
        raise InvalidRequest(f"VM {vm!r} cannot be given its own TPM", vm=vm)
    found = host.ask(LookAtTpm(of))
    if not found.element or found.backend != TpmBackend.EMULATOR:
        what = "no TPM" if not found.element else f"a TPM that libvirt does not emulate ({found.backend})"
        raise StateUnsupported(
            f"VM {found.vm_name!r} has {what}",
            vm=found.vm_name,
            hint=f"`{command_line('vmkeep tpm add', vm)}` gives VM {vm!r} a blank one.",
        )
    request = CloneTpm(
        vm=to, source=of, source_name=found.vm_name, model=found.model, tpm_version=found.version, like=found.element
    )
    if copy:
        secret = str(uuid.uuid4()) if found.secret else ""
        return replace(request, version=_version(premises, host, found), secret=secret, value_of=found.secret)
    if not found.secret:
        return request
    blank = with_new_key(premises, host, AddTpm(vm, to, found.model, found.version))
    return replace(request, secret=blank.secret, secret_pin=blank.secret_pin)


def _version(premises: Premises, host: Host, found: TpmFound) -> ChosenVersion:
    """Return the version that the state on the host is, kept just now if it was none."""
    vm_uuid, vm = found.vm_uuid, found.vm_name
    capture_states(premises, host, vm_uuid)
    standings = look_at_standings(premises.catalog, host, (vm_uuid,)).states
    lying = {state.found.sha256 for state in standings if state.found.kind == "tpm"}
    for state in premises.catalog.states_of_vm(vm_uuid):
        if state.kind == "tpm" and state.sha256 in lying:
            return chosen_of(state)
    raise StateUnsupported(
        f"the TPM of VM {vm!r} has no state that could be copied",
        vm=vm,
        hint="A VM that was never started has none yet: --new is the same then. "
        f"`{command_line('vmkeep state list', vm)}` tells how it stands.",
    )
