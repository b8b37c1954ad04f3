"""All that is known of one VM's TPM: the device, the secret that opens its state, its file, and its versions."""

from __future__ import annotations

from collections.abc import Callable

from vmkeep.catalog import Catalog
from vmkeep.errors import HypervisorError, VmNotFound
from vmkeep.flows.secret_holders import SecretHolder, holder_for, secret_holders
from vmkeep.flows.show_state import KindShown, StateShown, show_state
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.tpms import LookAtTpm, TpmFound
from vmkeep.repository import Repository
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class TpmShown:
    """``device`` is None for a VM that is not on the host, ``kind`` where nothing is known of its state.

    ``secret`` is what holds the value of the device's secret and is vouched for; None for nothing.
    """

    state: StateShown
    device: TpmFound | None
    kind: KindShown | None
    secret: SecretHolder | None


def show_tpm(catalog: Catalog, repository: Callable[[], Repository], host: Host, vm: str) -> TpmShown:
    """Return what is known of the TPM of a VM, given by name or UUID. Raises as ``show_state``."""
    state = show_state(catalog, repository, host, vm)
    try:
        device = host.ask(LookAtTpm(state.vm_uuid)) if state.on_host else None
    except (VmNotFound, HypervisorError):
        device = None
    kind = next((each for each in state.kinds if each.kind == "tpm"), None)
    secret = "" if device is None else device.secret
    holder = holder_for(secret_holders(catalog, state.vm_uuid), None, secret) if secret else None
    return TpmShown(state, device, kind, holder)
