"""Try whether swtpm loads a version of a VM's TPM state. Nothing is changed."""

from __future__ import annotations

from vmkeep.catalog import Catalog, CatalogState
from vmkeep.commandline import command_line
from vmkeep.custody.states import SecretSource
from vmkeep.errors import InvalidRequest
from vmkeep.flows.secret_holders import secret_holders
from vmkeep.flows.vm_states import chosen_of, versions_kept
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.states import StateTried, TryState


def try_state(catalog: Catalog, host: Host, vm: str, generation: int | None) -> tuple[CatalogState, StateTried]:
    """Return the version that was tried, the newest or the one of that number, and what came of it.

    Raises VmNotFound, InvalidRequest for a version that is not there, and what reading it raises.
    """
    versions = versions_kept(catalog, vm, "tpm")
    wanted = [
        each.version
        for each in versions
        if (each.current if generation is None else each.version.generation == generation and not each.version.conflict)
    ]
    if not wanted:
        which = "" if generation is None else f" {generation}"
        raise InvalidRequest(
            f"there is no version{which} of the TPM state of VM {vm!r}",
            vm=vm,
            hint=f"`{command_line('vmkeep state versions', vm)}` lists them.",
        )
    version = wanted[0]
    holder = next((each for each in secret_holders(catalog, version.vm_uuid) if version.id in each.versions), None)
    secret = None if holder is None else SecretSource(holder.uuid, holder.point, holder.pin)
    tried = host.ask(TryState(version.vm_uuid, chosen_of(version), secret))
    return version, tried
